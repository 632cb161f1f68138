//! The volumes of a pod: directories of its node, claims, and the files of Secrets, ConfigMaps and tokens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::{Container, Place, Work, field, text};
use crate::namespace::run;

impl Work {
    /// Where a volume is on this host.
    pub(super) fn source(
        &self,
        (volume, group): (&Value, Option<u64>),
        name: &str,
        place: &Place,
        container: &Container,
    ) -> PathBuf {
        let disk = self.dir.join("disks").join(&place.node);
        let of_pod = volume["persistentVolumeClaim"].is_object() || volume["emptyDir"].is_object();
        let dir = if let Some(path) = volume["hostPath"]["path"].as_str() {
            if path.starts_with("/proc/") || path.starts_with("/dev/") {
                return path.into();
            }
            disk.join(path.trim_start_matches('/'))
        } else if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            self.dir.join("claims").join(claim)
        } else {
            container.root.join("volumes").join(name)
        };
        std::fs::create_dir_all(&dir).expect("a directory for a volume");
        if let (true, Some(group)) = (of_pod, group) {
            let mut command = Command::new("chown");
            run(command.arg(format!("0:{group}")).arg(&dir)).ok();
            run(Command::new("chmod").arg("2775").arg(&dir)).ok();
        }
        dir
    }

    /// Writes the files of Secrets, ConfigMaps and tokens, and again when they change. Whether nothing is missing that must be
    /// there.
    pub(super) fn write_volumes(
        &self,
        pod: &Value,
        container: &mut Container,
        place: &Place,
    ) -> bool {
        let mut complete = true;
        let namespace = text(&pod["metadata"]["namespace"]);
        let group = pod["spec"]["securityContext"]["fsGroup"].as_u64();
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = text(&volume["name"]);
            let mut files = BTreeMap::new();
            let mut sources = vec![volume.clone()];
            if let Some(projected) = volume["projected"]["sources"].as_array() {
                sources.clone_from(projected);
            } else if !volume["secret"].is_object() && !volume["configMap"].is_object() {
                continue;
            }
            let dir = self.source((volume, group), &name, place, container);
            let before = container.files.get(&dir);
            for source in &sources {
                match self.files_of(pod, &namespace, source, before) {
                    Some(found) => files.extend(found),
                    None => complete &= is_optional(source),
                }
            }
            if before != Some(&files) {
                for (file, content) in &files {
                    let path = dir.join(file);
                    let next = dir.join(format!(".{file}.next"));
                    std::fs::write(&next, content).expect("a file of a volume");
                    std::fs::rename(&next, &path).expect("a file of a volume");
                }
                for file in before.into_iter().flat_map(BTreeMap::keys) {
                    if !files.contains_key(file) {
                        drop(std::fs::remove_file(dir.join(file)));
                    }
                }
                container.files.insert(dir, files);
            }
        }
        complete
    }

    fn files_of(
        &self,
        pod: &Value,
        namespace: &str,
        source: &Value,
        before: Option<&BTreeMap<String, Vec<u8>>>,
    ) -> Option<BTreeMap<String, Vec<u8>>> {
        if let Some(token) = source["serviceAccountToken"].as_object() {
            let path = text(&token["path"]);
            // They last longer than a test.
            if let Some(content) = before.and_then(|files| files.get(&path)) {
                return Some([(path, content.clone())].into());
            }
            let account = text(&pod["spec"]["serviceAccountName"]);
            let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
            let audiences: Vec<&Value> = token.get("audience").into_iter().collect();
            let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {"audiences": audiences, "expirationSeconds": 3607, "boundObjectRef": bound}});
            let at = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
            let answer = self.send("POST", &at, "application/json", &request)?;
            return Some([(path, text(&answer["status"]["token"]).into_bytes())].into());
        }
        if let Some(items) = source["downwardAPI"]["items"].as_array() {
            let file = |item: &Value| {
                let value = field(pod, text(&item["fieldRef"]["fieldPath"]).as_str(), None);
                (text(&item["path"]), value.into_bytes())
            };
            return Some(items.iter().map(file).collect());
        }
        let (kind, name) = if let Some(secret) = source["secret"].as_object() {
            ("secrets", secret.get("secretName").or(secret.get("name")))
        } else {
            ("configmaps", source["configMap"].get("name"))
        };
        let name = name.map(text)?;
        let object = self.get(&format!("/api/v1/namespaces/{namespace}/{kind}/{name}"))?;
        let data = object["data"].as_object().cloned().unwrap_or_default();
        let decode = |value: &Value| {
            let value = text(value);
            if kind == "secrets" {
                base64(&value)
            } else {
                value.into_bytes()
            }
        };
        Some(
            data.iter()
                .map(|(key, v)| (key.clone(), decode(v)))
                .collect(),
        )
    }
}

/// Whether a pod starts without it.
fn is_optional(source: &Value) -> bool {
    ["secret", "configMap"]
        .iter()
        .any(|kind| source[kind]["optional"] == true)
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .expect("the base64 of a Secret")
}
