//! The command line as it is: help, exit codes and messages, without a broker.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use subsea_api::join_file::JoinFile;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{Role, Token, UnixMillis};

fn subsea(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_subsea"))
        .args(args)
        .env_remove("SUBSEA_LOG")
        .env("COLUMNS", "100")
        .output()
        .expect("subsea starts")
}

/// Runs it, checks the exit code and gives standard error; standard output must be empty.
fn fails(args: &[&str], code: i32) -> String {
    let output = subsea(args);
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    stderr
}

fn help(args: &[&str]) -> String {
    let output = subsea(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}");
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).expect("text")
}

fn authority() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).expect("a certificate").pem()
}

/// A join file for `east` whose broker nobody is.
fn join_file(dir: &Path, role: Role) -> (String, String) {
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("https://{}", closed.local_addr().expect("its address"));
    let file = JoinFile {
        version: 1,
        fleet: "harbour".parse().expect("a name"),
        cluster: "east".parse().expect("a name"),
        role,
        expires: UnixMillis(4_000_000_000_000),
        broker: BrokerInfo {
            urls: vec![url],
            ca_pem: authority(),
        },
        token: Token::from_parts(1, [9; 32]),
    };
    let path = dir.join(format!("{role}.yaml"));
    let text = file.to_yaml().expect("yaml");
    fs::write(&path, &text).expect("written");
    (path.to_str().expect("text").to_owned(), text)
}

#[test]
fn help_of_every_verb() {
    insta::assert_snapshot!("help", help(&["--help"]));
    for verb in [
        "preflight",
        "join",
        "gateway",
        "agent",
        "status",
        "drain",
        "leave",
        "deploy-broker",
        "token",
    ] {
        insta::assert_snapshot!(format!("help_{verb}"), help(&[verb, "--help"]));
    }
    insta::assert_snapshot!("help_token_create", help(&["token", "create", "--help"]));
    assert_eq!(
        help(&["--version"]),
        format!("subsea {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_exits_with_64() {
    for args in [
        &[][..],
        &["dance"],
        &["join"],
        &["join", "file"],
        &["status"],
        &["leave"],
        &["gateway"],
        &["status", "--state-dir", "x", "-o", "xml"],
        &["status", "--state-dir", "x", "--wait", "soon"],
        &["agent"],
        &["drain"],
        &["agent", "--state-dir", "x", "--node-address", "127.0.0.1"],
        &["agent", "--state-dir", "x", "--pod-cidr", "10.1.0.1/16"],
        &["agent", "--state-dir", "x", "--probe-interval", "1ms"],
        &["gateway", "--state-dir", "x", "--node-address", "fe80::1"],
        &["gateway", "--state-dir", "x", "--listen-port", "0"],
        &["gateway", "--state-dir", "x", "--endpoint", "0.0.0.0:51820"],
        &["gateway", "--state-dir", "x", "--driver", "magic"],
        &["gateway", "--state-dir", "x", "--table", "254"],
        &["gateway", "--state-dir", "x", "--mark", "0x80/0x40"],
        &["gateway", "--state-dir", "x", "--mtu", "100"],
        &["gateway", "--state-dir", "x", "--stripes", "0"],
        &["gateway", "--state-dir", "x", "--stripes", "9"],
        &["gateway", "--state-dir", "x", "--stripes", "many"],
        &[
            "gateway",
            "--state-dir",
            "x",
            "--stripes",
            "8",
            "--endpoint",
            "192.0.2.1:65529",
        ],
        &[
            "gateway",
            "--state-dir",
            "x",
            "--device",
            "much-too-long-for-a-device",
        ],
        &["--log-format", "xml", "status", "--state-dir", "x"],
        &["deploy-broker", "--expose", "ingress"],
        &["deploy-broker", "--namespace", "Upper"],
        &["deploy-broker", "-o", "yaml"],
        &["deploy-broker", "--dry-run", "-o", "xml"],
        &["token"],
        &["token", "create"],
        &["token", "create", "--cluster", "east", "--role", "admin"],
        &["token", "create", "--cluster", "east", "--ttl", "8d"],
    ] {
        fails(args, 64);
    }
}

#[test]
fn a_dry_run_prints_what_would_be_installed_and_asks_nobody() {
    let text = help(&[
        "deploy-broker",
        "--dry-run",
        "-o",
        "yaml",
        "--expose",
        "https://broker.example.net",
        "--context",
        "of-no-kubeconfig",
    ]);
    let objects = subsea::kube::manifests::parse("x", &text).expect("objects");
    assert_eq!(objects.len(), 8);
    assert!(text.contains("--advertise=https://broker.example.net:443"));
    assert!(!text.contains(": null"));
}

#[test]
fn a_context_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config");
    let text = "apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n";
    fs::write(&config, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_subsea"))
        .args(["token", "create", "--cluster", "east", "--context", "moon"])
        .env("KUBECONFIG", &config)
        .output()
        .expect("subsea starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(stderr.contains("moon"), "{stderr}");
    assert!(stderr.contains("kubectl config get-contexts"), "{stderr}");
}

#[test]
fn a_device_name_leaves_room_for_the_numbers_of_the_kernel_driver() {
    let flags = [
        "gateway",
        "--state-dir",
        "none",
        "--device",
        "abcdefghijklmn0",
    ];
    let error = fails(&flags, 64);
    assert!(error.contains("`abcdefghijklmn15`"), "{error}");
    let userspace = [&flags[..], &["--driver", "userspace"]].concat();
    let error = fails(&userspace, 1);
    assert!(error.contains("no state directory"), "{error}");
}

#[test]
fn a_filter_that_is_none_is_wrong_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_subsea"))
        .args(["status", "--state-dir", "x"])
        .env("SUBSEA_LOG", "subsea=loud=very")
        .output()
        .expect("subsea starts");
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SUBSEA_LOG"));
}

#[test]
fn malformed_blocks_and_names_say_what_is_right() {
    let join = |flag: &str, value: &str| {
        let error = fails(&["join", "file", "--state-dir", "x", flag, value], 64);
        let preflight = fails(&["preflight", "file", flag, value], 64);
        assert_eq!(error.lines().next(), preflight.lines().next());
        error
    };
    for (flag, value, says) in [
        ("--pod-cidr", "10.100.0.0/12", "the block is `10.96.0.0/12`"),
        ("--pod-cidr", "fd00:32::1/48", "the block is `fd00:32::/48`"),
        ("--service-cidr", "10.0.0.0/33", "is not a CIDR block"),
        ("--service-cidr", "10.0.0.0", "is not a CIDR block"),
        ("--service-cidr", "ten/8", "is not a CIDR block"),
        ("--pod-cidr", "auto/31", "auto/8 to auto/30"),
        (
            "--pod-cidr",
            "10.32.0.0/16,10.33.0.1/16",
            "the block is `10.33.0.0/16`",
        ),
        ("--node-cidr", "auto/16", "is not a CIDR block"),
        ("--cluster", "east.eu", "dots are not allowed"),
        ("--cluster", "East", "use `east`"),
        (
            "--cluster",
            "a23456789012345678901234567890123",
            "33 characters",
        ),
        ("--cluster", "", "it is empty"),
    ] {
        let error = join(flag, value);
        assert!(error.contains(says), "{flag} {value}: {error}");
    }
    let error = fails(&["join", "file", "--state-dir", "x", "--node", "a_b"], 64);
    assert!(error.contains("not allowed"), "{error}");
}

#[test]
fn a_join_file_that_is_none_is_told_and_its_secret_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let state = state.to_str().expect("text");
    let (path, text) = join_file(dir.path(), Role::Member);
    let secret = Token::from_parts(1, [9; 32]).expose();
    let secret = secret.split_once('.').expect("two parts").1;
    let run = |verb: &str| {
        let mut args = vec![
            verb,
            &path,
            "--pod-cidr",
            "auto/16",
            "--service-cidr",
            "auto/20",
        ];
        if verb == "join" {
            args.extend(["--state-dir", state]);
        }
        fails(&args, 1)
    };
    // Cut anywhere, the end of the last line aside.
    for length in (0..text.trim_end().len())
        .step_by(37)
        .chain([text.trim_end().len() - 1])
    {
        fs::write(&path, &text[..length]).expect("written");
        let error = run("join");
        assert!(error.contains("token"), "cut at {length}: {error}");
        assert!(
            error.contains("cut or edited") && !error.contains(&secret[..20]),
            "{error}"
        );
    }
    fs::write(&path, [0xff, 0xfe, 0x00]).expect("written");
    assert!(run("join").contains("not a complete join file"));
    fs::write(&path, vec![b'#'; 100_000]).expect("written");
    assert!(run("preflight").contains("larger than 64 KiB"));
    fs::write(&path, text.replace("version: 1", "version: 2")).expect("written");
    assert!(run("preflight").contains("use a newer `subsea`"));
    fs::remove_file(&path).expect("removed");
    assert!(run("join").contains("could not read the join file"));
    assert!(
        !Path::new(state).exists(),
        "a refused join file leaves nothing"
    );
}

#[test]
fn blocks_go_with_a_member_token_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let state = state.to_str().expect("text");
    let (member, _) = join_file(dir.path(), Role::Member);
    let (gateway, _) = join_file(dir.path(), Role::Gateway);
    let error = fails(
        &[
            "join",
            &member,
            "--state-dir",
            state,
            "--pod-cidr",
            "auto/16",
        ],
        64,
    );
    insta::assert_snapshot!(error, @r"
    error: to admit a cluster, --service-cidr must be given

    hint: give the cluster's own blocks, or let the broker choose: `--pod-cidr auto/16 --service-cidr auto/20`
    ");
    let error = fails(&["preflight", &member], 64);
    assert!(
        error.contains("--pod-cidr and --service-cidr must be given"),
        "{error}"
    );
    let error = fails(
        &[
            "join",
            &gateway,
            "--state-dir",
            state,
            "--node",
            "gw-2",
            "--service-cidr",
            "auto/20",
        ],
        64,
    );
    insta::assert_snapshot!(error, @r"
    error: --service-cidr does not go with a join file of role `gateway`

    hint: the blocks are the cluster's, which is a member already: leave the flag out
    ");
    assert!(!Path::new(state).exists());
}

#[test]
fn a_broker_that_is_away_and_another_cluster_have_their_own_messages() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let state = state.to_str().expect("text");
    let (path, _) = join_file(dir.path(), Role::Member);
    let blocks = ["--pod-cidr", "auto/16", "--service-cidr", "auto/20"];
    let with = |more: &[&'static str]| {
        [&["join", &path, "--state-dir", state][..], &blocks, more].concat()
    };
    let error = fails(&with(&["--cluster", "west"]), 1);
    assert!(
        error.contains("the join file is for cluster `east`, not for `west`"),
        "{error}"
    );
    let error = fails(&with(&["--cluster", "east"]), 1);
    assert!(
        error.contains("cannot be reached") && error.contains("refused"),
        "{error}"
    );
    assert!(error.contains("\n\nhint: "), "{error}");
    let error = fails(&[&["preflight", &path][..], &blocks].concat(), 1);
    assert!(error.contains("cannot be reached"), "{error}");
    // What was made on the way is private, and no membership.
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(Path::new(state)), 0o700);
    assert_eq!(mode(&Path::new(state).join("tls.key")), 0o600);
    assert!(!Path::new(state).join("member.json").exists());
}

#[test]
fn a_directory_of_others_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let (path, _) = join_file(dir.path(), Role::Gateway);
    let state = dir.path().to_str().expect("text");
    let error = fails(&["join", &path, "--state-dir", state, "--node", "gw-2"], 1);
    assert!(error.contains("open to others (mode 755)"), "{error}");
}

#[test]
fn without_a_daemon_status_and_leave_say_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().to_str().expect("text");
    let error = fails(&["status", "--state-dir", state], 1);
    assert!(error.contains("no daemon runs"), "{error}");
    assert!(error.contains(&format!(
        "hint: is `subsea gateway --state-dir {state}` running?"
    )));
    let error = fails(
        &[
            "status",
            "--state-dir",
            state,
            "--wait",
            "300ms",
            "-o",
            "json",
        ],
        1,
    );
    assert!(
        error.contains("waiting: ") && error.contains("no daemon runs"),
        "{error}"
    );
    let error = fails(&["leave", "--state-dir", state], 1);
    assert!(error.contains("this node is no member"), "{error}");
    let missing = dir.path().join("none");
    for verb in ["status", "leave", "gateway"] {
        let error = fails(&[verb, "--state-dir", missing.to_str().expect("text")], 1);
        assert!(
            error.contains("there is no state directory"),
            "{verb}: {error}"
        );
    }
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let script = format!(
        "{} --help | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_subsea")
    );
    let status = Command::new("bash")
        .args(["-c", &script])
        .status()
        .expect("bash");
    assert_eq!(status.code(), Some(0));
}
