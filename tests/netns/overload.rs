//! More than a gateway can carry: who loses.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, setpriority_process};
use subsea::net::sys::option;

use crate::flows::{Datagrams, Pump, Tally, pair};
use crate::namespace::Namespace;
use crate::site::Site;
use crate::world::World;

const TIME: Duration = Duration::from_secs(8);
/// The light flow: 200 datagrams of 200 bytes a second.
const INTERVAL: Duration = Duration::from_millis(5);
const LIGHT: usize = 200;
/// What a light flow may lose.
const PERCENT: f64 = 1.0;
/// Other work on this machine can take the core away from the gateway for longer than a device holds packets, and then
/// the kernel drops of all flows alike: the best of so many runs counts.
const RUNS: usize = 4;
const SENDERS: u32 = 3;

/// What a flood is of.
#[derive(Clone, Copy)]
struct Shape {
    what: &'static str,
    /// What each call hands to the kernel, which cuts it into datagrams.
    bytes: usize,
    datagram: usize,
    /// Datagrams a second, of all senders; none: as fast as they can.
    rate: Option<u32>,
}

/// Datagrams of several senders.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(from: &Namespace, to: (&Namespace, IpAddr), shape: Shape) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for _ in 0..SENDERS {
            let (sending, receiving) = pair(from, to);
            if shape.bytes > shape.datagram {
                let size = i32::try_from(shape.datagram).expect("small");
                option::set(sending.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, size)
                    .expect("UDP_SEGMENT");
            }
            let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
            threads.push(thread::spawn(move || {
                let payload = vec![0; shape.bytes];
                let each = u32::try_from(shape.bytes.div_ceil(shape.datagram)).expect("few");
                let pause = shape.rate.map_or(Duration::ZERO, |rate| {
                    Duration::from_secs(1) * each * SENDERS / rate
                });
                let (start, mut calls) = (Instant::now(), 0);
                while !stopped.load(Ordering::Relaxed) {
                    if sending.send(&payload).is_ok() {
                        count.fetch_add(each.into(), Ordering::Relaxed);
                    }
                    calls += 1;
                    // A sleep is longer than a pause: it catches up after it.
                    if start.elapsed() < pause * calls {
                        thread::sleep(Duration::from_micros(300));
                    }
                }
            }));
            let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
            threads.push(thread::spawn(move || {
                let mut room = [0; 2_000];
                while !stopped.load(Ordering::Relaxed) {
                    if receiving.recv(&mut room).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        Self {
            stop,
            sent,
            received,
            threads,
        }
    }

    /// Ends it; gives how many datagrams were sent and how many came through.
    fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a thread of the flood");
        }
        (
            self.sent.load(Ordering::Relaxed),
            self.received.load(Ordering::Relaxed),
        )
    }
}

/// Lets a process run for a third of the time only, as a limit of its CPU time does.
struct Throttle {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a process id");
        let thread = thread::spawn(move || {
            setpriority_process(None, -20).expect("root may");
            while !stopped.load(Ordering::Relaxed) {
                for (signal, ms) in [(Signal::STOP, 4), (Signal::CONT, 2)] {
                    kill_process(pid, signal).expect("the process is there");
                    thread::sleep(Duration::from_millis(ms));
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Packets that the device dropped because the gateway did not read them in time.
fn unread(site: &Site) -> u64 {
    let link = &site.host.ip_json("-s link show subsea0")[0];
    link["stats64"]["tx"]["dropped"]
        .as_u64()
        .expect("a counter")
}

/// Datagrams that the gateway did not take from its socket in time.
fn untaken(site: &Site) -> u64 {
    let text = site.host.run("nstat -asz UdpRcvbufErrors").ok();
    let mut words = text
        .split_whitespace()
        .skip_while(|w| *w != "UdpRcvbufErrors");
    let count = words.nth(1).expect("a counter");
    count.parse().expect("a number")
}

/// How everybody fared in one run.
struct Outcome {
    sent: u64,
    received: u64,
    by_choice: u64,
    light: Tally,
    tcp: u64,
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand datagrams")]
    fn lost(&self) -> f64 {
        (self.light.sent - self.light.received) as f64 / self.light.sent as f64 * 100.0
    }
}

fn run(world: &World, shape: Shape) -> Outcome {
    let (east, west) = (world.site("east"), world.site("west"));
    let before = (unread(east), untaken(west), east.drops(None, "queue"));
    let to = (&west.pod, west.pod4());
    let throttle = Throttle::start(east.gateway.as_ref().expect("it runs").pid());
    let pump = Pump::start(&east.pod, to);
    let light = Datagrams::start(&east.pod, to, LIGHT, INTERVAL);
    let flood = Flood::start(&east.pod, to, shape);
    thread::sleep(Duration::from_millis(500));
    let start = pump.received();
    thread::sleep(TIME);
    let tcp = (pump.received() - start) / TIME.as_secs();
    let light = light.stop();
    let (sent, received) = flood.stop();
    drop(throttle);
    let (_, stall) = pump.stop();
    let outcome = Outcome {
        sent,
        received,
        by_choice: east.drops(None, "queue") - before.2,
        light,
        tcp,
    };
    eprintln!(
        "overload by {}: of {sent} datagrams {received} came through; packets dropped by choice {}, unread on the \
         device {}, untaken by the other gateway {}; the light flow lost {:.2} % of {} (longest gap {} ms), TCP had {} \
         KiB/s (longest stall {} ms)",
        shape.what,
        outcome.by_choice,
        unread(east) - before.0,
        untaken(west) - before.1,
        outcome.lost(),
        light.sent,
        light.longest_gap.as_millis(),
        tcp >> 10,
        stall.as_millis(),
    );
    outcome
}

fn the_heaviest_flows_lose(shape: Shape) {
    let world = World::fleet(&["east", "west"]);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let outcome = run(&world, shape);
        assert!(outcome.by_choice > 0, "nothing was dropped by choice");
        assert!(outcome.received < outcome.sent, "no overload");
        if outcome.tcp > 1 << 20 {
            best = best.min(outcome.lost());
        }
        if best < PERCENT {
            return;
        }
    }
    panic!("{}: the light flow lost {best:.2} % at best", shape.what);
}

#[test]
fn a_flood_of_small_datagrams_loses_before_others_do() {
    the_heaviest_flows_lose(Shape {
        what: "50,000 datagrams of 64 bytes a second",
        bytes: 64,
        datagram: 64,
        rate: Some(50_000),
    });
}

#[test]
fn a_flood_of_large_datagrams_loses_before_others_do() {
    the_heaviest_flows_lose(Shape {
        what: "40,000 datagrams of 1,300 bytes a second",
        bytes: 1_300,
        datagram: 1_300,
        rate: Some(40_000),
    });
}

#[test]
fn a_flood_of_trains_loses_before_others_do() {
    the_heaviest_flows_lose(Shape {
        what: "200,000 datagrams of 1,300 bytes a second in trains of 30",
        bytes: 39_000,
        datagram: 1_300,
        rate: Some(200_000),
    });
}
