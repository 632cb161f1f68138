//! The YAML under `manifests/` is the one source of what is installed, and does not drift.

use std::path::Path;

use subsea::kube::resources;

/// The file begins with it.
const HEAD: &str =
    "# Printed from src/kube/resources.rs: UPDATE_CRDS=1 cargo test --test manifests definitions\n";

#[test]
fn the_definitions_are_those_of_the_types() {
    let mut text = HEAD.to_owned();
    for (index, definition) in resources::definitions().iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(definition).unwrap());
    }
    for path in [
        "manifests/cluster/crds.yaml",
        "manifests/chart/files/crds.yaml",
    ] {
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(path).unwrap_or_default() == text,
            "{path} is out of date: run this test once with UPDATE_CRDS=1"
        );
    }
}
