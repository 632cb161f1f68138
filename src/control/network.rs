//! What a daemon saw of its cluster's network plugin and service proxy, and what of it stands in the way, stable as JSON. PURE.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use subsea_api::UnixMillis;

/// The network plugin and the service proxy, seen from a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// When it was looked at last.
    pub looked: UnixMillis,
    /// The network plugins, the one that gives pods their addresses first.
    pub plugins: Vec<Detected>,
    /// What makes `ClusterIP`s work; none when nothing says so.
    pub proxy: Option<Detected>,
    /// What stands in the way, or may, the worst first.
    pub findings: Vec<Obstacle>,
    /// What could not be read, and why: there may be more in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// Something that runs in the cluster, and by what that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detected {
    /// What it is.
    pub name: String,
    /// An object of the API server, or something in this node's kernel.
    pub from: String,
}

/// A setting that stands in the way, or may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obstacle {
    /// How far.
    pub severity: Severity,
    /// A stable name: `docs/cni.md` has them all.
    pub id: String,
    /// Which setting, and where.
    pub found: String,
    /// Why it matters.
    pub why: String,
    /// What to set instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// How far a setting stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something may fail.
    Warns,
    /// Traffic between clusters fails with it.
    Blocks,
}

impl Severity {
    /// The severity as it stands in labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warns => "warns",
            Self::Blocks => "blocks",
        }
    }
}

impl NetworkStatus {
    /// How many findings are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of = self.findings.iter().filter(|f| f.severity == severity);
        of.count()
    }

    /// The findings that are not among those of `before`, by what is said of them.
    pub fn new_since<'a>(&'a self, before: Option<&Self>) -> Vec<&'a Obstacle> {
        let known: BTreeSet<(Severity, &str, &str)> = before
            .into_iter()
            .flat_map(|status| &status.findings)
            .map(Obstacle::key)
            .collect();
        let all = self.findings.iter();
        all.filter(|f| !known.contains(&f.key())).collect()
    }
}

impl Obstacle {
    fn key(&self) -> (Severity, &str, &str) {
        (self.severity, &self.id, &self.found)
    }

    /// All of it in a line.
    pub fn text(&self) -> String {
        let Self { id, found, why, .. } = self;
        let instead = self.instead.as_ref();
        let instead = instead.map_or_else(String::new, |instead| format!("; instead: {instead}"));
        format!("{id}: {found}: {why}{instead}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(severity: Severity, id: &str) -> Obstacle {
        Obstacle {
            severity,
            id: id.to_owned(),
            found: "bit 5".to_owned(),
            why: "it is ours".to_owned(),
            instead: Some("set 14".to_owned()),
        }
    }

    #[test]
    fn a_finding_is_new_once_and_again_when_it_is_worse() {
        let mut before = NetworkStatus::default();
        let mut after = NetworkStatus {
            findings: vec![obstacle(Severity::Warns, "a")],
            ..NetworkStatus::default()
        };
        assert_eq!(after.new_since(None).len(), 1);
        assert_eq!(after.new_since(Some(&before)).len(), 1);
        before.clone_from(&after);
        assert!(after.new_since(Some(&before)).is_empty());
        // In other words it is the same.
        after.findings[0].why = "it is still ours".to_owned();
        assert!(after.new_since(Some(&before)).is_empty());
        after.findings[0].severity = Severity::Blocks;
        assert_eq!(after.new_since(Some(&before)).len(), 1);
        assert_eq!(
            (after.count(Severity::Blocks), after.count(Severity::Warns)),
            (1, 0)
        );
        assert_eq!(
            before.findings[0].text(),
            "a: bit 5: it is ours; instead: set 14"
        );
    }
}
