//! The image of the daemons, and how it is pulled. PURE.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodSpec;
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

    /// The one that a pod runs.
    pub fn of(pod: &PodSpec) -> Option<Self> {
        let container = pod.containers.first()?;
        let secrets = pod.image_pull_secrets.iter().flatten();
        Some(Self {
            name: container.image.clone()?,
            pull_policy: container.image_pull_policy.clone(),
            pull_secrets: secrets.map(|secret| secret.name.clone()).collect(),
        })
    }

    /// What to install where `live` runs: a `name` that is given, otherwise that of this version, but where somebody chose a registry
    /// or a name, nobody knows what it is called there, and it stays. Secrets that nobody gives stay, too.
    #[must_use]
    pub fn next(
        live: Option<&Self>,
        name: Option<String>,
        pull_secrets: Option<Vec<String>>,
    ) -> Self {
        let kept = live.filter(|live| !live.has_default_name());
        let kept = kept.map(|live| live.name.clone());
        let live = || live.map(|live| live.pull_secrets.clone());
        let mut pull_secrets = pull_secrets.or_else(live).unwrap_or_default();
        // The API server takes no name twice.
        let mut known = BTreeSet::new();
        pull_secrets.retain(|secret| known.insert(secret.clone()));
        Self {
            name: name.or(kept).unwrap_or_else(|| IMAGE.to_owned()),
            pull_policy: None,
            pull_secrets,
        }
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
    fn it_is_that_of_a_pod_with_how_it_is_pulled() {
        let pod = serde_json::from_value(serde_json::json!({
            "imagePullSecrets": [{"name": "registry"}],
            "containers": [{"name": "agent", "image": "r/subsea:2", "imagePullPolicy": "Always"}],
        }));
        let image = Image::of(&pod.unwrap()).unwrap();
        let wanted = Image {
            name: "r/subsea:2".to_owned(),
            pull_policy: Some("Always".to_owned()),
            pull_secrets: vec!["registry".to_owned()],
        };
        assert_eq!(image, wanted);
        let text = serde_json::to_string(&image).unwrap();
        assert_eq!(serde_json::from_str::<Image>(&text).unwrap(), wanted);
    }

    #[test]
    fn what_somebody_chose_stays_until_it_is_chosen_anew() {
        let live = |name: &str| Image {
            pull_policy: Some("Always".to_owned()),
            pull_secrets: vec!["registry".to_owned()],
            ..Image::new(name)
        };
        let next = |live: Option<Image>, name: Option<&str>, secrets: Option<&[&str]>| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let next = Image::next(live.as_ref(), name.map(str::to_owned), secrets.map(owned));
            (next.name, next.pull_secrets.join(" "))
        };
        let pair = |name: &str, secrets: &str| (name.to_owned(), secrets.to_owned());
        let (ours, theirs) = ("subsea:0.0.1", "r/s:1");
        for (live, name, secrets, wanted) in [
            (None, None, None, pair(IMAGE, "")),
            (
                None,
                Some("r/s:1"),
                Some(&["a", "b", "a"][..]),
                pair("r/s:1", "a b"),
            ),
            (Some(live(theirs)), None, None, pair(theirs, "registry")),
            (Some(live(theirs)), None, Some(&[]), pair(theirs, "")),
            (Some(live(ours)), None, Some(&["a"]), pair(IMAGE, "a")),
            (
                Some(live(theirs)),
                Some("r/s:2"),
                None,
                pair("r/s:2", "registry"),
            ),
        ] {
            assert_eq!(next(live, name, secrets), wanted);
        }
    }
}
