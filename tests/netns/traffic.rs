//! Pings, web servers and captures.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::namespace::{Namespace, enter, run};
use crate::wait::{LONG, until};

/// Whether one ping is answered within half a second.
pub(crate) fn ping(from: &Namespace, to: IpAddr) -> bool {
    let mut command = from.command("ping");
    run(command.args(["-n", "-q", "-c", "1", "-W", "0.5", &to.to_string()])).code == Some(0)
}

/// Numbered pings that go on until they are stopped.
pub(crate) struct Pings {
    process: Daemon,
    log: PathBuf,
    interval: Duration,
}

impl Pings {
    /// Starts them and waits for the first answer.
    pub(crate) fn start(from: &Namespace, to: IpAddr, interval: Duration, log: PathBuf) -> Self {
        let mut command = from.command("ping");
        command.args([
            "-n",
            "-W",
            "5",
            "-i",
            &interval.as_secs_f64().to_string(),
            &to.to_string(),
        ]);
        let process = Daemon::start(command, &log);
        let pings = Self {
            process,
            log,
            interval,
        };
        until("the first answer", LONG, || !pings.answered().is_empty());
        pings
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The numbers that were answered so far.
    pub(crate) fn answered(&self) -> Vec<u64> {
        let text = self.text();
        let numbers = text
            .lines()
            .filter(|l| l.contains("bytes from"))
            .filter_map(|l| l.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok());
        numbers.collect()
    }

    /// Stops them; every one must have been answered, but for those of the last second, still on their way.
    pub(crate) fn stop_without_loss(self) -> usize {
        self.stop_losing(0)
    }

    /// The same with at most so many that were not.
    pub(crate) fn stop_losing(mut self, most: usize) -> usize {
        // Where all stands still for a moment, it goes on before the end.
        let before = self.answered().len();
        until("a further answer", LONG, || self.answered().len() > before);
        self.process.signal(Signal::INT);
        self.process.wait(Duration::from_secs(10));
        let text = self.text();
        let answered = self.answered();
        let sent: u64 = text
            .lines()
            .find_map(|l| l.split_once(" packets transmitted")?.0.parse().ok())
            .unwrap_or_else(|| panic!("no summary in {text}"));
        let last = answered.iter().copied().max().unwrap_or(0);
        let lost: Vec<u64> = (answered[0]..=last)
            .filter(|n| !answered.contains(n))
            .collect();
        assert!(lost.len() <= most, "lost of {sent}: {lost:?}");
        let in_flight = Duration::from_secs(1).as_nanos() / self.interval.as_nanos();
        assert!(
            u128::from(sent - last) <= in_flight.max(1),
            "answers ended at {last} of {sent}"
        );
        answered.len()
    }
}

/// A web server in a namespace that tells its name and who asked.
pub(crate) struct HttpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves port 80, IPv4 and IPv6.
    pub(crate) fn start(space: &Namespace, name: &str) -> Self {
        let listener = space
            .inside(|| TcpListener::bind("[::]:80"))
            .expect("port 80 is free");
        listener
            .set_nonblocking(true)
            .expect("a non-blocking listener");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name, netns) = (Arc::clone(&stop), name.to_owned(), space.name().to_owned());
        let thread = std::thread::spawn(move || {
            enter(&netns);
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that goes away is its own affair.
                    Ok((stream, from)) => drop(answer(&stream, &name, from)),
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut stream: &TcpStream, name: &str, from: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 1024];
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => request.extend(&piece[..length]),
        }
    }
    let body = format!("pod of {name} saw {}\n", from.ip().to_canonical());
    // `GET /N` adds a body of N bytes, to see that large answers pass.
    let more = String::from_utf8_lossy(&request)
        .split(' ')
        .nth(1)
        .and_then(|path| path.trim_start_matches('/').parse().ok())
        .unwrap_or(0);
    let length = body.len() + more;
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    stream.write_all(&vec![b'x'; more])
}

/// Fetches the page of a pod.
pub(crate) fn fetch(from: &Namespace, to: IpAddr, limit: Duration) -> io::Result<String> {
    fetch_more(from, to, 0, limit)
}

/// Fetches the page of a pod with `more` bytes after it.
pub(crate) fn fetch_more(
    from: &Namespace,
    to: IpAddr,
    more: usize,
    limit: Duration,
) -> io::Result<String> {
    from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 80), limit)?;
        stream.set_read_timeout(Some(limit))?;
        write!(stream, "GET /{more} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text
            .split_once("\r\n\r\n")
            .ok_or(io::ErrorKind::InvalidData)?
            .1;
        Ok(body.to_owned())
    })
}

/// tcpdump on a device.
pub(crate) struct Capture {
    process: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Starts it and waits until it sees packets.
    pub(crate) fn start(space: &Namespace, device: &str, file: PathBuf) -> Self {
        let mut command = space.command("tcpdump");
        command
            .args([
                "-n",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-i",
                device,
                "-w",
            ])
            .arg(&file);
        let process = Daemon::start(command, &file.with_extension("tcpdump"));
        until("tcpdump listens", LONG, || {
            process.output().contains("listening on")
        });
        Self { process, file }
    }

    /// Ends it.
    pub(crate) fn stop(self) -> Captured {
        // What is already in the kernel's buffer is written before it ends.
        std::thread::sleep(Duration::from_millis(200));
        // It waits for more only when it has read what there is.
        let stat = format!("/proc/{}/stat", self.process.pid());
        until("tcpdump has read it all", LONG, || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
        });
        self.process.signal(Signal::INT);
        let mut process = self.process;
        process.wait(Duration::from_secs(10));
        Captured { file: self.file }
    }
}

/// A finished capture.
pub(crate) struct Captured {
    file: PathBuf,
}

impl Captured {
    /// The packets that match a tcpdump expression, one line each.
    pub(crate) fn lines(&self, expression: &str) -> Vec<String> {
        let mut command = std::process::Command::new("tcpdump");
        command.args(["-n", "-r"]).arg(&self.file).arg(expression);
        run(&mut command).ok().lines().map(str::to_owned).collect()
    }

    /// The payloads of all UDP datagrams over IPv4, with who sent them.
    pub(crate) fn datagrams(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let bytes = std::fs::read(&self.file).expect("the capture");
        parse(&bytes)
    }
}

/// Reads Ethernet frames out of a pcap file of this machine's byte order.
fn parse(bytes: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut datagrams = Vec::new();
    let mut rest = &bytes[24..];
    while rest.len() >= 16 {
        let length = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
        let Some(frame) = rest.get(16..16 + length) else {
            break;
        };
        rest = &rest[16 + length..];
        if frame.len() < 42 || frame[12..14] != [8, 0] || frame[23] != 17 {
            continue;
        }
        let udp = 14 + usize::from(frame[14] & 15) * 4;
        let from = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
        let port = u16::from_be_bytes([frame[udp], frame[udp + 1]]);
        let end = udp + usize::from(u16::from_be_bytes([frame[udp + 4], frame[udp + 5]]));
        if let Some(payload) = frame.get(udp + 8..end) {
            datagrams.push((SocketAddr::from((from, port)), payload.to_vec()));
        }
    }
    datagrams
}

/// A tmpfs of a few pages, unmounted when dropped.
pub(crate) struct TinyDisk {
    path: PathBuf,
}

impl TinyDisk {
    /// Mounts it.
    pub(crate) fn mount(path: &Path, kib: u32) -> Self {
        std::fs::create_dir_all(path).expect("a mount point");
        let mut command = std::process::Command::new("mount");
        command
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={kib}k,mode=700"),
                "tmpfs",
            ])
            .arg(path);
        run(&mut command).ok();
        Self {
            path: path.to_owned(),
        }
    }

    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.path.join("ballast")).expect("a file");
        while file.write_all(&[0; 512]).is_ok() {}
        let left = file.write(&[0]);
        assert!(
            left.is_err() || matches!(left, Ok(0)),
            "the disk is not full"
        );
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path.join("ballast")).expect("the ballast");
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        run(std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.path));
    }
}
