//! A relay of TCP connections: it leads into network namespaces, and cuts what goes through it.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::ports::free_port;

/// How often it looks for new connections.
const LOOK: Duration = Duration::from_millis(20);

/// Listens, and passes every connection on. Dropping it cuts all of them.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    ended: AtomicBool,
    refusing: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// On a free port of this host's loopback.
    pub(crate) fn to(target: SocketAddr) -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, free_port()).into(), target, || {})
    }

    /// In a network namespace of `ip netns`, on the address of the target itself: for an API server on loopback, the
    /// same kubeconfig works there.
    pub(crate) fn inside(namespace: &str, target: SocketAddr) -> Self {
        let path = format!("/run/netns/{namespace}");
        Self::listen(target, target, move || {
            let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|e| panic!("cannot enter {path}: {e}"));
        })
    }

    fn listen(address: SocketAddr, target: SocketAddr, enter: impl FnOnce() + Send) -> Self {
        // A socket stays in the namespace of the thread that made it; the thread itself is not used further.
        let listener = std::thread::scope(|scope| {
            let made = scope.spawn(move || {
                enter();
                TcpListener::bind(address).unwrap_or_else(|e| panic!("relay on {address}: {e}"))
            });
            made.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        listener
            .set_nonblocking(true)
            .expect("a listener that does not block");
        let shared = Arc::new(Shared {
            target,
            ended: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let of_thread = shared.clone();
        std::thread::spawn(move || accept(&listener, &of_thread));
        Self { address, shared }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections at once. New ones are passed on.
    pub(crate) fn cut(&self) {
        self.shared.cut();
    }

    /// Ends all connections, and new ones as soon as they come, until this is called with `false`.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
        if refusing {
            self.shared.cut();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.cut();
    }
}

impl Shared {
    fn cut(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            // The other side may have ended it.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Passes a connection on, unless it is to be cut.
    fn pass(&self, client: TcpStream) -> std::io::Result<()> {
        // On Linux it does not take this over from the listener, elsewhere it may.
        client.set_nonblocking(false)?;
        let server = TcpStream::connect(self.target)?;
        let ends = [client.try_clone()?, server.try_clone()?];
        let copies = [client.try_clone()?, server.try_clone()?];
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.refusing.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Those that have ended meanwhile.
        open.retain(|stream| stream.peer_addr().is_ok());
        open.extend(ends);
        drop(open);
        let [client_too, server_too] = copies;
        std::thread::spawn(move || copy(client, server));
        std::thread::spawn(move || copy(server_too, client_too));
        Ok(())
    }
}

fn accept(listener: &TcpListener, shared: &Shared) {
    while !shared.ended.load(Ordering::SeqCst) {
        match listener.accept() {
            // A target that does not answer is seen by the client: its connection ends.
            Ok((client, _)) => drop(shared.pass(client)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(e) => panic!("relay: {e}"),
        }
    }
}

/// Until one side ends; then both do.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
