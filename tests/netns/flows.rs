//! Bulk transfers whose content is checked, and numbered datagrams.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::numbered::patient;
use crate::wait::LONG;

/// A prime, so that no piece that is lost, doubled or out of order goes unseen.
const PERIOD: usize = 65_521;

/// What every transfer carries, over and over.
fn pattern() -> Vec<u8> {
    let mut state = 1_u64;
    let number = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56).to_le_bytes()[0]
    });
    number.take(PERIOD).collect()
}

/// Checks a piece of the pattern that begins at `at`.
fn check(pattern: &[u8], mut piece: &[u8], mut at: u64) -> io::Result<()> {
    while !piece.is_empty() {
        let from = usize::try_from(at % PERIOD as u64).expect("less than the period");
        let len = piece.len().min(PERIOD - from);
        if piece[..len] != pattern[from..from + len] {
            return Err(io::Error::other(format!("other content from byte {at} on")));
        }
        piece = &piece[len..];
        at += len as u64;
    }
    Ok(())
}

fn listen(space: &Namespace, address: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = space
        .inside(|| TcpListener::bind((address, 0)))
        .expect("a free port");
    let bound = listener.local_addr().expect("its address");
    (listener, bound)
}

fn accept(listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if start.elapsed() > limit => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Sends so many bytes over a new TCP connection, which must arrive as they were; says how long it took from the SYN
/// to the word of the other side that it has them all.
pub(crate) fn transfer(
    from: &Namespace,
    to: (&Namespace, IpAddr),
    bytes: usize,
    limit: Duration,
) -> Duration {
    let (listener, address) = listen(to.0, to.1);
    let pattern = pattern();
    let receive = || -> io::Result<()> {
        let mut stream = accept(&listener, limit)?;
        stream.set_read_timeout(Some(limit))?;
        let (mut room, mut got) = (vec![0; 1 << 18], 0);
        while got < bytes as u64 {
            let len = stream.read(&mut room)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            check(&pattern, &room[..len], got)?;
            got += len as u64;
        }
        stream.write_all(b"!")
    };
    let send = || -> io::Result<Duration> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_read_timeout(Some(limit))?;
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(PERIOD);
            stream.write_all(&pattern[..piece])?;
            left -= piece;
        }
        stream.read_exact(&mut [0])?;
        Ok(start.elapsed())
    };
    let (sent, received) = thread::scope(|scope| {
        let receiving = scope.spawn(receive);
        let sent = from.inside(send);
        (sent, receiving.join().expect("the receiver"))
    });
    let what = format!("{bytes} bytes to {address}");
    received.unwrap_or_else(|e| panic!("{what}: receiving: {e}; sending: {sent:?}"));
    sent.unwrap_or_else(|e| panic!("{what}: sending: {e}"))
}

/// A TCP connection that is kept full.
pub(crate) struct Pump {
    stop: Arc<AtomicBool>,
    got: Arc<AtomicU64>,
    sender: JoinHandle<io::Result<()>>,
    receiver: JoinHandle<io::Result<Duration>>,
}

impl Pump {
    /// Connects, and waits for the first bytes.
    pub(crate) fn start(from: &Namespace, to: (&Namespace, IpAddr)) -> Self {
        let (listener, address) = listen(to.0, to.1);
        let (stop, got) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let count = Arc::clone(&got);
        let receiver = thread::spawn(move || {
            let mut stream = accept(&listener, LONG)?;
            stream.set_read_timeout(Some(LONG))?;
            let pattern = pattern();
            let mut room = vec![0; 1 << 18];
            let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
            loop {
                let len = stream.read(&mut room)?;
                let now = Instant::now();
                if len == 0 {
                    return Ok(longest);
                }
                longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                last = Some(now);
                check(&pattern, &room[..len], count.load(Ordering::Relaxed))?;
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        let mut stream = from
            .inside(|| TcpStream::connect_timeout(&address, LONG))
            .unwrap_or_else(|e| panic!("{address}: {e}"));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            stream.set_write_timeout(Some(LONG))?;
            let pattern = pattern();
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(&pattern)?;
            }
            stream.shutdown(Shutdown::Write)
        });
        let pump = Self {
            stop,
            got,
            sender,
            receiver,
        };
        crate::wait::until("the first bytes", LONG, || pump.received() > 0);
        pump
    }

    /// How many bytes have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }

    /// Ends it. Everything must have arrived, in order. Gives the bytes and the longest time without any.
    pub(crate) fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let longest = self.receiver.join().expect("the receiver");
        let longest = longest.unwrap_or_else(|e| panic!("receiving: {e}; sending: {sent:?}"));
        sent.unwrap_or_else(|e| panic!("sending: {e}"));
        (self.got.load(Ordering::Relaxed), longest)
    }
}

/// How numbered datagrams fared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// The longest time between two that arrived.
    pub(crate) longest_gap: Duration,
}

/// How many silences in a row, each as long as a socket waits, tell that what has not come after the end was lost. A machine
/// under load can keep a gateway waiting for longer than one.
const SILENCES: u32 = 8;

/// Numbered datagrams at a steady pace.
pub(crate) struct Datagrams {
    stop: Arc<AtomicBool>,
    /// How many were sent, once the sender has ended.
    total: Arc<OnceLock<u64>>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(u64, Duration)>,
}

impl Datagrams {
    /// Sends one of `size` bytes at every interval.
    pub(crate) fn start(
        from: &Namespace,
        to: (&Namespace, IpAddr),
        size: usize,
        interval: Duration,
    ) -> Self {
        let (sending, receiving) = pair(from, to);
        let stop = Arc::new(AtomicBool::new(false));
        let total = Arc::new(OnceLock::new());
        let end = Arc::clone(&total);
        let receiver = thread::spawn(move || {
            let mut room = vec![0; 65_536];
            let (mut received, mut last, mut longest) = (0, None::<Instant>, Duration::ZERO);
            let (mut seen, mut silences) = (Vec::new(), 0);
            loop {
                // Asked for before the silence: the sender may stand still for longer, and then go on.
                let sent = end.get().copied();
                match receiving.recv(&mut room) {
                    Ok(len) => {
                        assert_eq!(len, size, "a datagram was cut");
                        let number = u64::from_le_bytes(room[..8].try_into().expect("8 bytes"));
                        let at = usize::try_from(number).expect("few datagrams");
                        seen.resize(seen.len().max(at + 1), false);
                        assert!(!seen[at], "datagram {number} came twice");
                        seen[at] = true;
                        received += 1;
                        silences = 0;
                        let now = Instant::now();
                        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                        last = Some(now);
                    }
                    Err(_) if sent.is_some() => {
                        silences += 1;
                        if sent == Some(received) || silences == SILENCES {
                            return (received, longest);
                        }
                    }
                    Err(_) => {}
                }
            }
        });
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let mut bytes = vec![7; size];
            let start = Instant::now();
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                if sending.send(&bytes).is_ok() {
                    number += 1;
                }
                let due = interval * u32::try_from(number).expect("few datagrams");
                thread::sleep(due.saturating_sub(start.elapsed()));
            }
            number
        });
        Self {
            stop,
            total,
            sender,
            receiver,
        }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        self.total.get_or_init(|| sent);
        let (received, longest_gap) = self.receiver.join().expect("the receiver");
        Tally {
            sent,
            received,
            longest_gap,
        }
    }
}

/// A sender that is connected to a receiver, which waits for half a second and has a large buffer.
pub(crate) fn pair(from: &Namespace, to: (&Namespace, IpAddr)) -> (UdpSocket, UdpSocket) {
    let receiving =
        to.0.inside(|| UdpSocket::bind((to.1, 0)))
            .expect("a free port");
    receiving
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    patient(&receiving);
    let address = receiving.local_addr().expect("its address");
    let any: SocketAddr = if address.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let sending = from
        .inside(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            Ok::<_, io::Error>(socket)
        })
        .expect("a socket");
    (sending, receiving)
}
