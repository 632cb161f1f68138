use std::process::Command;

use super::*;
use crate::net::tun::tests::{in_netns, ip};

/// Inside a namespace: the gateway of net 1 on a real device, with its address and route.
fn on_real_device(private: [u8; 32]) -> Gateway {
    ip("link set lo up");
    let (unused, inside) = UnixDatagram::pair().unwrap();
    drop(unused);
    let gateway = Gateway::with_device(
        private,
        1,
        0,
        Tun::open("subsea0", TunSettings::default()).unwrap(),
        inside,
    );
    set_up();
    gateway
}

fn set_up() {
    ip("addr add 10.1.0.1/32 dev subsea0");
    ip("link set subsea0 mtu 1420 up");
    ip("route add 10.2.0.0/16 dev subsea0");
}

/// A datagram through the kernel, the device and the tunnel to `b`.
fn through(b: &Gateway, text: &[u8]) {
    let socket = UdpSocket::bind("10.1.0.1:0").unwrap();
    socket.send_to(text, "10.2.0.1:9").unwrap();
    // The kernel also says hello to IPv6 routers, whose packets are not ours to send.
    assert!(b.receive().ends_with(text));
}

#[test]
fn a_deleted_device_is_replaced_without_losing_the_session() {
    if !in_netns(
        "tunnel::userspace::tests::device::a_deleted_device_is_replaced_without_losing_the_session",
    ) {
        return;
    }
    let (low, high) = keys();
    let a = on_real_device(low);
    let b = Gateway::start(high, 2, 0);
    let relay = Relay::new(a.addr(), b.addr());
    b.peer(a.key, 1, Some(relay.right));
    a.peer(b.key, 2, Some(relay.left));
    through(&b, b"before");

    assert!(!a.tunnel.device_lost());
    ip("link del subsea0");
    eventually("the loss", || a.tunnel.device_lost());
    b.send("10.2.0.1", "10.1.0.1", b"while it is gone");
    eventually("a refused packet", || a.drops_of(&b, Reason::Kernel) == 1);

    a.tunnel
        .replace_device(Tun::open("subsea0", TunSettings::default()).unwrap());
    set_up();
    assert!(!a.tunnel.device_lost());
    through(&b, b"after");
    let socket = UdpSocket::bind("10.1.0.1:7000").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    b.send("10.2.0.1", "10.1.0.1", &udp(9, 7000, b"and back"));
    let mut bytes = [0; 100];
    let len = socket.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"and back");
    assert_eq!(relay.count(1), 1, "one handshake in all");
}

/// UDP over IPv4, which may leave its checksum out.
fn udp(from: u16, to: u16, text: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + text.len()).unwrap();
    [
        &from.to_be_bytes()[..],
        &to.to_be_bytes(),
        &len.to_be_bytes(),
        &[0, 0],
        text,
    ]
    .concat()
}

#[test]
fn the_device_stays_when_the_driver_goes() {
    if !in_netns("tunnel::userspace::tests::device::the_device_stays_when_the_driver_goes") {
        return;
    }
    let (low, _) = keys();
    drop(on_real_device(low));
    let routes = Command::new("ip")
        .args(["route", "get", "10.2.0.1"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&routes.stdout).contains("dev subsea0"));
}
