//! Verbs against a running broker.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use subsea_api::join_file::JoinFile;

use crate::support::{Broker, command, run};

const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// A snapshot without what differs from run to run.
macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({filters => vec![
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[TIME]"),
            (r"\b\d+m \d+s\b|\b\d+s\b", "[AGE]"),
            (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
            (r"epoch:        .*", "epoch:        [EPOCH]"),
            (r"\b[0-9a-f]{8}\b", "[TOKEN]."),
            (r"\d+ bytes written to .*/", "[N] bytes written to [DIR]/"),
        ]}, { insta::assert_snapshot!($name, $text) });
    };
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn tokens() {
    let broker = Broker::start();
    assert_eq!(
        broker
            .run("token create --cluster east -o @join.yaml")
            .good(),
        ""
    );
    let path = broker.file("join.yaml");
    assert_eq!(mode(&path), 0o600);
    let text = fs::read_to_string(&path).unwrap();
    let file = JoinFile::parse(&text).unwrap();
    assert_eq!(
        (file.fleet.as_str(), file.cluster.as_str()),
        ("test", "east")
    );
    assert_eq!(file.broker.urls, [format!("https://{}", broker.address())]);

    // Once more to the same file, and to standard output; flags of the admin file stand anywhere.
    let admin = broker.admin().display().to_string();
    let create = "token create --cluster east --role member --ttl 1h";
    assert_eq!(
        run(&format!("{create} -o {} --admin {admin}", path.display())).good(),
        ""
    );
    assert_ne!(fs::read_to_string(&path).unwrap(), text);
    let other = run(&format!("--admin {admin} {create}")).good();
    let id = JoinFile::parse(&other).unwrap().token.id();

    let revoked = broker.run(&format!("token revoke {id}")).good();
    assert_eq!(revoked, format!("token {id} is revoked\n"));
    let list = broker.run("token list").good();
    assert!(!list.contains(&file.token.expose()[9..]), "{list}");
    snapshot!("token list", list);
    let json: serde_json::Value =
        serde_json::from_str(&broker.run("token list -o json").good()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert!(
        broker
            .run("token list -o yaml")
            .good()
            .contains("state: revoked")
    );

    snapshot!(
        "token revoke unknown",
        broker.run("token revoke 00000000").bad(1)
    );
}

#[test]
fn a_join_file_that_cannot_be_written_costs_no_token() {
    let broker = Broker::start();
    let stderr = broker
        .run("token create --cluster east -o /nowhere/join.yaml")
        .bad(1);
    assert_eq!(
        stderr,
        "error: cannot write `/nowhere/join.yaml`: entity not found\n"
    );
    let stderr = broker
        .run("token create --cluster east -o /dev/null")
        .bad(1);
    assert_eq!(
        stderr,
        "error: cannot write `/dev/null`: it exists and is not a regular file\n"
    );
    assert_eq!(broker.run("token list -o json").good(), "[]\n");
}

#[test]
fn allocations() {
    let broker = Broker::start();
    let reserve = |words: &str| broker.run(&format!("allocation reserve {words}"));
    snapshot!(
        "allocation reserve",
        reserve("--cluster east --kind pod 10.40.0.0/16").good()
    );
    snapshot!(
        "allocation reserve auto",
        reserve("--cluster west --kind pod auto/16").good()
    );
    reserve("--cluster west --kind service fd00:112::/64").good();
    snapshot!("allocation list", broker.run("allocation list").good());

    let conflict = reserve("--cluster west --kind pod 10.40.7.0/24");
    assert_eq!(conflict.code, Some(2));
    snapshot!("allocation conflict", conflict.stdout);
    assert!(
        conflict
            .stderr
            .starts_with("error: 1 pair of blocks conflicts"),
        "{}",
        conflict.stderr
    );
    let conflict = reserve("--cluster west --kind pod 10.40.7.0/24 -o json");
    let json: serde_json::Value = serde_json::from_str(&conflict.stdout).unwrap();
    assert_eq!(json["code"], "cidr-conflict");
    assert_eq!(json["details"]["conflicts"][0]["common"], "10.40.7.0/24");

    assert_eq!(
        broker.run("allocation release 10.40.0.0/16").good(),
        "10.40.0.0/16 is released\n"
    );
    snapshot!(
        "allocation release unknown",
        broker.run("allocation release 10.99.0.0/16").bad(1)
    );
}

#[test]
fn stock_gateways_and_clusters() {
    let broker = Broker::start();
    assert_eq!(broker.run("cluster list -o json").good(), "[]\n");
    let add = format!("gateway add --cluster stock --public-key {KEY} --endpoint 192.0.2.7:51820");
    let shown = broker
        .run(&format!(
            "{add} --probe 10.50.0.1 --pod-cidr 10.50.0.0/16 --service-cidr 10.120.0.0/16"
        ))
        .good();
    snapshot!("gateway add", shown);
    snapshot!("cluster list", broker.run("cluster list").good());
    snapshot!("gateway list", broker.run("gateway list").good());
    let listed = broker.run("gateway list --cluster stock -o json").good();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["cluster"], "stock");
    assert_eq!(listed[0]["node"], "stock");
    assert_eq!(listed[0]["listeners"][0]["public_key"], KEY);
    assert!(listed[0].get("expired").is_none());
    let unknown = broker.run("gateway list --cluster nobody").bad(1);
    assert!(
        unknown.contains("cluster nobody is not a member"),
        "{unknown}"
    );
    assert!(
        broker
            .run("cluster show stock -o yaml")
            .good()
            .contains(KEY)
    );

    let overlap = format!(
        "gateway add --cluster other --public-key {} --endpoint 192.0.2.8:1",
        KEY.replace('B', "C")
    );
    let conflict = broker.run(&format!("{overlap} --pod-cidr 10.50.128.0/17"));
    assert_eq!(conflict.code, Some(2));
    snapshot!("gateway add conflict", conflict.stdout);
    assert!(
        conflict
            .stderr
            .starts_with("error: 1 pair of blocks conflicts"),
        "{}",
        conflict.stderr
    );

    snapshot!(
        "cluster show unknown",
        broker.run("cluster show nobody").bad(1)
    );
    snapshot!(
        "gateway forget unknown",
        broker
            .run("gateway forget --cluster stock --name nobody")
            .bad(1)
    );
    let forgotten = broker
        .run("gateway forget --cluster stock --node stock")
        .good();
    assert_eq!(forgotten, "gateway stock/stock is forgotten\n");
    assert_eq!(
        broker.run("cluster revoke stock").good(),
        "cluster stock is revoked\n"
    );
    snapshot!("audit list", broker.run("audit list").good());
    let newest = broker.run("audit list --limit 1 -o json").good();
    let newest: serde_json::Value = serde_json::from_str(&newest).unwrap();
    assert_eq!(newest.as_array().unwrap().len(), 1);
    assert_eq!(
        newest[0]["action"], "cluster.revoke",
        "the newest entry comes"
    );
}

#[test]
fn backup_restore_and_status() {
    let mut broker = Broker::start();
    snapshot!("status", broker.run("status").good());
    broker
        .run("allocation reserve --cluster east --kind pod 10.40.0.0/16")
        .good();
    snapshot!("backup", broker.run("backup @copy.db").good());
    assert_eq!(mode(&broker.file("copy.db")), 0o600);
    broker
        .run("allocation reserve --cluster east --kind pod 10.41.0.0/16")
        .good();

    let epoch = |broker: &Broker| {
        let status = broker.run("status -o json").good();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["epoch"].as_str().unwrap().to_owned()
    };
    let before = epoch(&broker);
    broker.run("restore @copy.db").good();
    assert_ne!(epoch(&broker), before);
    assert!(
        !broker
            .run("allocation list")
            .good()
            .contains("10.41.0.0/16")
    );

    let offline = format!("restore @copy.db --data-dir {}", broker.data().display());
    let mut offline_command = command();
    offline_command
        .args(["restore", "--data-dir"])
        .arg(broker.data())
        .arg(broker.file("copy.db"));
    let refused = offline_command.output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    broker.kill();
    broker.run(&offline).good();
    // What cannot be read cannot be carried over: that is not passed over in silence.
    fs::write(broker.data().join("store.db"), "no store").unwrap();
    let warned = broker.run(&offline);
    assert_eq!(warned.code, Some(0), "{warned:?}");
    assert!(warned.stderr.contains("revocations"), "{}", warned.stderr);
    broker.restart();
    assert!(
        broker
            .run("allocation list")
            .good()
            .contains("10.40.0.0/16")
    );
    fs::write(broker.file("junk.db"), "junk").unwrap();
    broker.run("restore @junk.db").bad(1);
}

#[test]
fn a_new_admin_file() {
    let broker = Broker::start();
    let old = fs::read_to_string(broker.admin()).unwrap();
    fs::remove_file(broker.admin()).unwrap();
    let line = format!("admin reissue --data-dir {}", broker.data().display());
    let printed = run(&line).good();
    assert_eq!(
        printed,
        format!("{} is written\n", broker.admin().display())
    );
    assert_eq!(mode(&broker.admin()), 0o600);
    assert_ne!(fs::read_to_string(broker.admin()).unwrap(), old);
    broker.run("status").good();
}

#[test]
fn a_broker_that_is_away() {
    let mut broker = Broker::start();
    broker.kill();
    let address = broker.address();
    assert_eq!(
        broker.run("status").bad(1),
        format!(
            "error: the broker at https://{address} cannot be reached: Connection refused (os error 111)\n\n\
             hint: is `subsea-broker serve` running there, and does a firewall let this host in? The URL is in the \
             admin file\n"
        )
    );
}

#[test]
fn an_admin_file_of_another_broker() {
    let (broker, other) = (Broker::start(), Broker::start());
    let file = fs::read_to_string(other.admin()).unwrap();
    fs::write(
        broker.file("other.yaml"),
        file.replace(&other.address(), &broker.address()),
    )
    .unwrap();
    let path = broker.file("other.yaml");
    assert_eq!(
        broker.run("--admin @other.yaml token list").bad(1),
        format!(
            "error: the broker at https://{} is not the one that made `{}`: its certificate is of another authority\n\n\
             hint: use the `admin.yaml` in the data directory of the broker that runs there, or make a new one on the \
             broker's host with `subsea-broker admin reissue --data-dir DIR`\n",
            broker.address(),
            path.display()
        )
    );
    // The right authority but a certificate of the other one: TLS lets it in no further.
    let ours = fs::read_to_string(broker.admin()).unwrap();
    let (head, _) = ours.split_once("certificate_pem").unwrap();
    let (_, tail) = file.split_once("certificate_pem").unwrap();
    fs::write(
        broker.file("mixed.yaml"),
        format!("{head}certificate_pem{tail}"),
    )
    .unwrap();
    let stderr = broker.run("--admin @mixed.yaml token list").bad(1);
    assert_eq!(
        stderr,
        format!(
            "error: the broker at https://{} does not take the certificate in `{}`: received fatal alert: \
             DecryptError\n\n\
             hint: make a new one on the broker's host with `subsea-broker admin reissue --data-dir DIR`\n",
            broker.address(),
            broker.file("mixed.yaml").display()
        )
    );
}

#[test]
fn a_reader_that_goes_away_in_the_middle_is_no_failure() {
    let broker = Broker::start();
    let mut child = command();
    let child = child
        .args(["status", "--admin"])
        .arg(broker.admin())
        .stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_broker_on_the_same_data_is_refused() {
    let broker = Broker::start();
    let mut second = command();
    second
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(broker.data());
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_api_describes_itself() {
    let json: serde_json::Value = serde_json::from_str(&run("openapi -o json").good()).unwrap();
    assert!(json["paths"]["/v1/join"]["post"].is_object());
    assert!(
        run("openapi").good().contains("GET, POST"),
        "tokens are listed and created"
    );
}
