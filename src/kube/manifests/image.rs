//! The image of the daemons, and how it is pulled. PURE.

use k8s_openapi::api::apps::v1::DaemonSet;
use serde::{Deserialize, Serialize};

use super::IMAGE;

/// An image, as the template of a pod names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Such as `registry.example.net/subsea:0.1.0`.
    pub name: String,
    /// When it is pulled; none: as the files under `manifests/` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<String>,
    /// The Secrets with which it is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
}

impl Image {
    /// One that needs no Secret.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pull_policy: None,
            pull_secrets: Vec::new(),
        }
    }

    /// The one that a DaemonSet runs.
    pub fn of(daemon: &DaemonSet) -> Option<Self> {
        let pod = daemon.spec.as_ref()?.template.spec.as_ref()?;
        let container = pod.containers.first()?;
        let secrets = pod.image_pull_secrets.iter().flatten();
        Some(Self {
            name: container.image.clone()?,
            pull_policy: container.image_pull_policy.clone(),
            pull_secrets: secrets.map(|secret| secret.name.clone()).collect(),
        })
    }

    /// Whether it is called as [`IMAGE`], in whatever version: nobody chose another registry or name.
    pub fn has_default_name(&self) -> bool {
        repository(&self.name) == repository(IMAGE)
    }
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        // Else it is the port of a registry.
        Some((repository, tag)) if !tag.contains('/') => repository,
        Some(_) | None => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_told_from_a_port_and_a_digest() {
        for (image, repository) in [
            ("subsea:0.1.0", true),
            ("subsea", true),
            ("subsea:next@sha256:00", true),
            ("registry:5000/subsea", false),
            ("registry.example.net/subsea:0.1.0", false),
            ("subsea-fork:0.1.0", false),
        ] {
            assert_eq!(Image::new(image).has_default_name(), repository, "{image}");
        }
        assert_eq!(repository("registry:5000/subsea"), "registry:5000/subsea");
    }

    #[test]
    fn it_is_that_of_a_daemon_with_how_it_is_pulled() {
        let daemon = serde_json::from_value(serde_json::json!({
            "spec": {"selector": {}, "template": {"spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [{"name": "agent", "image": "r/subsea:2", "imagePullPolicy": "Always"}],
            }}},
        }));
        let image = Image::of(&daemon.unwrap()).unwrap();
        let wanted = Image {
            name: "r/subsea:2".to_owned(),
            pull_policy: Some("Always".to_owned()),
            pull_secrets: vec!["registry".to_owned()],
        };
        assert_eq!(image, wanted);
        let text = serde_json::to_string(&image).unwrap();
        assert_eq!(serde_json::from_str::<Image>(&text).unwrap(), wanted);
    }
}
