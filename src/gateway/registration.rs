//! What we tell the broker of ourselves, and when again. PURE.

use std::net::IpAddr;
use std::time::Duration;

use subsea_api::member::{self, node_address_fault};
use subsea_api::snapshot::{Gateway, Listener};

/// A registration that the snapshot does not show after so long is made again.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What the broker is to have of us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Our listeners.
    pub listeners: Vec<Listener>,
    /// Where the agents of our cluster reach this node, as [`node_addresses`] makes them.
    pub node_addresses: Vec<IpAddr>,
}

/// The addresses of this node to announce: those it was told, else the one that it speaks to the broker from,
/// unless no other node can reach it by that.
pub fn node_addresses(told: &[IpAddr], towards: Option<IpAddr>) -> Vec<IpAddr> {
    if !told.is_empty() {
        return member::node_addresses(told);
    }
    let usable = towards.filter(|address| node_address_fault(*address).is_none());
    member::node_addresses(&usable.into_iter().collect::<Vec<_>>())
}

/// When to renew a lease that lasts so long from now: after about a third of it, so that two renewals may be lost
/// before it is over. Spread by `random`, so that the gateways of a fleet do not come together.
pub fn renew_after(lasts: Duration, random: u64) -> Duration {
    let third = lasts / 3;
    let part = u32::try_from(random % 1_001).unwrap_or(0);
    third * 3 / 4 + third / 2 * part / 1_000
}

/// Whether the broker has `wanted`, and nothing else, of us. The order of the listeners does not matter.
pub fn is_registered(record: Option<&Gateway>, wanted: &Wanted) -> bool {
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
        gateway.node_addresses == wanted.node_addresses
            && gateway.listeners.len() == wanted.listeners.len()
            && wanted.listeners.iter().all(has)
    })
}

/// What was sent to the broker last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What.
    pub wanted: Wanted,
    /// To which history.
    pub epoch: Option<String>,
    /// When, since the process began.
    pub at: Duration,
}

/// Whether to register now: the broker does not have what we want, and was not just told.
pub fn is_due(
    record: Option<&Gateway>,
    epoch: Option<&str>,
    wanted: &Wanted,
    sent: Option<&Sent>,
    now: Duration,
) -> bool {
    if is_registered(record, wanted) {
        return false;
    }
    sent.is_none_or(|sent| {
        sent.wanted != *wanted
            || sent.epoch.as_deref() != epoch
            || now.saturating_sub(sent.at) >= PATIENCE
    })
}

#[cfg(test)]
mod tests {
    use subsea_api::PublicKey;

    use super::super::listeners::{Listening, wanted_listeners};
    use super::*;

    fn wanted(port: u16, stripes: u16) -> Wanted {
        let key = |n| PublicKey::from_bytes([n; 32]).unwrap();
        let keys = [key(7), key(8), key(9)];
        let endpoint = ([192, 0, 2, 1], port).into();
        of(wanted_listeners(
            Listening::Stripes(stripes),
            1,
            endpoint,
            port,
            &keys,
        ))
    }

    fn of(listeners: Vec<Listener>) -> Wanted {
        Wanted {
            listeners,
            node_addresses: vec![[192, 0, 2, 1].into()],
        }
    }

    fn record(wanted: Wanted) -> Gateway {
        let Wanted {
            mut listeners,
            node_addresses,
        } = wanted;
        for listener in &mut listeners {
            listener.slot = 3;
        }
        Gateway {
            inner: vec![],
            slot: 3,
            listeners,
            stock: None,
            node_addresses,
            expired: None,
        }
    }

    #[test]
    fn it_is_due_when_the_broker_has_another_or_none() {
        let want = wanted(1, 1);
        let due = |record: Option<&Gateway>| is_due(record, Some("e"), &want, None, Duration::ZERO);
        assert!(!due(Some(&record(want.clone()))));
        assert!(due(None));
        assert!(due(Some(&record(of(vec![])))));
        assert!(due(Some(&record(wanted(2, 1)))));
        let twice = [want.listeners.clone(), want.listeners.clone()].concat();
        assert!(due(Some(&record(of(twice)))));
        let mut elsewhere = record(want.clone());
        elsewhere.node_addresses = vec![[192, 0, 2, 2].into()];
        assert!(due(Some(&elsewhere)));
        // To end that is the lease's part, not the registration's.
        let mut expired = record(want.clone());
        expired.expired = Some(subsea_api::UnixMillis(1));
        assert!(!due(Some(&expired)));
    }

    #[test]
    fn the_set_counts_and_not_its_order() {
        let three = wanted(1, 3);
        let mut turned = record(three.clone());
        turned.listeners.reverse();
        assert!(is_registered(Some(&turned), &three));
        let two = of(three.listeners[..2].to_vec());
        assert!(!is_registered(Some(&turned), &two), "one too many");
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
            wanted: want.clone(),
            epoch: Some("e".to_owned()),
            at,
        };
        let due = |epoch, want: &Wanted, after| {
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
        let fewer = of(want.listeners[..1].to_vec());
        assert!(due("e", &fewer, 1), "fewer");
        assert!(due("e", &wanted(1, 3), 1), "more");
    }

    #[test]
    fn node_addresses_are_those_told_or_the_one_towards_the_broker() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let towards = Some(ip("192.0.2.9"));
        assert_eq!(node_addresses(&[], towards), [ip("192.0.2.9")]);
        let told = [ip("fd00::1"), ip("10.0.0.2"), ip("::ffff:10.0.0.2")];
        assert_eq!(
            node_addresses(&told, towards),
            [ip("10.0.0.2"), ip("fd00::1")]
        );
        for useless in ["127.0.0.1", "fe80::1", "169.254.0.9"] {
            assert!(
                node_addresses(&[], Some(ip(useless))).is_empty(),
                "{useless}"
            );
        }
        assert!(node_addresses(&[], None).is_empty());
    }

    #[test]
    fn a_lease_is_renewed_at_about_a_third() {
        let minute = Duration::from_mins(1);
        let mut all: Vec<_> = (0..1_001).map(|r| renew_after(minute, r)).collect();
        all.sort_unstable();
        assert_eq!(all[0], Duration::from_secs(15));
        assert_eq!(all[1_000], Duration::from_secs(25));
        assert!(all[1_000] * 2 < minute, "one may be lost");
    }
}
