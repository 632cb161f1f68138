//! A setting of a plugin or proxy, and what Subsea makes of it. PURE.

use serde::Serialize;
use subsea_api::Cidr;

use super::plugin::Cni;
use super::proxy::Proxy;

/// How far a setting stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It does not.
    Fine,
    /// Something may fail, or cannot be seen from here.
    Warns,
    /// Traffic between clusters fails with it.
    Blocks,
}

/// A setting, and what Subsea makes of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How far it stands in the way.
    pub severity: Severity,
    /// A stable name, for scripts and for `docs/cni.md`.
    pub id: &'static str,
    /// What was found, and where.
    pub found: String,
    /// Why it matters.
    pub why: String,
    /// What to set instead; none where nothing needs to be done.
    pub instead: Option<String>,
}

impl Finding {
    /// A setting that does not stand in the way.
    pub(super) fn fine(id: &'static str, found: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fine,
            id,
            found: found.into(),
            why: why.into(),
            instead: None,
        }
    }

    /// A setting that does, or may.
    pub(super) fn bad(
        severity: Severity,
        id: &'static str,
        found: impl Into<String>,
        why: impl Into<String>,
        instead: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            id,
            found: found.into(),
            why: why.into(),
            instead: Some(instead.into()),
        }
    }
}

/// The bits of marks that Subsea uses. `docs/adr/0014` and `0015` say for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The mark of our own packets.
    pub own: u32,
    /// The connection marks of the agents' roads.
    pub agent: u32,
    /// The connection marks of the gateways' roads (`--road-mask`).
    pub gateway: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            own: 0x40,
            agent: 0x3f,
            gateway: 0x3f00,
        }
    }
}

impl Marks {
    /// All of them.
    pub fn all(self) -> u32 {
        self.own | self.agent | self.gateway
    }
}

/// What else must be known to judge a setting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// The blocks of the other clusters, as far as they are known. Empty before the first one has joined.
    pub remote: &'a [Cidr],
    /// Our bits of marks.
    pub marks: Marks,
}

/// The UDP port of the agents' VXLAN.
pub(super) const VXLAN_PORT: u64 = 4851;

/// Everything there is to say, the worst first.
pub fn findings(plugins: &[Cni], proxy: &Proxy, around: Surroundings<'_>) -> Vec<Finding> {
    let mut all = proxy.findings(around);
    for plugin in plugins {
        all.extend(match plugin {
            Cni::Calico(it) => it.findings(around),
            Cni::Cilium(it) => it.findings(around),
            Cni::Flannel(it) => it.findings(),
            Cni::OvnKubernetes(it) => it.findings(),
            Cni::AwsVpc(it) => it.findings(around),
            Cni::Other { name } => vec![Finding::bad(
                Severity::Warns,
                "plugin-unknown",
                format!("network plugin {name}"),
                "Subsea does not know this plugin's settings",
                "check that a node's routing rules apply to packets of its pods, and that nothing after nftables' priority 90 \
                 changes their source",
            )],
        });
    }
    if plugins.is_empty() {
        all.push(Finding::bad(
            Severity::Warns,
            "plugin-not-found",
            "no network plugin was recognised",
            "nothing can be said about its settings",
            "see `docs/cni.md` for what Subsea needs of any plugin",
        ));
    }
    all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    all
}

/// The blocks of `remote` that none of `cover` holds.
pub(super) fn uncovered(remote: &[Cidr], cover: &[Cidr]) -> Vec<Cidr> {
    let held = |block: &Cidr| cover.iter().any(|c| c.covers(*block));
    remote.iter().filter(|b| !held(b)).copied().collect()
}
