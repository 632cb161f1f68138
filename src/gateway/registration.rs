//! What we tell the broker of ourselves, and when again. PURE.

use std::net::SocketAddr;
use std::time::Duration;

use subsea_api::PublicKey;
use subsea_api::snapshot::{BrokerInfo, Gateway, Listener, ListenerState};

/// A registration that the snapshot does not show after so long is made again.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// So many URLs of the broker are tried; those of its last word come first.
const MAX_URLS: usize = 8;

/// Our listener. The broker sets the slot.
pub fn listener(key: PublicKey, endpoint: SocketAddr, listen_port: u16) -> Listener {
    Listener {
        id: "0".to_owned(),
        public_key: key,
        port: listen_port,
        stripe: 0,
        slot: 0,
        state: ListenerState::Active,
        candidates: vec![endpoint],
    }
}

/// Whether the broker has `wanted`, and nothing else, of us.
pub fn is_registered(record: Option<&Gateway>, wanted: &Listener) -> bool {
    record.is_some_and(|gateway| {
        let [listener] = gateway.listeners.as_slice() else {
            return false;
        };
        Listener {
            slot: wanted.slot,
            ..listener.clone()
        } == *wanted
    })
}

/// What was sent to the broker last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What.
    pub listener: Listener,
    /// To which history.
    pub epoch: Option<String>,
    /// When, since the process began.
    pub at: Duration,
}

/// Whether to register now: the broker does not have what we want, and was not just told.
pub fn is_due(
    record: Option<&Gateway>,
    epoch: Option<&str>,
    wanted: &Listener,
    sent: Option<&Sent>,
    now: Duration,
) -> bool {
    if is_registered(record, wanted) {
        return false;
    }
    sent.is_none_or(|sent| {
        sent.listener != *wanted
            || sent.epoch.as_deref() != epoch
            || now.saturating_sub(sent.at) >= PATIENCE
    })
}

/// Where to look for the broker: where its last word says, then where the join file said. A broker that
/// advertises what cannot be reached from here is still found.
pub fn broker(last: Option<&BrokerInfo>, joined: &BrokerInfo) -> BrokerInfo {
    let Some(last) = last else {
        return joined.clone();
    };
    let mut merged = last.clone();
    for url in &joined.urls {
        if merged.urls.len() < MAX_URLS && !merged.urls.contains(url) {
            merged.urls.push(url.clone());
        }
    }
    if last.ca_pem.trim().is_empty() {
        merged.ca_pem.clone_from(&joined.ca_pem);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(port: u16) -> Listener {
        let key = PublicKey::from_bytes([7; 32]).unwrap();
        listener(key, ([192, 0, 2, 1], port).into(), port)
    }

    fn record(listeners: Vec<Listener>) -> Gateway {
        Gateway {
            inner: vec![],
            slot: 3,
            listeners,
            stock: None,
        }
    }

    #[test]
    fn it_is_due_when_the_broker_has_another_or_none() {
        let want = wanted(1);
        let same = record(vec![Listener {
            slot: 3,
            ..wanted(1)
        }]);
        let due = |record: Option<&Gateway>| is_due(record, Some("e"), &want, None, Duration::ZERO);
        assert!(!due(Some(&same)));
        assert!(due(None));
        assert!(due(Some(&record(vec![]))));
        assert!(due(Some(&record(vec![wanted(2)]))));
        assert!(due(Some(&record(vec![wanted(1), wanted(1)]))));
    }

    #[test]
    fn the_broker_is_told_again_only_for_a_reason() {
        let want = wanted(1);
        let at = Duration::from_secs(10);
        let sent = Sent {
            listener: wanted(1),
            epoch: Some("e".to_owned()),
            at,
        };
        let due = |epoch, want: &Listener, after| {
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
        assert!(due("e", &wanted(2), 1), "we moved");
    }

    #[test]
    fn the_urls_of_the_join_file_stay_as_the_last_resort() {
        let info = |url: &str, ca: &str| BrokerInfo {
            urls: vec![url.to_owned()],
            ca_pem: ca.to_owned(),
        };
        let joined = info("https://a", "old");
        assert_eq!(broker(None, &joined), joined);
        let merged = broker(Some(&info("https://b", "new")), &joined);
        assert_eq!(
            (merged.urls, merged.ca_pem.as_str()),
            (vec!["https://b".to_owned(), "https://a".to_owned()], "new")
        );
        assert_eq!(broker(Some(&info("https://a", "")), &joined), joined);
    }
}
