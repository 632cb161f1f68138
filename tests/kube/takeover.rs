//! A join file at a cluster that it was not made for: nobody is taken over, nothing is touched, and what was half done can be left.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use subsea_api::Token;

use crate::bed::{self, Plane};
use crate::ground::{Ground, objects};

const SECRET: &[&str] = &["-n", "subsea", "get", "secret", "subsea-enrolment"];

fn has_namespace(plane: &Plane) -> bool {
    let namespaces = plane.kubectl(&["get", "namespaces", "-o", "name"]).ok();
    namespaces.contains("namespace/subsea\n")
}

fn secret(plane: &Plane) -> Value {
    let text = plane.kubectl(&[SECRET, &["-o", "json"]].concat()).ok();
    serde_json::from_str(&text).expect("JSON")
}

/// Says of the Secret by which token the cluster was admitted.
fn note(plane: &Plane, token: &str) {
    let note = format!("subsea.dev/admission={token}");
    let annotate = ["annotate", "--overwrite", "secret", "subsea-enrolment"];
    plane
        .kubectl(&[&["-n", "subsea"], &annotate[..], &[note.as_str()]].concat())
        .ok();
}

/// The same join file with a token that the broker does not know, as it forgets them 30 days after their time.
fn forgotten(file: &Path, token: &Token) -> PathBuf {
    let text = std::fs::read_to_string(file).expect("a join file");
    let line = text.lines().find(|line| line.starts_with("token:"));
    let line = line.expect("a token");
    let made = file.with_extension("forgotten");
    let text = text.replace(line, &format!("token: {}", token.expose()));
    std::fs::write(&made, text).expect("a join file");
    made
}

/// What a join leaves that has not been answered.
fn half_joined(ground: &Ground) {
    let (east, west) = (&ground.east, &ground.west);
    let mut half = secret(east);
    let metadata = &half["metadata"];
    half["metadata"] = json!({
        "name": metadata["name"], "namespace": metadata["namespace"], "labels": metadata["labels"],
        "annotations": {"subsea.dev/admission": "pending"},
    });
    west.apply_as_subsea(&half.to_string());
}

#[test]
fn a_join_file_takes_no_cluster_over_and_half_a_join_can_be_left() {
    let _alone = bed::exclusive();
    let ground = Ground::build(&["gw-1"], &["gw-1"]);
    ground.deploy_broker();
    let (east, west) = (&ground.east, &ground.west);
    let used = ground.dir.join("used.join");
    std::fs::rename(ground.token("east"), &used).expect("a join file");
    ground.join("east", &used, "").ok();

    let fresh = ground.token("east");
    refuses(&ground, &fresh, &used);
    // Where it is at home, a new file changes what there is, and says what.
    let check = format!("preflight {} --context hither", fresh.display());
    for said in [
        ground.subsea(&check).said(),
        ground.join("east", &fresh, "").said(),
    ] {
        let wanted = "cluster `east` is a member of fleet";
        assert!(
            said.contains(wanted) && said.contains("its blocks stay: 10.1.0.0/16"),
            "{said}"
        );
    }
    upgrades(&ground, &fresh);

    // Half a join of the wrong cluster is left, and the other one stays.
    let file = ground.token("west");
    let printed = ground.join("west", &file, "--dry-run -o yaml").ok();
    west.apply_as_subsea(&printed);
    half_joined(&ground);
    let said = ground
        .subsea("leave --context yonder --timeout 120s")
        .said();
    assert!(said.contains("never admitted as east"), "{said}");
    ground.is_clean("west", west);
    // Or replaced.
    west.kubectl(&["create", "namespace", "subsea"]).ok();
    half_joined(&ground);
    let said = ground.join("west", &file, "").said();
    for wanted in ["instead of cluster east", "all ready"] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    assert_eq!(objects(east, "clusters").len(), 2);
}

fn refuses(ground: &Ground, fresh: &Path, used: &Path) {
    let exists = "another cluster is a member as east already";
    let elsewhere = "has no credential of cluster east";
    for (file, why) in [(fresh, exists), (used, elsewhere)] {
        let file = file.display();
        for (verb, more, code) in [
            ("preflight", "", 1),
            ("preflight", "--namespace elsewhere", 1),
            ("join", "--timeout 60s", 1),
            ("join", "--enrol-only", 2),
        ] {
            let said = ground
                .subsea(&format!("{verb} {file} --context yonder {more}"))
                .fails_with(code);
            assert!(said.contains(why), "{verb} {more}: {said}");
        }
    }
    assert!(!has_namespace(&ground.west));
    let said = ground
        .subsea(&format!("preflight {} --context hither", used.display()))
        .said();
    assert!(said.contains("a join is an upgrade"), "{said}");
    let other = ground.token("west");
    let said = ground
        .subsea(&format!("preflight {} --context hither", other.display()))
        .fails_with(1);
    assert!(said.contains("enrols cluster east of fleet"), "{said}");
}

/// Long after the broker has forgotten the token, its file still upgrades the cluster that it admitted.
fn upgrades(ground: &Ground, file: &Path) {
    let east = &ground.east;
    let token = Token::from_parts(0x00c0_ffee, [7; 32]);
    let old = forgotten(file, &token);
    let enrol = format!("join {} --context hither --enrol-only", old.display());
    let said = ground.subsea(&enrol).fails_with(2);
    assert!(said.contains("knows no token 00c0ffee"), "{said}");
    let said = ground.join("east", &old, "").fails_with(1);
    assert!(said.contains("knows no token 00c0ffee"), "{said}");
    note(east, &token.id());
    let said = ground.join("east", &old, "--image subsea:next").said();
    for wanted in [
        "its blocks and keys stay",
        "changed DaemonSet subsea/subsea-gateway",
    ] {
        assert!(said.contains(wanted), "no `{wanted}`: {said}");
    }
    let said = ground.subsea(&enrol).said();
    assert!(said.contains("nothing to do"), "{said}");
}
