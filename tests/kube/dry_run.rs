//! A real API server looks at every manifest: bases, overlays, components, the chart's output, examples. Those have kinds of
//! others, whose definitions come from the modules of Argo CD and External Secrets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use subsea::kube::manifests::{Object, parse};

use crate::bed::{self, Plane, run};

/// What `scripts/check-manifests --render` writes.
struct Rendered(tempfile::TempDir);

impl Rendered {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("scripts/check-manifests");
        run(command.arg("--render").arg(dir.path())).ok();
        Self(dir)
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let dir = self.0.path().join(kind);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "nothing in {}", dir.display());
        files
    }
}

fn objects(file: &Path) -> Vec<Object> {
    let text = std::fs::read_to_string(file).unwrap();
    let objects = parse("a rendered file", &text).unwrap();
    assert!(!objects.is_empty(), "{} has no object", file.display());
    objects
}

fn kind(object: &Object) -> &str {
    object
        .types
        .as_ref()
        .map_or("", |types| types.kind.as_str())
}

/// What an API server must have before it looks at what is in them: their namespaces.
fn namespaces<'a>(objects: impl Iterator<Item = &'a Object>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for object in objects {
        all.extend(object.metadata.namespace.clone());
        if kind(object) == "Namespace" {
            all.extend(object.metadata.name.clone());
        }
    }
    all
}

fn apply(plane: &Plane, file: &Path, more: &[&str]) -> String {
    let file = file.to_str().unwrap();
    let arguments = ["apply", "--server-side", "--validate=strict", "-f", file];
    plane.kubectl(&[&arguments[..], more].concat()).ok()
}

#[test]
fn an_api_server_takes_every_manifest() {
    let bed = bed::exclusive();
    let plane = &bed.west;
    let rendered = Rendered::make();
    let mut definitions = rendered.files("definitions");
    definitions.push("manifests/cluster/crds.yaml".into());
    for file in &definitions {
        apply(plane, file, &[]);
    }
    plane.definitions_are_served();
    let files = [rendered.files("objects"), rendered.files("examples")].concat();
    let all: Vec<Vec<Object>> = files.iter().map(|file| objects(file)).collect();
    let missing: Vec<String> = namespaces(all.iter().flatten())
        .into_iter()
        .filter(|name| !["default", "kube-system"].contains(&name.as_str()))
        .collect();
    for name in &missing {
        plane.kubectl(&["create", "namespace", name]).ok();
    }
    for (file, objects) in files.iter().zip(&all) {
        let said = apply(plane, file, &["--dry-run=server", "--field-manager=subsea"]);
        // One line for each object: none was passed over.
        let taken = said
            .lines()
            .filter(|line| line.contains("(server dry run)"));
        assert_eq!(taken.count(), objects.len(), "{}: {said}", file.display());
        eprintln!("{}: {} objects", file.display(), objects.len());
    }
    for name in &missing {
        plane.kubectl(&["delete", "namespace", name]).ok();
    }
    for file in &definitions {
        let file = file.to_str().unwrap();
        plane.kubectl(&["delete", "-f", file]).ok();
    }
}

#[test]
fn what_is_no_manifest_is_refused() {
    let bed = bed::shared();
    let plane = &bed.west;
    let wrong =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: wrong, namespace: default}\ndat: {}\n";
    let arguments = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    let said = plane
        .kubectl_as(plane.kubeconfig(), &arguments, wrong)
        .fails();
    assert!(
        said.contains("field not declared in schema") || said.contains("unknown field"),
        "{said}"
    );
}
