//! Tests of the registry: what a request changes, and that nothing ever overlaps.

mod admission;
mod agents;
mod blocks;
mod gateways;
mod leases;
mod service_accounts;
mod story;

use subsea_api::admin::{Reservation, StockGateway, TokenCreate};
use subsea_api::member::{CidrRequests, JoinRequest, PreflightRequest};
use subsea_api::snapshot::{Gone, Listener, ListenerState, Snapshot};
use subsea_api::{
    Allocation, Cidr, ClusterId, Code, Delta, Kind, NodeName, Problem, PublicKey, Role, Token,
    UnixMillis,
};

use super::*;
use crate::auth::Fingerprint;
use crate::ipam::default_pools;

const T0: UnixMillis = UnixMillis(1_800_000_000_000);

/// A registry that applies what it decides, as the store does.
struct Bench {
    state: State,
    now: UnixMillis,
    tokens: u32,
}

impl Bench {
    fn new() -> Self {
        Self {
            state: State::new(Identity {
                fleet: "f1".parse().unwrap(),
                epoch: "e".into(),
                ula: "fd12:3456:789a::/48".parse().unwrap(),
                pools: default_pools(),
            }),
            now: T0,
            tokens: 0,
        }
    }

    fn commit<T>(&mut self, decision: Result<Decision<T>, Problem>) -> Result<T, Problem> {
        let decision = decision?;
        assert_eq!(
            decision.effects.is_empty(),
            decision.note.is_none(),
            "every change is audited"
        );
        self.apply(decision.effects);
        Ok(decision.answer)
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        let changed = changes(&effects);
        let mut mirror: Snapshot = self.state.snapshot();
        for effect in effects {
            self.state.apply(effect);
        }
        if !changed.is_empty() {
            self.state.revision += 1;
        }
        // A client that applies the changes has what a client has that starts now.
        let (from, to) = (mirror.revision, self.state.revision);
        mirror
            .apply(Delta {
                from,
                to,
                changes: changed,
            })
            .unwrap();
        let mut now = self.state.snapshot();
        // Tombstones that have had their time go without a change.
        mirror
            .tombstones
            .retain(|id, _| now.tombstones.contains_key(id));
        now.tombstones
            .retain(|id, _| mirror.tombstones.contains_key(id));
        assert_eq!(mirror, now);
    }

    fn sweep(&mut self) {
        let effects = sweep(&self.state, self.now);
        self.apply(effects);
    }

    fn token(&mut self, cluster: &str, role: Role) -> Token {
        self.tokens += 1;
        let token = Token::from_parts(self.tokens, [7; 32]);
        let request = TokenCreate {
            cluster: id(cluster),
            role,
            ttl_seconds: 900,
        };
        let decision = create_token(&self.state, &request, &token, self.now);
        self.commit(decision).unwrap();
        token
    }

    fn join(
        &mut self,
        token: &Token,
        who: (&str, &str),
        key: &str,
        cidrs: &CidrRequests,
    ) -> Result<Grant, Problem> {
        let request = JoinRequest {
            fleet: "f1".parse().unwrap(),
            token: token.clone(),
            cluster: id(who.0),
            node: node(who.1),
            csr_pem: String::new(),
            cidrs: cidrs.clone(),
        };
        let decision = join(
            &self.state,
            Join {
                request: &request,
                csr: &csr(key),
                now: self.now,
            },
        );
        self.commit(decision)
    }

    fn member(&mut self, cluster: &str, pod: &str) -> Result<Grant, Problem> {
        let token = self.token(cluster, Role::Member);
        self.join(&token, (cluster, "gw-1"), cluster, &pods(&[pod]))
    }

    fn register(
        &mut self,
        who: (&str, &str),
        key: u8,
        endpoint: &str,
    ) -> Result<subsea_api::snapshot::Gateway, Problem> {
        let listeners = [listener(key, endpoint)];
        let decision = register_gateway(&self.state, &id(who.0), &node(who.1), &listeners, &[]);
        self.commit(decision)
    }

    fn revision(&self) -> u64 {
        self.state.revision
    }
}

fn id(text: &str) -> ClusterId {
    text.parse().unwrap()
}

fn node(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn csr(key: &str) -> Csr {
    Csr {
        key: Fingerprint::of(key.as_bytes()),
        request: Fingerprint::of(format!("request of {key}").as_bytes()),
        serial: "01".into(),
    }
}

fn pods(blocks: &[&str]) -> CidrRequests {
    CidrRequests {
        pod: blocks.iter().map(|b| b.parse().unwrap()).collect(),
        ..CidrRequests::default()
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32]).unwrap()
}

fn listener(n: u8, endpoint: &str) -> Listener {
    Listener {
        id: "0".into(),
        public_key: key(n),
        port: 51820,
        stripe: 0,
        slot: 9,
        for_slot: None,
        state: ListenerState::Active,
        candidates: vec![endpoint.parse().unwrap()],
    }
}

fn blocks(grant: &Grant) -> Vec<String> {
    grant
        .allocations
        .iter()
        .map(|a| a.cidr.to_string())
        .collect()
}

fn code<T: std::fmt::Debug>(refused: Result<T, Problem>) -> Code {
    refused.unwrap_err().code
}
