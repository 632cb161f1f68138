//! What time brings to a peer: initiations, renewals, keepalives, giving up and trying again. Shell around `Tunn`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use super::super::outbox::Outbox;
use super::super::schedule::{self, Chance, Side};
use super::{Initiate, Peer, QUICK, State};
use crate::tunnel::Drop;

/// A peer whose initiation we answered gets this long to confirm before we initiate too.
const CONFIRM: Duration = Duration::from_secs(1);
impl State {
    /// The peer is new: it is at `endpoint`, and a handshake is due at `at`.
    pub(in super::super) fn start_at(&mut self, endpoint: SocketAddr, at: Instant) {
        self.endpoint = Some(endpoint);
        self.initiate = Some(Initiate { at, force: false });
    }

    /// The configured endpoint is new: go there, and shake hands there at `at` without dropping the session.
    pub(in super::super) fn move_to(&mut self, endpoint: SocketAddr, at: Instant) {
        self.endpoint = Some(endpoint);
        self.initiate = Some(Initiate { at, force: true });
        self.quick = QUICK;
    }

    /// For tests: begins a handshake when the session is of this age and ours is the side that leads.
    pub(in super::super) fn renew_at(&mut self, age: Duration, peer: &Peer, now: Instant) {
        let Some((established, _)) = self.established.filter(|_| peer.side == Side::Leads) else {
            return;
        };
        let since = self.renewed.map_or(established, |at| at.max(established));
        if now.saturating_duration_since(since) >= age {
            self.renewed = Some(now);
            self.initiate = Some(Initiate {
                at: now,
                force: true,
            });
        }
    }

    /// There is something to send and no session.
    pub(super) fn want_session(
        &mut self,
        peer: &Arc<Peer>,
        now: Instant,
        chance: Chance,
        out: &mut Outbox,
    ) {
        if self.failures > 0 && self.initiate.is_some() {
            return; // backing off
        }
        let due = now + peer.side.data_wait(chance);
        if self.initiate.is_none_or(|planned| planned.at > due) {
            self.initiate = Some(Initiate {
                at: due,
                force: self.initiate.is_some_and(|planned| planned.force),
            });
        }
        self.initiate_if_due(peer, now, chance, out);
    }

    fn initiate_if_due(
        &mut self,
        peer: &Arc<Peer>,
        now: Instant,
        chance: Chance,
        out: &mut Outbox,
    ) {
        let again = self.again.is_some_and(|at| at <= now);
        let planned = self.initiate.filter(|planned| planned.at <= now);
        let force = match planned {
            Some(planned) => again || planned.force,
            None if again => true,
            None => return,
        };
        self.again = None;
        if planned.is_some() {
            self.initiate = None;
        }
        let Some(endpoint) = self.endpoint else {
            return;
        };
        if let TunnResult::WriteToNetwork(datagram) =
            self.tunn.format_handshake_initiation(out.slot(), force)
        {
            let len = datagram.len();
            out.commit(len, endpoint, peer);
            self.last_sent = now;
            if self.quick > 0 && !self.has_session() {
                self.quick -= 1;
                self.again = Some(now + schedule::quick_wait(chance));
            }
        }
    }

    /// Looks after everything that time brings: initiations, renewals, keepalives, giving up and trying again.
    pub(in super::super) fn tick(
        &mut self,
        peer: &Arc<Peer>,
        now: Instant,
        chance: Chance,
        out: &mut Outbox,
    ) {
        self.initiate_if_due(peer, now, chance, out);
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + schedule::tick(chance);
        if self
            .established
            .is_some_and(|(at, _)| peer.side.holds_renewal(now.saturating_duration_since(at)))
        {
            // Only boringtun's timers are held: a stripe lives by its keepalives.
            self.keep_alive(peer, now, chance, out);
            return;
        }
        match self.tunn.update_timers(out.slot()) {
            TunnResult::WriteToNetwork(datagram) => {
                let len = datagram.len();
                match self.endpoint {
                    Some(endpoint) => out.commit(len, endpoint, peer),
                    None => peer.drops.count(Drop::NoSession),
                }
                self.last_sent = now;
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => self.expired(peer, now, chance),
            TunnResult::Err(error) => tracing::debug!(peer = %peer.key, ?error, "timer"),
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {}
        }
        self.keep_alive(peer, now, chance, out);
    }

    /// boringtun gave up, and says so at every tick until somebody initiates: plan that, once.
    fn expired(&mut self, peer: &Peer, now: Instant, chance: Chance) {
        peer.drops.add(Drop::NoSession, self.staged.len() as u64);
        self.staged.clear();
        if self.initiate.is_none() {
            self.failures = self.failures.saturating_add(1);
            self.initiate = Some(Initiate {
                at: now + schedule::back_off(self.failures, chance),
                force: false,
            });
        }
    }

    fn keep_alive(&mut self, peer: &Arc<Peer>, now: Instant, chance: Chance, out: &mut Outbox) {
        if peer.further && self.has_session() && !self.is_alive(now) {
            // Only a handshake shows that it works in both directions again; until then the other end hears nothing
            // else. boringtun repeats it.
            if self.initiate.is_none() {
                self.initiate = Some(Initiate {
                    at: now + peer.side.data_wait(chance),
                    force: false,
                });
            }
            return;
        }
        let idle = now.saturating_duration_since(self.last_sent);
        let (Some(endpoint), true) = (
            self.endpoint,
            self.keepalive.is_some_and(|every| idle >= every),
        ) else {
            return;
        };
        if self.has_session() {
            self.encrypt(peer, &[], endpoint, out);
        } else {
            self.want_session(peer, now, chance, out);
        }
        self.last_sent = now;
    }

    /// The peer's initiation was answered: leave the rest of the handshake to it for a moment.
    pub(in super::super) fn answered(&mut self, now: Instant) {
        self.again = None;
        if let Some(planned) = self.initiate.as_mut().filter(|planned| !planned.force) {
            planned.at = planned.at.max(now + CONFIRM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::lane::Lane;
    use super::super::super::schedule::Side;
    use super::*;
    use crate::key::PrivateKey;
    use crate::net::offload::Offloads;
    use crate::net::udp::UdpSettings;

    const CHANCE: Chance = Chance(0);

    fn lane(number: usize) -> Lane {
        let udp = UdpSettings {
            listen_port: 0,
            mark: None,
            offloads: Offloads::AUTO,
        };
        Lane::open(number, PrivateKey::from_bytes([1; 32]), udp).unwrap()
    }

    fn outbox() -> Outbox {
        Outbox::new(Arc::clone(&lane(0).udp))
    }

    /// A peer at an address of the documentation, which nothing is sent to here.
    fn peer(now: Instant) -> Arc<Peer> {
        peer_in(0, now)
    }

    fn peer_in(number: usize, now: Instant) -> Arc<Peer> {
        let key = PrivateKey::from_bytes([2; 32]).public_key().unwrap();
        let peer = Arc::new(Peer::new(&lane(number), (key, Side::Leads), 7, now));
        peer.lock().endpoint = Some("192.0.2.1:51820".parse().unwrap());
        peer
    }

    #[test]
    fn after_giving_up_it_is_tried_again_with_growing_pauses_that_data_does_not_shorten() {
        let mut out = outbox();
        let now = Instant::now();
        let peer = peer(now);
        let mut state = peer.lock();
        let mut pauses = Vec::new();
        for round in 1..=4 {
            state.stage(&peer, b"waits");
            state.expired(&peer, now, CHANCE);
            assert_eq!(
                peer.drops.read().get(&Drop::NoSession),
                Some(&round),
                "what waited is dropped and counted"
            );
            let planned = state.initiate.expect("one is planned").at;
            state.expired(&peer, now + Duration::from_secs(1), CHANCE);
            state.want_session(&peer, now, CHANCE, &mut out);
            assert_eq!(state.initiate.map(|planned| planned.at), Some(planned));
            pauses.push(planned - now);
            state.initiate = None;
        }
        assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");
        assert!(out.is_empty());
    }

    #[test]
    fn a_first_initiation_is_repeated_twice_at_short_intervals() {
        let mut out = outbox();
        let now = Instant::now();
        let peer = peer(now);
        let mut state = peer.lock();
        state.start_at("192.0.2.1:51820".parse().unwrap(), now);
        let sent_at: Vec<u64> = (0..40)
            .filter(|tenth| {
                let before = out.len();
                state.initiate_if_due(
                    &peer,
                    now + Duration::from_millis(100 * tenth),
                    CHANCE,
                    &mut out,
                );
                out.len() > before
            })
            .collect();
        assert_eq!(sent_at, [0, 10, 20]);
    }

    #[test]
    fn a_session_is_renewed_for_tests_once_it_has_the_age() {
        let (age, mut out) = (Duration::from_secs(5), outbox());
        let now = Instant::now();
        let peer = peer(now);
        let mut state = peer.lock();
        state.renew_at(age, &peer, now + age);
        assert!(state.initiate.is_none(), "there is no session");
        state.confirm(&peer, 7 << 8, now);
        let renewals = |state: &mut State, ms: std::ops::Range<u64>, out: &mut Outbox| {
            let before = out.len();
            for at in ms.step_by(50).map(|ms| now + Duration::from_millis(ms)) {
                state.renew_at(age, &peer, at);
                state.initiate_if_due(&peer, at, CHANCE, out);
            }
            out.len() - before
        };
        assert_eq!(renewals(&mut state, 0..5_000, &mut out), 0);
        // Without an answer it is tried again at the same pace, beside the quick repeats of a first initiation.
        state.quick = 0;
        assert_eq!(renewals(&mut state, 5_000..14_900, &mut out), 2);
        state.confirm(&peer, (7 << 8) + 1, now + Duration::from_secs(14));
        state.quick = 0;
        assert_eq!(renewals(&mut state, 14_900..18_900, &mut out), 0);
        assert_eq!(renewals(&mut state, 18_900..19_100, &mut out), 1);
    }

    #[test]
    fn an_answered_peer_is_left_to_finish_unless_its_endpoint_is_new() {
        let now = Instant::now();
        let peer = peer(now);
        let mut state = peer.lock();
        let elsewhere = "192.0.2.2:51820".parse().unwrap();
        state.start_at(elsewhere, now);
        state.answered(now);
        assert_eq!(
            state.initiate.map(|planned| planned.at),
            Some(now + CONFIRM)
        );
        state.move_to(elsewhere, now);
        state.answered(now);
        assert_eq!(state.initiate.map(|planned| planned.at), Some(now));
        state.confirm(&peer, 7 << 8, now);
        assert!(state.initiate.is_none());
    }
}
