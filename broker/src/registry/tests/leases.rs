//! Leases of gateways, with a clock that the tests move.

use std::time::Duration;

use subsea_api::snapshot::Gateway;

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

/// Three gateways of two clusters, their leases, and a clock in seconds.
struct Fleet {
    bench: Bench,
    leases: Leases,
    awake: u64,
}

const NAMES: [(&str, &str); 3] = [("east", "gw-1"), ("east", "gw-2"), ("west", "gw-1")];

impl Fleet {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.member("east", "10.0.0.0/16").unwrap();
        bench.member("west", "10.1.0.0/16").unwrap();
        for ((cluster, name), n) in NAMES.into_iter().zip(1..) {
            let endpoint = format!("192.0.2.{n}:51820");
            bench.register((cluster, name), n, &endpoint).unwrap();
        }
        let mut fleet = Self {
            bench,
            leases: Leases::new(MINUTE),
            awake: 1_000_000,
        };
        fleet.look();
        fleet
    }

    fn clock(&self) -> Duration {
        Duration::from_secs(self.awake)
    }

    /// What the broker does every few seconds.
    fn look(&mut self) {
        let now = self.clock();
        let mut more = self.leases.look(&self.bench.state, now);
        while more {
            let names = self.leases.end(&self.bench.state, now);
            more = names.len() == BATCH;
            let decision = expire(&self.bench.state, &names, self.bench.now);
            self.bench.commit(Ok(decision)).unwrap();
        }
    }

    /// Lets time pass while the broker looks after the leases.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.awake += 1;
            self.bench.now = self.bench.now.plus(Duration::from_secs(1));
            self.look();
        }
    }

    /// Renews as the call does, and says whether that made a revision.
    fn renew(&mut self, (cluster, name): (&str, &str)) -> bool {
        let before = self.bench.revision();
        let (cluster, name) = (id(cluster), node(name));
        let over = is_over(&self.bench.state, &cluster, &name).unwrap();
        let ending = self.leases.renew(&cluster, &name, self.clock());
        if over || ending {
            let decision = renew_lease(&self.bench.state, &cluster, &name);
            self.bench.commit(decision).unwrap();
        }
        self.bench.revision() > before
    }

    fn gateway(&self, (cluster, name): (&str, &str)) -> &Gateway {
        &self.bench.state.clusters[cluster].gateways[name]
    }

    fn expired(&self) -> Vec<(&str, &str)> {
        let is_expired = |name: &(&str, &str)| self.gateway(*name).expired.is_some();
        NAMES.into_iter().filter(is_expired).collect()
    }
}

#[test]
fn renewals_make_no_revision_and_silence_makes_one() {
    let mut fleet = Fleet::new();
    let before = fleet.bench.revision();
    for _ in 0..180 {
        fleet.pass(20);
        for name in NAMES {
            assert!(!fleet.renew(name));
        }
    }
    assert_eq!(fleet.bench.revision(), before, "an hour of renewals");
    let last = fleet.gateway(NAMES[1]).clone();
    for _ in 0..2 {
        fleet.pass(29);
        fleet.renew(NAMES[0]);
        fleet.renew(NAMES[2]);
    }
    assert_eq!(fleet.bench.revision(), before, "58 s are not too long");
    fleet.pass(7);
    assert_eq!(fleet.expired(), [NAMES[1]]);
    assert_eq!(fleet.bench.revision(), before + 1);
    let expired = fleet.gateway(NAMES[1]).clone();
    let since = expired.expired.unwrap();
    assert!(fleet.bench.now.since(since) <= Duration::from_secs(5));
    assert_eq!(
        Gateway {
            expired: None,
            ..expired
        },
        last,
        "all else stays: peers keep its endpoints"
    );
    for _ in 0..6 {
        fleet.pass(20);
        fleet.renew(NAMES[0]);
        fleet.renew(NAMES[2]);
    }
    assert_eq!(fleet.bench.revision(), before + 1, "it is said once");
    assert!(fleet.renew(NAMES[1]));
    assert!(!fleet.renew(NAMES[1]));
    assert_eq!(*fleet.gateway(NAMES[1]), last);
    assert_eq!(fleet.bench.revision(), before + 2);
}

#[test]
fn a_registration_returns_too() {
    let mut fleet = Fleet::new();
    fleet.pass(70);
    assert_eq!(fleet.expired(), NAMES);
    let before = fleet.bench.revision();
    let (cluster, name) = (id("east"), node("gw-2"));
    fleet.leases.renew(&cluster, &name, fleet.clock());
    fleet
        .bench
        .register(NAMES[1], 2, "192.0.2.2:51820")
        .unwrap();
    assert_eq!(fleet.bench.revision(), before + 1);
    assert_eq!(fleet.expired(), [NAMES[0], NAMES[2]]);
    fleet.pass(20);
    assert_eq!(fleet.bench.revision(), before + 1);
}

#[test]
fn those_that_end_together_make_one_revision() {
    let mut fleet = Fleet::new();
    let before = fleet.bench.revision();
    fleet.pass(70);
    assert_eq!(fleet.expired(), NAMES);
    assert_eq!(fleet.bench.revision(), before + 1);
}

#[test]
fn a_new_process_gives_all_a_full_lease_again() {
    let mut fleet = Fleet::new();
    fleet.pass(50);
    fleet.leases = Leases::new(MINUTE);
    fleet.pass(55);
    assert!(fleet.expired().is_empty());
    fleet.pass(6);
    assert_eq!(fleet.expired(), NAMES);
    // What was over before stays over: nobody has heard of it since.
    let before = fleet.bench.revision();
    fleet.leases = Leases::new(MINUTE);
    fleet.pass(30);
    assert_eq!(fleet.expired(), NAMES);
    assert_eq!(fleet.bench.revision(), before);
    assert!(fleet.renew(NAMES[0]));
    assert_eq!(fleet.expired(), [NAMES[1], NAMES[2]]);
}

#[test]
fn a_broker_that_slept_gives_all_a_full_lease_again() {
    let mut fleet = Fleet::new();
    for asleep in [30, 59, 61, 3_600, 86_400 * 30] {
        fleet.pass(50);
        fleet.awake += asleep;
        fleet.pass(55);
        assert!(fleet.expired().is_empty(), "asleep for {asleep} s");
        for name in NAMES {
            fleet.renew(name);
        }
    }
    fleet.pass(65);
    assert_eq!(fleet.expired(), NAMES, "awake, it hears that nobody speaks");
}

#[test]
fn no_clock_that_jumps_expires_anybody() {
    let mut fleet = Fleet::new();
    // The one of the wall is not asked.
    for wall in [0, 1, T0.0 * 2, u64::MAX / 2] {
        fleet.bench.now = UnixMillis(wall);
        fleet.look();
        assert!(fleet.expired().is_empty());
    }
    // Nor does the other one go back, but if it did.
    fleet.pass(30);
    fleet.awake -= 500_000;
    fleet.pass(55);
    assert!(fleet.expired().is_empty());
    fleet.pass(10);
    assert_eq!(fleet.expired(), NAMES);
}

#[test]
fn a_renewal_that_meets_the_end_of_its_lease_wins() {
    let mut fleet = Fleet::new();
    fleet.pass(59);
    fleet.awake += 1;
    let now = fleet.clock();
    let (cluster, name) = (id("east"), node("gw-1"));
    assert!(fleet.leases.look(&fleet.bench.state, now));
    let names = fleet.leases.end(&fleet.bench.state, now);
    assert_eq!(names.len(), 3);
    // The renewal comes when the end is decided and not committed.
    assert!(!is_over(&fleet.bench.state, &cluster, &name).unwrap());
    assert!(fleet.leases.renew(&cluster, &name, now), "it is told");
    let decision = expire(&fleet.bench.state, &names, fleet.bench.now);
    fleet.bench.commit(Ok(decision)).unwrap();
    let decision = renew_lease(&fleet.bench.state, &cluster, &name);
    fleet.bench.commit(decision).unwrap();
    assert_eq!(fleet.expired(), [NAMES[1], NAMES[2]]);
    // A commit that failed is tried again.
    let mut fleet = Fleet::new();
    fleet.pass(59);
    fleet.awake += 1;
    let now = fleet.clock();
    assert_eq!(fleet.leases.end(&fleet.bench.state, now).len(), 3);
    assert_eq!(fleet.leases.end(&fleet.bench.state, now).len(), 3);
}

#[test]
fn only_our_own_gateways_have_leases() {
    let mut fleet = Fleet::new();
    let request = StockGateway {
        public_key: key(50),
        endpoint: "192.0.2.50:51820".parse().unwrap(),
        probe: None,
        allocations: vec![],
    };
    let state = &fleet.bench.state;
    let decision = add_stock_gateway(state, &id("east"), &node("wg"), &request, T0);
    fleet.bench.commit(decision).unwrap();
    fleet.pass(200);
    assert_eq!(fleet.gateway(("east", "wg")).expired, None);
    for (cluster, name, refusal) in [
        ("east", "wg", Code::NotFound),
        ("east", "gw-9", Code::NotFound),
        ("north", "gw-1", Code::NotMember),
    ] {
        let renewed = renew_lease(&fleet.bench.state, &id(cluster), &node(name));
        assert_eq!(code(renewed), refusal, "{cluster}/{name}");
    }
}

#[test]
fn a_forgotten_gateway_is_gone_and_its_successor_starts_anew() {
    let mut fleet = Fleet::new();
    fleet.pass(70);
    let state = &fleet.bench.state;
    let decision = forget_gateway(state, &id("east"), &node("gw-2"), fleet.bench.now);
    fleet.bench.commit(decision).unwrap();
    assert!(
        !fleet.bench.state.clusters["east"]
            .gateways
            .contains_key("gw-2")
    );
    assert_eq!(
        code(is_over(&fleet.bench.state, &id("east"), &node("gw-2"))),
        Code::NotFound
    );
    fleet.pass(5);
    fleet
        .bench
        .register(NAMES[1], 2, "192.0.2.2:51820")
        .unwrap();
    fleet.pass(50);
    assert_eq!(fleet.expired(), [NAMES[0], NAMES[2]]);
}

#[test]
fn many_ends_are_told_in_bounded_commits() {
    let mut bench = Bench::new();
    let clusters: u16 = 300;
    for n in 0..clusters {
        let name = format!("c{n}");
        let pod = format!("10.{}.{}.0/24", n / 256, n % 256);
        bench.member(&name, &pod).unwrap();
        let mut bytes = [1; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        let mut one = listener(1, "192.0.2.1:51820");
        one.public_key = PublicKey::from_bytes(bytes).unwrap();
        let decision = register_gateway(&bench.state, &id(&name), &node("gw-1"), &[one], &[]);
        bench.commit(decision).unwrap();
    }
    let mut fleet = Fleet::new();
    fleet.bench = bench;
    fleet.look();
    let before = fleet.bench.revision();
    fleet.pass(59);
    assert_eq!(fleet.bench.revision(), before);
    fleet.pass(2);
    let commits = u64::from(clusters).div_ceil(BATCH as u64);
    assert_eq!(fleet.bench.revision(), before + commits);
    let records = fleet.bench.state.clusters.values();
    assert!(
        records
            .flat_map(|c| c.gateways.values())
            .all(|g| g.expired.is_some())
    );
}

#[test]
fn node_addresses_are_checked_and_kept_in_one_form() {
    let mut b = Bench::new();
    b.member("east", "10.0.0.0/16").unwrap();
    let register = |b: &mut Bench, addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let listeners = [listener(1, "192.0.2.1:51820")];
        let decision =
            register_gateway(&b.state, &id("east"), &node("gw-1"), &listeners, &addresses);
        b.commit(decision)
    };
    let gateway = register(&mut b, &["fd00::2", "192.0.2.9", "::ffff:192.0.2.9"]).unwrap();
    let texts: Vec<_> = gateway
        .node_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(texts, ["192.0.2.9", "fd00::2"]);
    let before = b.revision();
    register(&mut b, &["192.0.2.9", "fd00::2"]).unwrap();
    assert_eq!(b.revision(), before, "the same again");
    register(&mut b, &[]).unwrap();
    assert_eq!(b.revision(), before + 1);
    let five = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5"];
    assert_eq!(code(register(&mut b, &five)), Code::BadRequest);
    register(&mut b, &five[..4]).unwrap();
    for bad in [
        "127.0.0.1",
        "fe80::1",
        "169.254.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
    ] {
        let refused = register(&mut b, &["192.0.2.9", bad]).unwrap_err();
        assert_eq!(refused.code, Code::BadRequest, "{bad}");
        assert!(refused.message.contains("no node address"), "{refused}");
    }
}

#[test]
fn another_gateway_of_the_cluster_clears_one_whose_lease_is_over_and_no_other() {
    let mut fleet = Fleet::new();
    let clear = |fleet: &Fleet, (cluster, name): (&str, &str)| {
        clear_gateway(
            &fleet.bench.state,
            &id(cluster),
            &node(name),
            fleet.bench.now,
        )
    };
    assert_eq!(code(clear(&fleet, NAMES[1])), Code::Forbidden);
    fleet.pass(70);
    assert_eq!(code(clear(&fleet, ("east", "gw-9"))), Code::NotFound);
    let decision = clear(&fleet, NAMES[1]);
    fleet.bench.commit(decision).unwrap();
    let gateways = &fleet.bench.state.clusters["east"].gateways;
    assert!(gateways.contains_key("gw-1") && !gateways.contains_key("gw-2"));
    assert_eq!(code(clear(&fleet, NAMES[1])), Code::NotFound, "again");
}
