//! Puts the status of a path together, and says why it is not connected. PURE.

use std::net::SocketAddr;
use std::time::Duration;

use subsea_api::UnixMillis;
use subsea_api::snapshot::Listener;

use super::health::{Report, State};
use super::mesh::Path;
use super::status::{ListenerStatus, PathState, PathStatus};
use crate::membership::standing::Now;
use crate::tunnel::{PeerStats, REJECT_AFTER};

/// What was measured on a path.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Of the echo; `None` for a path without echo: a stock peer, or before we have an inner address.
    pub report: Option<&'a Report>,
    /// The round trip to a stock peer's probe address, if that answered lately.
    pub ping: Option<Duration>,
    /// The tunnel's counters.
    pub stats: &'a PeerStats,
    /// When the last handshake was completed.
    pub handshake: Option<UnixMillis>,
    /// Since when the path is known.
    pub since: Duration,
}

/// One of our listeners.
pub fn listener(listener: &Listener) -> ListenerStatus {
    ListenerStatus {
        id: listener.id.clone(),
        public_key: listener.public_key,
        port: listener.port,
        endpoint: listener.candidates.first().copied(),
        stripe: listener.stripe,
        for_slot: listener.for_slot,
    }
}

/// How the path is.
pub fn path(path: &Path, facts: &Facts<'_>, now: &Now) -> PathStatus {
    let Facts {
        report,
        ping,
        stats,
        handshake,
        since,
    } = *facts;
    let endpoint = stats.endpoint.or(path.endpoint);
    let state = match (path.until, &path.stock, report.map(|report| report.state)) {
        (Some(_), ..) => PathState::Kept,
        (None, Some(_), _) => PathState::Unprobed,
        (None, None, Some(State::Connected)) => PathState::Connected,
        (None, None, Some(State::OneWay)) => PathState::OneWay,
        (None, None, Some(State::Down)) => PathState::Down,
        (None, None, Some(State::Connecting) | None) => PathState::Connecting,
    };
    let echo = report.is_some_and(|report| report.state == State::Connected);
    let alive = age(handshake, now).is_some_and(|age| age < REJECT_AFTER);
    let two_way = match &path.stock {
        Some(stock) => stock.probe.map_or(alive, |_| ping.is_some()),
        None => echo,
    };
    PathStatus {
        cluster: path.id.cluster.clone(),
        gateway: path.id.node.clone(),
        public_key: path.key,
        endpoint,
        stripes: u16::try_from(path.stripes.len())
            .unwrap_or(u16::MAX)
            .saturating_add(1),
        stripe_stats: stats.stripes.clone(),
        state,
        since: now.wall_at(report.map_or(since, |report| report.since)),
        latest_handshake: handshake,
        rtt_ms: report
            .and_then(|report| report.rtt)
            .or(ping)
            .map(|rtt| rtt.as_secs_f64() * 1e3),
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        path_mtu: stats.path_mtu,
        cidrs: path.cidrs.clone(),
        drops: stats.drops.clone(),
        why: why(path, state, facts, endpoint, now),
        peer_hears_us: report.is_some_and(|report| report.peer_hears_us),
        two_way,
    }
}

fn why(
    path: &Path,
    state: PathState,
    facts: &Facts<'_>,
    endpoint: Option<SocketAddr>,
    now: &Now,
) -> Option<String> {
    let (report, handshake) = (facts.report, facts.handshake);
    let heard = report.and_then(|report| report.last_heard);
    let silent = || silence(endpoint, handshake, heard, now);
    match state {
        PathState::Connected => None,
        PathState::Kept => {
            let left = path
                .until
                .map_or(Duration::ZERO, |until| until.since(now.wall));
            let echo = match report.map(|report| report.state) {
                Some(State::Connected) => "echo goes both ways".to_owned(),
                Some(State::OneWay) => ONE_WAY.to_owned(),
                Some(State::Down | State::Connecting) => silent(),
                None => "it answers no echo".to_owned(),
            };
            Some(format!(
                "the broker's new history does not have it; kept for {} s more; {echo}",
                left.as_secs()
            ))
        }
        PathState::Unprobed => {
            let probe = path.stock.as_ref().and_then(|stock| stock.probe);
            let alive = age(handshake, now).is_some_and(|age| age < REJECT_AFTER);
            let judged = match (probe, facts.ping, alive) {
                (Some(probe), Some(_), _) => format!("{probe} behind it answers ping"),
                (Some(probe), None, true) => {
                    format!(
                        "its session is alive, but {probe} behind it does not answer ping: are our inner \
                         addresses among its AllowedIPs and routes?"
                    )
                }
                (None, _, true) => "its session is alive".to_owned(),
                (_, None, false) | (None, Some(_), false) => silent(),
            };
            Some(format!(
                "a stock WireGuard peer: it answers no echo; {judged}"
            ))
        }
        PathState::OneWay => Some(ONE_WAY.to_owned()),
        PathState::Connecting if report.is_none() && path.inner.is_empty() => {
            Some("it has no inner address that we can send echo to".to_owned())
        }
        PathState::Connecting if report.is_none() => Some(
            "we have no inner address yet: the broker has not registered this gateway".to_owned(),
        ),
        PathState::Connecting | PathState::Down => Some(silent()),
    }
}

const ONE_WAY: &str = "we hear it, it does not hear us: is something in its way dropping what we send, or is \
                       its answer sent elsewhere?";

/// Why nothing is heard, as far as the handshake tells.
fn silence(
    endpoint: Option<SocketAddr>,
    handshake: Option<UnixMillis>,
    heard: Option<Duration>,
    now: &Now,
) -> String {
    let Some(endpoint) = endpoint else {
        return "it has no endpoint: it must speak first".to_owned();
    };
    match age(handshake, now) {
        None => format!("no handshake yet: is UDP {endpoint} open?"),
        Some(age) if age >= REJECT_AFTER => {
            format!(
                "no handshake for {} s: is UDP {endpoint} still open?",
                age.as_secs()
            )
        }
        Some(age) if heard.is_some() => format!(
            "no echo for {} s, after a handshake {} s ago: is the gateway up, and UDP {endpoint} still open?",
            heard.map_or(0, |at| now.mono.saturating_sub(at).as_secs()),
            age.as_secs()
        ),
        Some(age) => format!(
            "handshake is done ({} s ago) but no echo comes back: does its firewall let UDP {} in on its tunnel \
             device, and does it know this gateway?",
            age.as_secs(),
            super::echo::PORT
        ),
    }
}

fn age(handshake: Option<UnixMillis>, now: &Now) -> Option<Duration> {
    handshake.map(|at| now.wall.since(at))
}

#[cfg(test)]
mod tests {
    use subsea_api::PublicKey;
    use subsea_api::snapshot::StockPeer;

    use super::super::echo::Flags;
    use super::super::mesh::PathId;
    use super::*;

    const NOW: Now = Now {
        mono: Duration::from_secs(100),
        wall: UnixMillis(1_000_000),
    };

    fn example() -> Path {
        Path {
            id: PathId {
                cluster: "west".parse().unwrap(),
                node: "gw-1".parse().unwrap(),
            },
            key: PublicKey::from_bytes([7; 32]).unwrap(),
            endpoint: Some(([192, 0, 2, 1], 51820).into()),
            stripes: vec![],
            inner: vec![[198, 19, 0, 1].into()],
            slot: 0,
            stock: None,
            until: None,
            cidrs: vec![],
        }
    }

    fn report(state: State) -> Report {
        Report {
            state,
            since: Duration::from_secs(90),
            rtt: (state == State::Connected).then_some(Duration::from_micros(1_500)),
            last_heard: None,
            peer_hears_us: state == State::Connected,
            flags: Flags::default(),
            revision: None,
        }
    }

    fn describe(given: &Path, state: Option<State>, handshake: Option<u64>) -> PathStatus {
        let report = state.map(report);
        let handshake = handshake.map(|ago| UnixMillis(NOW.wall.0 - ago * 1_000));
        let facts = Facts {
            report: report.as_ref(),
            ping: None,
            stats: &PeerStats::default(),
            handshake,
            since: Duration::ZERO,
        };
        path(given, &facts, &NOW)
    }

    #[test]
    fn a_connected_path_needs_no_reason() {
        let status = describe(&example(), Some(State::Connected), Some(5));
        assert_eq!(
            (status.state, status.why, status.rtt_ms),
            (PathState::Connected, None, Some(1.5))
        );
        assert_eq!(status.since, UnixMillis(990_000));
    }

    #[test]
    fn the_reason_says_what_to_look_at() {
        let reason = |state, handshake| describe(&example(), state, handshake).why.unwrap();
        assert_eq!(
            reason(Some(State::Connecting), None),
            "no handshake yet: is UDP 192.0.2.1:51820 open?"
        );
        assert!(reason(Some(State::Down), Some(200)).starts_with("no handshake for 200 s"));
        assert!(
            reason(Some(State::Down), Some(20))
                .starts_with("handshake is done (20 s ago) but no echo")
        );
        assert!(
            reason(Some(State::OneWay), Some(20)).starts_with("we hear it, it does not hear us")
        );
        assert!(reason(None, None).starts_with("we have no inner address yet"));
        let mut fell_silent = report(State::Down);
        fell_silent.last_heard = Some(Duration::from_secs(70));
        let handshake = Some(UnixMillis(NOW.wall.0 - 40_000));
        let stats = PeerStats::default();
        let facts = Facts {
            report: Some(&fell_silent),
            ping: None,
            stats: &stats,
            handshake,
            since: Duration::ZERO,
        };
        let status = path(&example(), &facts, &NOW);
        assert!(
            status
                .why
                .unwrap()
                .starts_with("no echo for 30 s, after a handshake 40 s ago")
        );
        let nowhere = Path {
            endpoint: None,
            ..example()
        };
        let status = describe(&nowhere, Some(State::Connecting), None);
        assert!(status.why.unwrap().contains("must speak first"));
    }

    #[test]
    fn a_kept_gateway_is_shown_as_such_also_while_it_answers() {
        let kept = Path {
            until: Some(UnixMillis(1_060_000)),
            ..example()
        };
        let status = describe(&kept, Some(State::Connected), Some(5));
        assert_eq!((status.state, status.two_way), (PathState::Kept, true));
        assert!(
            status
                .why
                .unwrap()
                .contains("kept for 60 s more; echo goes both ways")
        );
    }

    #[test]
    fn a_stock_peer_is_unprobed() {
        let stock = Path {
            stock: Some(StockPeer { probe: None }),
            inner: vec![],
            ..example()
        };
        let status = describe(&stock, None, Some(5));
        assert_eq!(status.state, PathState::Unprobed);
        assert!(status.why.unwrap().contains("session is alive"));
        assert!(
            describe(&stock, None, None)
                .why
                .unwrap()
                .contains("no handshake yet")
        );
    }

    #[test]
    fn a_stock_peer_with_a_probe_address_is_judged_by_its_answers() {
        let stock = Path {
            stock: Some(StockPeer {
                probe: Some("10.60.0.1".parse().unwrap()),
            }),
            inner: vec![],
            ..example()
        };
        let stats = PeerStats::default();
        let facts = |ping| Facts {
            report: None,
            ping,
            stats: &stats,
            handshake: Some(UnixMillis(999_000)),
            since: Duration::ZERO,
        };
        let answers = path(&stock, &facts(Some(Duration::from_millis(2))), &NOW);
        assert_eq!(
            (answers.state, answers.two_way, answers.rtt_ms),
            (PathState::Unprobed, true, Some(2.0))
        );
        let silent = path(&stock, &facts(None), &NOW);
        assert!(!silent.two_way);
        assert!(silent.why.unwrap().contains("10.60.0.1"));
    }
}
