//! The broker under a full fleet: joins per second, how fast a change reaches every watcher, and what a restart costs
//! when all watchers come back at once.
//!
//! `cargo bench -p subsea-broker --bench watch` (500 clusters of 2 gateways; `-- 100` for another number of
//! clusters). Broker and clients share this machine. Without `--bench`, as under `cargo test`, a small fleet shows
//! that the tool works.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a tool that ends where something fails, and prints what it measured"
)]

mod broker;
mod client;
mod member;
mod watcher;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use broker::Broker;
use member::{Identity, Member};
use watcher::{Heard, Start};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let full = arguments.iter().any(|a| a == "--bench");
    let clusters = arguments.iter().find_map(|a| a.parse().ok());
    let clusters = clusters.unwrap_or(if full { 500 } else { 5 });
    let changes = if full { 20 } else { 2 };
    raise_file_limit();
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(measure(clusters, changes));
}

/// Two sockets for each watch at most, and some more.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

async fn measure(clusters: u32, changes: u32) {
    let mut broker = Broker::start();
    println!("{clusters} clusters of 2 gateways, broker and clients on this machine");
    println!("{:48} {:>6.1} MiB", "broker at rest", broker.memory());
    let members = join(&broker, clusters).await;
    let watches = members.len();
    println!(
        "{:48} {:>6.1} MiB",
        "broker with the fleet registered",
        broker.memory()
    );

    leases(&broker, &members).await;

    let (told, mut heard) = mpsc::channel(watches * 4);
    let start = Instant::now();
    let mut watchers = open(&broker, &members, &told, Start::Empty).await;
    let mut revision = all_current(&mut heard, watches, 0).await;
    line(
        "first open of all watches, whole snapshots",
        start.elapsed(),
    );
    println!(
        "{:48} {:>6.1} MiB",
        format!("broker with {watches} watches"),
        broker.memory()
    );

    let mut latencies = Vec::new();
    for n in 0..changes {
        // Between two changes everything rests, so that each is measured alone.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let start = Instant::now();
        broker.change(n).await;
        let mut missing = watches;
        let mut newest = revision;
        while missing > 0 {
            let one: Heard = heard.recv().await.unwrap();
            if one.revision > revision {
                latencies.push(one.at.duration_since(start));
                newest = newest.max(one.revision);
                missing -= 1;
            }
        }
        revision = newest;
    }
    latencies.sort();
    let part = |p: usize| latencies[(latencies.len() - 1) * p / 100];
    for (name, p) in [("p50", 50), ("p99", 99), ("max", 100)] {
        line(
            &format!("a change at every watcher, {changes} changes, {name}"),
            part(p),
        );
    }

    for (name, state) in [
        (
            "kill -9, restart, all back with their revision",
            Start::At(revision),
        ),
        ("kill -9, restart, all back with nothing", Start::Empty),
    ] {
        broker.kill();
        watchers.shutdown().await;
        while heard.try_recv().is_ok() {}
        let start = Instant::now();
        broker.restart();
        line("restart until the broker listens", start.elapsed());
        watchers = open(&broker, &members, &told, state).await;
        all_current(&mut heard, watches, revision).await;
        line(name, start.elapsed());
        println!(
            "{:48} {:>6.1} MiB (peak {:.1})",
            "  broker",
            broker.memory(),
            broker.peak()
        );
    }
    watchers.shutdown().await;
}

fn line(name: &str, took: Duration) {
    println!("{name:48} {:>6.1} ms", took.as_secs_f64() * 1e3);
}

/// Joins the clusters, eight at a time, and registers two gateways of each.
async fn join(broker: &Broker, clusters: u32) -> Vec<Arc<Member>> {
    let mut waiting = Vec::new();
    for n in 0..clusters {
        for role in ["member", "gateway"] {
            let token = broker.token(n, role).await;
            waiting.push((n, Identity::new(token, role)));
        }
    }
    let mut members = Vec::new();
    // The second gateway of a cluster enrols when the cluster is a member.
    for role in ["member", "gateway"] {
        let start = Instant::now();
        let at_once = Arc::new(Semaphore::new(8));
        let mut joins = JoinSet::new();
        for (n, identity) in waiting.iter().filter(|(_, i)| i.role == role).cloned() {
            let (at_once, address) = (at_once.clone(), broker.address());
            joins.spawn(async move {
                let _permit = at_once.acquire_owned().await.unwrap();
                Arc::new(identity.join(address, n).await)
            });
        }
        members.extend(joins.join_all().await);
        let rate = f64::from(clusters) / start.elapsed().as_secs_f64();
        let what = if role == "member" {
            "joins with pre-flight"
        } else {
            "further gateways"
        };
        println!("{what:48} {rate:>6.0} a second");
    }
    let start = Instant::now();
    for member in &members {
        member.register().await;
    }
    let rate = members.len() as f64 / start.elapsed().as_secs_f64();
    println!(
        "{:48} {rate:>6.0} a second",
        "gateway registrations, one after the other"
    );
    members
}

/// Every gateway renews its lease several times, eight at a time and as fast as they can: what each costs the broker.
async fn leases(broker: &Broker, members: &[Arc<Member>]) {
    const ROUNDS: u32 = 5;
    let before = broker.revision().await;
    let (start, used) = (Instant::now(), broker.processor_time());
    let at_once = Arc::new(Semaphore::new(8));
    let mut renewals = JoinSet::new();
    for member in members {
        let (member, at_once) = (member.clone(), at_once.clone());
        renewals.spawn(async move {
            for _ in 0..ROUNDS {
                let _permit = at_once.acquire().await.unwrap();
                member.renew().await;
            }
        });
    }
    renewals.join_all().await;
    let count = f64::from(ROUNDS) * members.len() as f64;
    let rate = count / start.elapsed().as_secs_f64();
    println!(
        "{:48} {rate:>6.0} a second",
        "renewals of leases, each on a connection of its own"
    );
    let used = broker.processor_time().saturating_sub(used);
    let each = used.as_secs_f64() / count;
    println!("{:48} {:>6.2} ms of the broker", "  each", each * 1e3);
    // A thousand gateways renew each 20 s.
    println!(
        "{:48} {:>6.1} % of a core",
        "  for 1,000 gateways",
        each * 50.0 * 1e2
    );
    assert_eq!(broker.revision().await, before, "a renewal is no change");
}

async fn open(
    broker: &Broker,
    members: &[Arc<Member>],
    told: &mpsc::Sender<Heard>,
    from: Start,
) -> JoinSet<()> {
    let epoch = broker.epoch().await;
    let mut watchers = JoinSet::new();
    for (id, member) in members.iter().enumerate() {
        let (member, told, epoch, address) = (
            member.clone(),
            told.clone(),
            epoch.clone(),
            broker.address(),
        );
        watchers
            .spawn(async move { watcher::watch(id, &member, address, &epoch, from, &told).await });
    }
    watchers
}

/// Waits until every watcher has `revision` or a later one; gives the newest.
async fn all_current(heard: &mut mpsc::Receiver<Heard>, watches: usize, revision: u64) -> u64 {
    let mut current = vec![false; watches];
    let (mut newest, mut missing) = (revision, watches);
    while missing > 0 {
        let one = heard.recv().await.unwrap();
        newest = newest.max(one.revision);
        if one.revision >= revision && !std::mem::replace(&mut current[one.watcher], true) {
            missing -= 1;
        }
    }
    newest
}
