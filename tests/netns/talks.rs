//! TCP connections on which little is said, and for which every silence is noted.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::wait::{LONG, until};

/// Between an answer and the next question.
const EVERY: Duration = Duration::from_millis(50);

/// Connections that go on until they are stopped.
pub(crate) struct Talks {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<io::Result<Duration>>>,
    ports: Vec<u16>,
    /// Until when each was answered last.
    answered: Arc<Mutex<Vec<Option<Instant>>>>,
}

impl Talks {
    /// Connects so many times, and waits until each was answered.
    pub(crate) fn start(from: &Namespace, to: (&Namespace, IpAddr), count: usize) -> Self {
        let listener =
            to.0.inside(|| TcpListener::bind((to.1, 0)))
                .expect("a free port");
        let address = listener.local_addr().expect("its address");
        let server = std::thread::spawn(move || -> io::Result<()> {
            for _ in 0..count {
                let (stream, _) = listener.accept()?;
                std::thread::spawn(move || echo(stream));
            }
            Ok(())
        });
        Self::with(from, address, count, server)
    }

    fn with(
        from: &Namespace,
        address: SocketAddr,
        count: usize,
        server: JoinHandle<io::Result<()>>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(Mutex::new(vec![None; count]));
        let mut ports = Vec::new();
        let clients = (0..count).map(|number| {
            let stream = from
                .inside(|| TcpStream::connect_timeout(&address, LONG))
                .unwrap_or_else(|e| panic!("{address}: {e}"));
            ports.push(stream.local_addr().expect("bound").port());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || talk(stream, number, &stop, &answered))
        });
        let clients = clients.collect();
        let accepted = server.join().expect("the listener");
        accepted.expect("accepted");
        let talks = Self {
            stop,
            clients,
            ports,
            answered,
        };
        until("every connection was answered", LONG, || {
            let answered = talks.answered.lock().expect("no panic");
            answered.iter().all(Option::is_some)
        });
        talks
    }

    /// The port that each comes from.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Waits until each has been answered once more.
    pub(crate) fn go_on(&self) {
        let now = Instant::now();
        until("every connection goes on", LONG, || {
            let answered = self.answered.lock().expect("no panic");
            answered.iter().all(|at| at.is_some_and(|at| at > now))
        });
    }

    /// Ends them; none may have broken. Gives the longest time that one waited for an answer.
    pub(crate) fn stop(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut self.clients).into_iter();
        let longest = clients.map(|client| {
            let waited = client.join().expect("no panic");
            waited.unwrap_or_else(|e| panic!("a connection broke: {e}"))
        });
        longest.max().unwrap_or_default()
    }
}

impl Drop for Talks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; 8];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
}

fn talk(
    mut stream: TcpStream,
    number: usize,
    stop: &AtomicBool,
    answered: &Mutex<Vec<Option<Instant>>>,
) -> io::Result<Duration> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut longest = Duration::ZERO;
    for word in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        stream.write_all(&word.to_be_bytes())?;
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes)?;
        if bytes != word.to_be_bytes() {
            return Err(io::Error::other("another answer"));
        }
        longest = longest.max(start.elapsed());
        answered.lock().expect("no panic")[number] = Some(Instant::now());
        std::thread::sleep(EVERY);
    }
    Ok(longest)
}
