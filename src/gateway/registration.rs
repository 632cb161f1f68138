//! What we tell the broker of ourselves, and when again. PURE.

use std::time::Duration;

use subsea_api::snapshot::{Gateway, Listener};

/// A registration that the snapshot does not show after so long is made again.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the broker has `wanted`, and nothing else, of us. Their order does not matter.
pub fn is_registered(record: Option<&Gateway>, wanted: &[Listener]) -> bool {
    record.is_some_and(|gateway| {
        let has = |listener: &Listener| {
            gateway.listeners.iter().any(|known| {
                // The broker sets it.
                let slot = listener.slot;
                Listener {
                    slot,
                    ..known.clone()
                } == *listener
            })
        };
        gateway.listeners.len() == wanted.len() && wanted.iter().all(has)
    })
}

/// What was sent to the broker last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What.
    pub listeners: Vec<Listener>,
    /// To which history.
    pub epoch: Option<String>,
    /// When, since the process began.
    pub at: Duration,
}

/// Whether to register now: the broker does not have what we want, and was not just told.
pub fn is_due(
    record: Option<&Gateway>,
    epoch: Option<&str>,
    wanted: &[Listener],
    sent: Option<&Sent>,
    now: Duration,
) -> bool {
    if is_registered(record, wanted) {
        return false;
    }
    sent.is_none_or(|sent| {
        sent.listeners != wanted
            || sent.epoch.as_deref() != epoch
            || now.saturating_sub(sent.at) >= PATIENCE
    })
}

#[cfg(test)]
mod tests {
    use subsea_api::PublicKey;

    use super::super::listeners::{Listening, wanted_listeners};
    use super::*;

    fn wanted(port: u16, stripes: u16) -> Vec<Listener> {
        let key = |n| PublicKey::from_bytes([n; 32]).unwrap();
        let keys = [key(7), key(8), key(9)];
        let endpoint = ([192, 0, 2, 1], port).into();
        wanted_listeners(Listening::Stripes(stripes), 1, endpoint, port, &keys)
    }

    fn record(mut listeners: Vec<Listener>) -> Gateway {
        for listener in &mut listeners {
            listener.slot = 3;
        }
        Gateway {
            inner: vec![],
            slot: 3,
            listeners,
            stock: None,
        }
    }

    #[test]
    fn it_is_due_when_the_broker_has_another_or_none() {
        let want = wanted(1, 1);
        let due = |record: Option<&Gateway>| is_due(record, Some("e"), &want, None, Duration::ZERO);
        assert!(!due(Some(&record(want.clone()))));
        assert!(due(None));
        assert!(due(Some(&record(vec![]))));
        assert!(due(Some(&record(wanted(2, 1)))));
        assert!(due(Some(&record([want.clone(), want.clone()].concat()))));
    }

    #[test]
    fn the_set_counts_and_not_its_order() {
        let three = wanted(1, 3);
        let mut turned = record(three.clone());
        turned.listeners.reverse();
        assert!(is_registered(Some(&turned), &three));
        assert!(!is_registered(Some(&turned), &three[..2]), "one too many");
        turned.listeners[0] = turned.listeners[1].clone();
        assert!(!is_registered(Some(&turned), &three), "one twice, one not");
        let mut other = record(three.clone());
        other.listeners[2].for_slot = Some(0);
        assert!(!is_registered(Some(&other), &three));
    }

    #[test]
    fn the_broker_is_told_again_only_for_a_reason() {
        let want = wanted(1, 2);
        let at = Duration::from_secs(10);
        let sent = Sent {
            listeners: want.clone(),
            epoch: Some("e".to_owned()),
            at,
        };
        let due = |epoch, want: &[Listener], after| {
            is_due(
                None,
                Some(epoch),
                want,
                Some(&sent),
                at + Duration::from_secs(after),
            )
        };
        assert!(!due("e", &want, 1));
        assert!(due("e", &want, 5), "the snapshot still does not show it");
        assert!(due("f", &want, 1), "a new history");
        assert!(due("e", &wanted(2, 2), 1), "we moved");
        assert!(due("e", &want[..1], 1), "fewer");
        assert!(due("e", &wanted(1, 3), 1), "more");
    }
}
