//! What is wrong on the command line is said in full, with exit code 64; nothing is asked of a broker.

use std::io::Read as _;
use std::process::Stdio;

use crate::support::{command, run};

/// The first line of a usage error.
#[track_caller]
fn usage(line: &str) -> String {
    let stderr = run(line).bad(64);
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr.lines().next().unwrap().to_owned()
}

#[test]
fn blocks_are_canonical_or_refused() {
    let reserve = "allocation reserve --cluster east --kind pod";
    assert_eq!(
        usage(&format!("{reserve} 10.0.0.0")),
        "error: invalid value '10.0.0.0' for '<CIDR|auto/N>': `10.0.0.0` is not a CIDR block: write an address and \
         a prefix length, such as 10.32.0.0/16 or fd00:32::/48"
    );
    assert_eq!(
        usage(&format!("{reserve} 10.100.0.0/12")),
        "error: invalid value '10.100.0.0/12' for '<CIDR|auto/N>': `10.100.0.0/12` has host bits set: the block is \
         `10.96.0.0/12`"
    );
    assert_eq!(
        usage(&format!("{reserve} auto/31")),
        "error: invalid value 'auto/31' for '<CIDR|auto/N>': `auto/31` asks for no possible block: use auto/8 to \
         auto/30, or auto6/16 to auto6/126"
    );
    assert_eq!(
        usage("allocation release fd00:1::1/32"),
        "error: invalid value 'fd00:1::1/32' for '<CIDR>': `fd00:1::1/32` has host bits set: the block is \
         `fd00:1::/32`"
    );
    assert_eq!(
        usage("serve --data-dir d --listen 127.0.0.1:0 --pool pod=10.100.0.0/12"),
        "error: invalid value 'pod=10.100.0.0/12' for '--pool <KIND=CIDR>': `10.100.0.0/12` has host bits set: the \
         block is `10.96.0.0/12`"
    );
}

#[test]
fn cluster_ids_are_labels() {
    assert_eq!(
        usage("token create --cluster east.eu"),
        "error: invalid value 'east.eu' for '--cluster <ID>': `east.eu` is not a valid cluster id: dots are not \
         allowed, because the name is one label of a DNS name"
    );
    assert_eq!(
        usage("token create --cluster East"),
        "error: invalid value 'East' for '--cluster <ID>': `East` is not a valid cluster id: capital letters are \
         not allowed, use `east`"
    );
    let long = "a".repeat(33);
    assert_eq!(
        usage(&format!("cluster show {long}")),
        format!(
            "error: invalid value '{long}' for '<ID>': `{long}` is not a valid cluster id: it has 33 characters, at \
             most 32 are allowed"
        )
    );
}

#[test]
fn values_are_checked_before_anything_is_asked() {
    for (line, why) in [
        ("", "Usage:"),
        ("frobnicate", "unrecognized subcommand"),
        ("status --frobnicate", "unexpected argument"),
        ("status -o xml", "possible values: table, json, yaml"),
        ("token create", "--cluster <ID>"),
        (
            "token create --cluster a --role admin",
            "tokens give no admin certificate",
        ),
        (
            "token create --cluster a --role root",
            "use member, gateway, agent or dns",
        ),
        ("token create --cluster a --ttl 0s", "at least 1s"),
        ("token create --cluster a --ttl 8d", "at most 7d"),
        (
            "gateway add --cluster a --public-key AAAA --endpoint 192.0.2.1:1",
            "44 characters of base64",
        ),
        (
            "allocation reserve --cluster a --kind infra auto/24",
            "by itself",
        ),
        ("audit list --limit 0", "0 is not in 1..=1000"),
        (
            "serve --data-dir d --listen nowhere",
            "invalid socket address",
        ),
        (
            "serve --data-dir d --listen 127.0.0.1:0 --advertise http://a:1",
            "write https://HOST:PORT",
        ),
        (
            "serve --data-dir d --listen 127.0.0.1:0 --fleet a.b",
            "not a valid fleet name",
        ),
        (
            "serve --data-dir d --listen 127.0.0.1:0 --pool node=10.0.0.0/8",
            "never taken from a pool",
        ),
        (
            "restore f --data-dir d --admin a",
            "cannot be used together",
        ),
        (
            "--admin a restore f --data-dir d",
            "cannot be used together",
        ),
    ] {
        let stderr = run(line).bad(64);
        assert!(stderr.contains(why), "{line}: {stderr}");
    }
}

#[test]
fn a_pasted_token_is_not_repeated() {
    let secret = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk";
    let line = format!(
        "token revoke 00000007.{secret} --admin {}",
        env!("CARGO_MANIFEST_PATH")
    );
    let ran = run(&line);
    assert!(!ran.stderr.contains(secret), "{}", ran.stderr);
    assert_ne!(ran.code, Some(0));
}

#[test]
fn an_admin_file_must_be_given_be_there_and_be_one() {
    assert_eq!(
        run("status").bad(64),
        "error: this verb needs an admin file\n\n\
         hint: pass `--admin DATA-DIR/admin.yaml`, or set SUBSEA_ADMIN; the broker writes the file at its first \
         start\n"
    );
    let missing = "error: cannot read the admin file `/nowhere/admin.yaml`: No such file or directory (os error 2)\n\n\
         hint: the broker writes `admin.yaml` into its data directory at its first start; only its user can read it\n";
    assert_eq!(run("--admin /nowhere/admin.yaml status").bad(1), missing);
    assert_eq!(run("status --admin /nowhere/admin.yaml").bad(1), missing);
    assert_eq!(
        run("token list --admin /nowhere/admin.yaml").bad(1),
        missing
    );
    let no_admin = env!("CARGO_MANIFEST_PATH");
    assert_eq!(
        run(&format!("status --admin {no_admin}")).bad(1),
        format!(
            "error: `{no_admin}` is not a complete admin file: was it cut or edited?\n\n\
             hint: make a new one on the broker's host with `subsea-broker admin reissue --data-dir DIR`\n"
        )
    );
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let mut command = command();
    command.args(["serve", "--data-dir", "/nowhere", "--listen", "127.0.0.1:0"]);
    let output = command.env("SUBSEA_LOG", "a=b=c").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    assert!(
        stderr.starts_with("error: SUBSEA_LOG is `a=b=c`, which is no log filter"),
        "{stderr}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command()
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(
        (child.wait().unwrap().code(), stderr.as_str()),
        (Some(0), "")
    );
}
