//! `--help` of every verb.

use crate::support::run;

const VERBS: [&str; 25] = [
    "",
    "serve",
    "token",
    "token create",
    "token list",
    "token revoke",
    "cluster",
    "cluster list",
    "cluster show",
    "cluster forget",
    "cluster revoke",
    "gateway",
    "gateway add",
    "gateway list",
    "gateway forget",
    "allocation",
    "allocation list",
    "allocation reserve",
    "allocation release",
    "audit list",
    "backup",
    "restore",
    "status",
    "openapi",
    "admin reissue",
];

#[test]
fn every_verb_explains_itself() {
    for verb in VERBS {
        let help = run(&format!("{verb} --help")).good();
        let name = format!("help {verb}").trim().replace(' ', "-");
        insta::assert_snapshot!(name, help);
    }
}

#[test]
fn help_is_short_with_h_and_there_is_a_version() {
    assert!(run("-h").good().len() < run("--help").good().len());
    assert_eq!(
        run("--version").good(),
        concat!("subsea-broker ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert_eq!(run("help token").good(), run("token --help").good());
}
