//! Ports for servers that a test starts, and starts again.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to clients: while a server restarts, nobody takes its port by chance.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// One that is free at this moment.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run at once begin at different ports, and within one none comes twice.
    let begin = std::process::id().wrapping_mul(257) % u32::from(PORTS);
    for _ in 0..PORTS {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = u16::try_from((begin + step) % u32::from(PORTS)).expect("fewer than 2^16");
        let port = FIRST_PORT + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST_PORT} on");
}
