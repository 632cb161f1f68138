//! Numbered UDP flows between two pods, both ways.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::cluster::Lab;
use crate::namespace::Namespace;
use crate::wait::{LONG, until};

const PORT: u16 = 9_000;
/// How often each flow sends.
const EVERY: Duration = Duration::from_millis(20);

/// What came of one direction of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) arrived: u64,
    /// The highest number.
    pub(crate) last: u64,
    /// Those that came after a later one.
    pub(crate) disordered: u64,
    /// The longest time without one.
    pub(crate) gap: Duration,
    at: Instant,
}

impl Seen {
    fn new() -> Self {
        Self {
            arrived: 0,
            last: 0,
            disordered: 0,
            gap: Duration::ZERO,
            at: Instant::now(),
        }
    }

    fn take(&mut self, number: u64) {
        let now = Instant::now();
        if self.arrived > 0 {
            self.gap = self.gap.max(now.saturating_duration_since(self.at));
        }
        self.at = now;
        self.disordered += u64::from(number < self.last);
        self.last = self.last.max(number);
        self.arrived += 1;
    }
}

/// Flows that go on until they are stopped. The other end answers each datagram with the same.
pub(crate) struct Flows {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    there: Arc<Mutex<Vec<Seen>>>,
    back: Arc<Mutex<Vec<Seen>>>,
    ports: Vec<u16>,
}

impl Flows {
    /// Starts so many.
    pub(crate) fn start(from: &Namespace, to: &Namespace, address: IpAddr, count: usize) -> Self {
        let fresh = || Arc::new(Mutex::new(vec![Seen::new(); count]));
        let (there, back, stop) = (fresh(), fresh(), Arc::new(AtomicBool::new(false)));
        let server = to
            .inside(|| UdpSocket::bind((address, PORT)))
            .expect("the port is free");
        server
            .set_read_timeout(Some(EVERY))
            .expect("a limit of time");
        patient(&server);
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&there));
        let answers = std::thread::spawn(move || serve(&server, &stopped, &seen));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&back));
        let sockets: Vec<UdpSocket> = from.inside(|| (0..count).map(|_| socket()).collect());
        let port = |socket: &UdpSocket| socket.local_addr().expect("bound").port();
        let ports = sockets.iter().map(port).collect();
        let to = SocketAddr::new(address, PORT);
        let asks = std::thread::spawn(move || ask(to, &sockets, &stopped, &seen));
        Self {
            stop,
            threads: vec![answers, asks],
            there,
            back,
            ports,
        }
    }

    /// The port that each comes from.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// How many datagrams did not arrive, either way. Waits for later ones in every flow, which tell.
    pub(crate) fn lost(&self) -> u64 {
        self.go_on();
        let (there, back) = self.seen();
        let lost = |flow: &Seen| {
            assert!(flow.arrived <= flow.last, "some came twice: {flow:?}");
            flow.last - flow.arrived
        };
        there.iter().chain(&back).map(lost).sum()
    }

    /// How long until every flow gets datagrams again.
    pub(crate) fn go_on(&self) -> Duration {
        let before = self.seen();
        until("all flows go on", LONG, || {
            let now = self.seen();
            let more = |now: &[Seen], before: &[Seen]| {
                let mut pairs = now.iter().zip(before);
                pairs.all(|(now, before)| now.last > before.last)
            };
            more(&now.0, &before.0) && more(&now.1, &before.1)
        })
    }

    /// Starts some between each of these pairs of nodes, and gives them a second.
    pub(crate) fn between<const N: usize>(lab: &Lab, pairs: [(&str, &str, usize); N]) -> Vec<Self> {
        let start = |(from, to, count)| {
            let (from, to) = (lab.node(from), lab.node(to));
            Self::start(&from.pod, &to.pod, to.pod4(), count)
        };
        let flows = pairs.map(start).into();
        std::thread::sleep(Duration::from_secs(1));
        flows
    }

    /// The longest time without a datagram in each flow, the time since the last one included.
    pub(crate) fn gaps(&self) -> Vec<Duration> {
        let (there, back) = self.seen();
        let gap = |flow: &Seen| flow.gap.max(flow.at.elapsed());
        let flows = there.iter().zip(&back);
        flows
            .map(|(there, back)| gap(there).max(gap(back)))
            .collect()
    }

    /// What came of each, there and back.
    pub(crate) fn seen(&self) -> (Vec<Seen>, Vec<Seen>) {
        let copy = |seen: &Mutex<Vec<Seen>>| seen.lock().expect("no panic").clone();
        (copy(&self.there), copy(&self.back))
    }

    /// Forgets how long nothing came.
    pub(crate) fn forget_gaps(&self) {
        for seen in [&self.there, &self.back] {
            for flow in seen.lock().expect("no panic").iter_mut() {
                flow.gap = Duration::ZERO;
            }
        }
    }

    /// The longest time without a datagram in any flow, either way, the time since the last one included.
    pub(crate) fn longest_gap(&self) -> Duration {
        self.gaps().into_iter().max().unwrap_or_default()
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn serve(server: &UdpSocket, stop: &AtomicBool, seen: &Mutex<Vec<Seen>>) {
    let mut bytes = [0; 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((16, from)) = server.recv_from(&mut bytes) {
            note(&bytes, seen);
            // A route that is away for a moment is the test's affair, not ours.
            drop(server.send_to(&bytes, from));
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.set_nonblocking(true).expect("a socket");
    patient(&socket);
    socket
}

/// What a test's own thread is too late to take is not lost on the way.
pub(crate) fn patient(socket: &UdpSocket) {
    set_socket_recv_buffer_size_force(socket, 8 << 20).expect("a large buffer");
}

fn ask(to: SocketAddr, sockets: &[UdpSocket], stop: &AtomicBool, seen: &Mutex<Vec<Seen>>) {
    let mut bytes = [0; 16];
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        for (flow, socket) in (0_u64..).zip(sockets) {
            let datagram = [flow.to_be_bytes(), number.to_be_bytes()].concat();
            drop(socket.send_to(&datagram, to));
            while let Ok(16) = socket.recv(&mut bytes) {
                note(&bytes, seen);
            }
        }
        std::thread::sleep(EVERY);
    }
}

fn note(bytes: &[u8; 16], seen: &Mutex<Vec<Seen>>) {
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let flow = usize::try_from(word(0)).expect("a small number");
    seen.lock().expect("no panic")[flow].take(word(8));
}
