//! An object that a gateway writes, as it is compared and as it is sent. PURE.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use subsea_api::UnixMillis;

use crate::kube::labels;
use crate::kube::resources::{
    BROKER_REACHABLE, ClusterStatus, ConnectionSpec, ConnectionStatus, GROUP, GatewayStatus,
    NETWORK_COMPATIBLE, READY, VERSION,
};

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A gateway of our cluster.
    Gateway,
    /// The connection of a gateway of ours to another one.
    Connection,
    /// A member of the fleet.
    Cluster,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Connection, Self::Cluster];

    /// As it stands in objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::Connection => "Connection",
            Self::Cluster => "Cluster",
        }
    }

    /// As it stands in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Gateway => "gateways",
            Self::Connection => "connections",
            Self::Cluster => "clusters",
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Of which kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// What stands in an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Of a gateway.
    Gateway(GatewayStatus),
    /// Of a connection.
    Connection(ConnectionSpec, ConnectionStatus),
    /// Of a member.
    Cluster(ClusterStatus),
}

impl Body {
    /// Its conditions.
    pub fn conditions(&self) -> &[Condition] {
        match self {
            Self::Gateway(status) => &status.conditions,
            Self::Connection(_, status) => &status.conditions,
            Self::Cluster(status) => &status.conditions,
        }
    }

    /// Its conditions, to be changed.
    pub fn conditions_mut(&mut self) -> &mut [Condition] {
        match self {
            Self::Gateway(status) => &mut status.conditions,
            Self::Connection(_, status) => &mut status.conditions,
            Self::Cluster(status) => &mut status.conditions,
        }
    }

    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions().iter().find(|c| c.type_ == kind)
    }

    /// What an object of this kind has, as it came from the server; none when it is not understood, so that it is written
    /// anew.
    pub fn parse(kind: Kind, object: &Value) -> Option<Self> {
        let status = object.get("status")?.clone();
        let mut body = match kind {
            Kind::Gateway => serde_json::from_value(status).ok().map(Self::Gateway),
            Kind::Connection => {
                let spec = serde_json::from_value(object.get("spec")?.clone()).ok()?;
                let status = serde_json::from_value(status).ok()?;
                Some(Self::Connection(spec, status))
            }
            Kind::Cluster => serde_json::from_value(status).ok().map(Self::Cluster),
        }?;
        // Others may add conditions of their own: that is what the list is keyed by type for.
        let ours = |c: &Condition| CONDITIONS.contains(&c.type_.as_str());
        match &mut body {
            Self::Gateway(status) => status.conditions.retain(ours),
            Self::Connection(_, status) => status.conditions.retain(ours),
            Self::Cluster(status) => status.conditions.retain(ours),
        }
        Some(body)
    }

    fn status(&self) -> Value {
        match self {
            Self::Gateway(status) => json!(status),
            Self::Connection(_, status) => json!(status),
            Self::Cluster(status) => json!(status),
        }
    }
}

/// The types of conditions that are ours.
const CONDITIONS: [&str; 3] = [READY, BROKER_REACHABLE, NETWORK_COMPATIBLE];

/// What of a status the server has beyond what was `applied`: fields that another writer has set and that we leave out. An apply
/// does not take away what others own, so it is taken away by name. None when there is nothing of that.
pub fn surplus(applied: &Value, answered: &Value) -> Option<Value> {
    let (ours, theirs) = (applied.get("status")?, answered.get("status")?.as_object()?);
    let beyond = theirs
        .keys()
        .filter(|field| ours.get(field.as_str()).is_none());
    let gone: Map<String, Value> = beyond.map(|field| (field.clone(), Value::Null)).collect();
    (!gone.is_empty()).then(|| json!({"status": gone}))
}

/// Who writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Writer {
    /// The node, as the value of a label.
    pub node: String,
    /// The node, as the owner of what is written of it.
    pub owner: Option<OwnerReference>,
}

/// Who put an object of ours there: not who installed the rest, so that neither takes the other's for its own.
pub const MANAGER: &str = "subsea-gateway";

/// The labels of an object.
pub fn labels(kind: Kind, writer: &Writer) -> Vec<(&'static str, String)> {
    let mut all = vec![
        (labels::MANAGED_BY, MANAGER.to_owned()),
        (labels::PART_OF, labels::SUBSEA.to_owned()),
    ];
    // A member of the fleet belongs to no node.
    if kind != Kind::Cluster {
        all.push((labels::NODE, writer.node.clone()));
    }
    all
}

/// Whether the labels and owners of an object are as `writer` would write them.
pub fn is_whole(kind: Kind, metadata: &ObjectMeta, writer: &Writer) -> bool {
    let known = metadata.labels.as_ref();
    let labelled = labels(kind, writer)
        .iter()
        .all(|(name, value)| known.and_then(|known| known.get(*name)) == Some(value));
    let mut owners = metadata.owner_references.iter().flatten();
    let owned = match (&writer.owner, kind) {
        (Some(owner), Kind::Gateway | Kind::Connection) => owners.any(|o| o.uid == owner.uid),
        (Some(_), Kind::Cluster) | (None, _) => true,
    };
    labelled && owned
}

/// The object without its status, as it is applied.
pub fn main_patch(key: &Key, body: &Body, writer: &Writer) -> Value {
    let mut patch = head(key);
    for (name, value) in labels(key.kind, writer) {
        patch["metadata"]["labels"][name] = json!(value);
    }
    if let (Some(owner), Kind::Gateway | Kind::Connection) = (&writer.owner, key.kind) {
        patch["metadata"]["ownerReferences"] = json!([owner]);
    }
    patch["spec"] = match body {
        Body::Connection(spec, _) => json!(spec),
        Body::Gateway(_) | Body::Cluster(_) => json!({}),
    };
    patch
}

/// The status of the object, as it is applied.
pub fn status_patch(key: &Key, body: &Body) -> Value {
    let mut patch = head(key);
    patch["status"] = body.status();
    patch
}

fn head(key: &Key) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": key.kind.as_str(),
        "metadata": {"name": key.name},
    })
}

/// A time as objects have it, in whole seconds.
pub fn time(at: UnixMillis) -> Time {
    let seconds = i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// A text of at most so many bytes.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub(3);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_read() {
        let key = Key {
            kind: Kind::Connection,
            name: "gw-1.west.gw-2".to_owned(),
        };
        let spec = ConnectionSpec {
            gateway: "gw-1".to_owned(),
            cluster: "west".to_owned(),
            remote_gateway: "gw-2".to_owned(),
        };
        let status = ConnectionStatus {
            rtt_milliseconds: Some(1.25),
            since: Some(time(UnixMillis(1_234))),
            ..ConnectionStatus::default()
        };
        let body = Body::Connection(spec, status);
        let owner = OwnerReference {
            name: "gw-1".to_owned(),
            ..OwnerReference::default()
        };
        let writer = Writer {
            node: "gw-1".to_owned(),
            owner: Some(owner),
        };
        let mut object = main_patch(&key, &body, &writer);
        assert_eq!(object["metadata"]["labels"]["subsea.dev/node"], "gw-1");
        assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "gw-1");
        assert!(object.get("status").is_none());
        let status = status_patch(&key, &body);
        assert!(status.get("spec").is_none());
        object["status"] = status["status"].clone();
        assert_eq!(Body::parse(Kind::Connection, &object), Some(body));
        assert_eq!(Body::parse(Kind::Gateway, &json!({"spec": {}})), None);
    }

    #[test]
    fn what_others_have_set_beyond_ours_is_named_and_their_conditions_are_theirs() {
        let applied = json!({"status": {"state": "connected", "conditions": []}});
        let same = json!({"metadata": {}, "status": {"state": "down", "conditions": [1]}});
        assert_eq!(surplus(&applied, &same), None);
        let more = json!({"status": {"state": "connected", "why": "x", "mtu": 1}});
        let gone = json!({"status": {"why": null, "mtu": null}});
        assert_eq!(surplus(&applied, &more), Some(gone));
        assert_eq!(surplus(&applied, &json!({"spec": {}})), None);

        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let object = json!({"status": {"local": true, "gateways": 1, "conditions": [condition("Audited"), condition("Ready")]}});
        let body = Body::parse(Kind::Cluster, &object).unwrap();
        assert_eq!(body.conditions().len(), 1);
        assert!(body.condition("Ready").is_some());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdef", 5), "ab...");
        assert_eq!(cut("a\u{e9}\u{e9}\u{e9}", 6), "a\u{e9}...");
    }
}
