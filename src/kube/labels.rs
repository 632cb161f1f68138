//! By which labels things are ours. PURE.

/// Who put an object there.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// What an object belongs to.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// Which part of it.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The value of [`MANAGED_BY`] and [`PART_OF`].
pub const SUBSEA: &str = "subsea";
/// On an object that a daemon wrote: the daemon's node.
pub const NODE: &str = "subsea.dev/node";
/// On a node: it is to be a gateway.
pub const GATEWAY: &str = "subsea.dev/gateway";

/// What every object of ours has.
pub fn ours() -> [(&'static str, &'static str); 2] {
    [(MANAGED_BY, SUBSEA), (PART_OF, SUBSEA)]
}
