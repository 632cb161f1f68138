//! Events on transitions, few enough for nobody to mind. PURE.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use subsea_api::UnixMillis;

use super::object::{Body, Key, MANAGER, cut};
use crate::kube::resources::{GROUP, READY, VERSION};

/// At most one event of an object and reason in this time.
const QUIET: Duration = Duration::from_secs(30);
/// The longest note that the server takes is 1,024 bytes.
const NOTE: usize = 1_000;
/// Events of objects that belong to no namespace are kept in this one.
pub const NAMESPACE: &str = "default";

/// Something that is worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// What it is about.
    pub key: Key,
    /// Why, in one word.
    pub reason: String,
    /// The same in a sentence.
    pub note: String,
    /// Whether it is for the worse.
    pub warning: bool,
    /// When, for people.
    pub at: UnixMillis,
}

/// When there was an event for what.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<(Key, String), Duration>);

impl Told {
    /// What a change from one to the other is worth; nothing when the same was told just now.
    pub fn transition(
        &mut self,
        key: &Key,
        from: &Body,
        to: &Body,
        now: Duration,
        at: UnixMillis,
    ) -> Option<Happened> {
        let (from, to) = (from.condition(READY)?, to.condition(READY)?);
        if (&from.status, &from.reason) == (&to.status, &to.reason) {
            return None;
        }
        self.0.retain(|_, last| now.saturating_sub(*last) < QUIET);
        let told = (key.clone(), to.reason.clone());
        if self.0.contains_key(&told) {
            return None;
        }
        self.0.insert(told, now);
        Some(Happened {
            key: key.clone(),
            reason: to.reason.clone(),
            note: cut(&to.message, NOTE),
            warning: to.status == "False",
            at,
        })
    }
}

/// The event as it is sent; `uid` is that of the object. `salt` makes its name one of its own.
pub fn event(happened: &Happened, uid: &str, node: &str, salt: u64) -> Event {
    let micros = i64::try_from(happened.at.0).map_or(i64::MAX, |ms| ms.saturating_mul(1_000));
    let at = MicroTime(Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX));
    // A name is that of an object and 17 characters more at most.
    let object = cut(&happened.key.name, 230);
    let object = object.trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{salt:016x}")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(at),
        reporting_controller: Some(format!("{GROUP}/{MANAGER}")),
        reporting_instance: Some(cut(&format!("{MANAGER}-{node}"), 128)),
        action: Some("Observe".to_owned()),
        reason: Some(happened.reason.clone()),
        note: Some(happened.note.clone()),
        type_: Some(
            if happened.warning {
                "Warning"
            } else {
                "Normal"
            }
            .to_owned(),
        ),
        regarding: Some(ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(happened.key.kind.as_str().to_owned()),
            name: Some(happened.key.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::super::object::{Kind, time};
    use super::*;
    use crate::kube::resources::GatewayStatus;

    fn body(status: &str, reason: &str) -> Body {
        Body::Gateway(GatewayStatus {
            conditions: vec![Condition {
                type_: READY.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: format!("it is {reason}"),
                last_transition_time: time(UnixMillis(0)),
                observed_generation: None,
            }],
            ..GatewayStatus::default()
        })
    }

    #[test]
    fn the_same_is_not_told_again_and_again() {
        let key = Key {
            kind: Kind::Gateway,
            name: "gw-1".to_owned(),
        };
        let (good, bad) = (body("True", "Running"), body("False", "Draining"));
        let mut told = Told::default();
        let mut tell = |from, to, seconds| {
            let now = Duration::from_secs(seconds);
            told.transition(&key, from, to, now, UnixMillis(seconds * 1_000))
        };
        assert_eq!(tell(&good, &good, 0), None);
        let first = tell(&good, &bad, 1).unwrap();
        assert!(first.warning && first.note == "it is Draining");
        assert!(!tell(&bad, &good, 2).unwrap().warning);
        assert_eq!(tell(&good, &bad, 20), None, "told just now");
        assert!(tell(&good, &bad, 31).is_some());
        let sent = event(&first, "u", "gw-1", 7);
        let json = serde_json::to_value(&sent).unwrap();
        assert_eq!(json["metadata"]["name"], "gw-1.0000000000000007");
        assert_eq!(json["regarding"]["kind"], "Gateway");
        assert_eq!(
            (&json["type"], &json["reason"]),
            (&"Warning".into(), &"Draining".into())
        );
        assert_eq!(json["eventTime"], "1970-01-01T00:00:01.000000Z");
    }
}
