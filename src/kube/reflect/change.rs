//! How much a change of an object matters. PURE.

use super::object::Body;
use crate::kube::resources::ConnectionStatus;

/// A round trip that changed by less than this share is the same.
const RTT_SHARE: f64 = 0.2;
/// And one that changed by less than so many milliseconds: a share of next to nothing is noise.
const RTT_LEAST: f64 = 0.1;
/// Loss that changed by less than so many points is the same.
const LOSS: f64 = 1.0;

/// How much a change matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Not at all.
    None,
    /// Numbers in a text have gone on.
    Words,
    /// A figure is another one.
    Figures,
    /// The state is another one.
    State,
}

/// What has changed from one to the other.
pub fn change(from: &Body, to: &Body) -> Change {
    let conditions = conditions(from, to);
    let rest = match (from, to) {
        (Body::Gateway(a), Body::Gateway(b)) => {
            let fixed = |s: &crate::kube::resources::GatewayStatus| {
                (
                    (s.node.clone(), s.cluster.clone(), s.endpoint.clone()),
                    (s.public_key.clone(), s.driver.clone(), s.device.clone()),
                    (s.mtu, s.version.clone()),
                )
            };
            state_unless(fixed(a) == fixed(b)).max(figures_unless(a.connections == b.connections))
        }
        (Body::Cluster(a), Body::Cluster(b)) => state_unless(
            (a.local, a.gateways, &a.allocations) == (b.local, b.gateways, &b.allocations),
        ),
        (Body::Connection(spec_a, a), Body::Connection(spec_b, b)) => {
            state_unless(spec_a == spec_b).max(connection(a, b))
        }
        (Body::Gateway(_) | Body::Cluster(_) | Body::Connection(..), _) => Change::State,
    };
    conditions.max(rest)
}

fn state_unless(same: bool) -> Change {
    if same { Change::None } else { Change::State }
}

fn figures_unless(same: bool) -> Change {
    if same { Change::None } else { Change::Figures }
}

fn conditions(from: &Body, to: &Body) -> Change {
    let (from, to) = (from.conditions(), to.conditions());
    if from.len() != to.len() {
        return Change::State;
    }
    // By type: where others have written to the list, it may be in another order.
    let each = to.iter().map(|b| {
        let Some(a) = from.iter().find(|a| a.type_ == b.type_) else {
            return Change::State;
        };
        let state = (&a.status, &a.reason) == (&b.status, &b.reason);
        state_unless(state).max(words(&a.message, &b.message))
    });
    each.max().unwrap_or(Change::None)
}

fn connection(a: &ConnectionStatus, b: &ConnectionStatus) -> Change {
    let state = (a.state, a.in_use) == (b.state, b.in_use);
    let why = words(
        a.why.as_deref().unwrap_or_default(),
        b.why.as_deref().unwrap_or_default(),
    );
    let rtt = is_near(a.rtt_milliseconds, b.rtt_milliseconds, |a, b| {
        (a - b).abs() < (a * RTT_SHARE).max(RTT_LEAST)
    });
    let loss = is_near(a.loss_percent, b.loss_percent, |a, b| (a - b).abs() < LOSS);
    let same = rtt && loss && (a.mtu, &a.endpoint) == (b.mtu, &b.endpoint);
    state_unless(state).max(why).max(figures_unless(same))
}

fn is_near(a: Option<f64>, b: Option<f64>, near: impl Fn(f64, f64) -> bool) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => near(a, b),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Texts count seconds; that they go on is less than that they say something else.
fn words(a: &str, b: &str) -> Change {
    if a == b {
        return Change::None;
    }
    let without = |text: &str| -> String {
        text.chars()
            .filter(|c| !c.is_ascii_digit() && *c != '.')
            .collect()
    };
    if without(a) == without(b) {
        Change::Words
    } else {
        Change::Figures
    }
}

/// What of `before` holds on in `after`: since when each condition has its status, and since when a connection is in its state.
pub fn carry(before: &Body, after: &mut Body) {
    if let (Body::Connection(_, before), Body::Connection(_, after)) = (before, &mut *after)
        && before.state == after.state
        && let (Some(known), Some(now)) = (&before.since, &after.since)
        // It is reckoned from how long ago that was, and may be a second beside.
        && (known.0.as_second() - now.0.as_second()).abs() <= 2
    {
        after.since = Some(known.clone());
    }
    let known = before.conditions().to_vec();
    for condition in after.conditions_mut() {
        let same = known
            .iter()
            .find(|k| k.type_ == condition.type_ && k.status == condition.status);
        if let Some(same) = same {
            condition.last_transition_time = same.last_transition_time.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use subsea_api::UnixMillis;

    use super::super::object::time;
    use super::*;
    use crate::kube::resources::{ConnectionSpec, ConnectionState};

    fn body(status: ConnectionStatus) -> Body {
        Body::Connection(ConnectionSpec::default(), status)
    }

    fn changed(by: impl Fn(&mut ConnectionStatus)) -> Change {
        let before = ConnectionStatus {
            rtt_milliseconds: Some(10.0),
            loss_percent: Some(2.0),
            mtu: Some(1500),
            why: Some("no echo for 5 s".to_owned()),
            since: Some(time(UnixMillis(5_000))),
            ..ConnectionStatus::default()
        };
        let mut after = before.clone();
        by(&mut after);
        change(&body(before), &body(after))
    }

    #[test]
    fn what_matters_and_what_does_not() {
        assert_eq!(changed(|_| {}), Change::None);
        assert_eq!(changed(|s| s.rtt_milliseconds = Some(11.9)), Change::None);
        assert_eq!(changed(|s| s.rtt_milliseconds = Some(7.9)), Change::Figures);
        assert_eq!(changed(|s| s.rtt_milliseconds = None), Change::Figures);
        assert_eq!(changed(|s| s.loss_percent = Some(2.9)), Change::None);
        assert_eq!(changed(|s| s.loss_percent = Some(3.1)), Change::Figures);
        assert_eq!(changed(|s| s.mtu = Some(1400)), Change::Figures);
        let why = |text: &'static str| changed(move |s| s.why = Some(text.to_owned()));
        assert_eq!(why("no echo for 15 s"), Change::Words);
        assert_eq!(why("something else"), Change::Figures);
        assert_eq!(changed(|s| s.since = None), Change::None);
        assert_eq!(changed(|s| s.in_use = true), Change::State);
        assert_eq!(changed(|s| s.state = ConnectionState::Down), Change::State);
    }

    #[test]
    fn small_round_trips_may_tremble() {
        let near = |ms| {
            let of = |rtt| {
                body(ConnectionStatus {
                    rtt_milliseconds: Some(rtt),
                    ..ConnectionStatus::default()
                })
            };
            change(&of(0.1), &of(ms))
        };
        assert_eq!(near(0.15), Change::None);
        assert_eq!(near(0.3), Change::Figures);
    }

    #[test]
    fn times_go_on_while_the_status_stays() {
        let status = |status: &str, reason: &str, at| {
            body(ConnectionStatus {
                since: Some(time(UnixMillis(at))),
                conditions: vec![Condition {
                    type_: "Ready".to_owned(),
                    status: status.to_owned(),
                    reason: reason.to_owned(),
                    message: String::new(),
                    last_transition_time: time(UnixMillis(at)),
                    observed_generation: None,
                }],
                ..ConnectionStatus::default()
            })
        };
        let before = status("False", "NoHandshake", 10_000);
        let mut after = status("False", "NoEcho", 11_000);
        carry(&before, &mut after);
        let at = |body: &Body| body.conditions()[0].last_transition_time.clone();
        assert_eq!(at(&after), time(UnixMillis(10_000)));
        assert_eq!(change(&before, &after), Change::State, "another reason");
        let Body::Connection(_, shown) = &after else {
            panic!("a connection");
        };
        assert_eq!(shown.since, Some(time(UnixMillis(10_000))));
        let mut up = status("True", "Connected", 60_000);
        carry(&after, &mut up);
        assert_eq!(at(&up), time(UnixMillis(60_000)));
    }
}
