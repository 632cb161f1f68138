use std::net::UdpSocket;

use super::*;
use crate::net::tun::tests::{in_netns, ip};

fn local(udp: &Udp, v6: bool) -> SocketAddr {
    format!("{}:{}", if v6 { "[::1]" } else { "127.0.0.1" }, udp.port())
        .parse()
        .unwrap()
}

fn bind(listen_port: u16, mark: Option<Mark>, offloads: Offloads) -> Result<Udp, UdpError> {
    Udp::bind(UdpSettings {
        listen_port,
        mark,
        offloads,
    })
}

fn open_any() -> Udp {
    bind(0, None, Offloads::AUTO).unwrap()
}

/// Waits for so many datagrams.
fn receive(udp: &Udp, v6: bool, want: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let (v4_socket, v6_socket) = udp.sockets();
    let socket = if v6 { v6_socket.unwrap() } else { v4_socket };
    let (mut arrivals, mut got) = (Arrivals::default(), Vec::new());
    let start = Instant::now();
    while got.len() < want && start.elapsed() < Duration::from_secs(5) {
        arrivals.receive(socket).unwrap();
        got.extend(
            arrivals
                .datagrams()
                .map(|(from, bytes)| (from, bytes.to_vec())),
        );
    }
    got
}

fn alone(to: SocketAddr, bytes: &[u8]) -> Train<'_> {
    Train {
        to,
        bytes,
        segment: bytes.len(),
        whole: false,
    }
}

#[test]
fn only_the_masked_bits_of_a_mark_change() {
    let mark = Mark {
        value: 0xff40,
        mask: 0x40,
    };
    assert_eq!(mark.apply(0), 0x40);
    assert_eq!(mark.apply(0x8001), 0x8041);
    assert_eq!(
        Mark {
            value: 0,
            mask: 0x40
        }
        .apply(0x8041),
        0x8001
    );
}

#[test]
fn both_families_share_a_port_and_trains_arrive_whole_with_and_without_offloads() {
    let mark = Some(Mark {
        value: 0x40,
        mask: 0x40,
    });
    for (from, to) in [
        ("auto", "auto"),
        ("off", "auto"),
        ("auto", "off"),
        ("off", "off"),
    ] {
        let a = bind(0, mark, from.parse().unwrap()).unwrap();
        let b = bind(0, None, to.parse().unwrap()).unwrap();
        assert_eq!(a.v4.mark().unwrap(), 0x40);
        assert_eq!(
            (a.gso.is_on(), b.gro.is_on()),
            (from == "auto", to == "auto")
        );
        let bytes: Vec<u8> = (0..2_500_u32).map(|n| n.to_ne_bytes()[0]).collect();
        let trains = [false, true].map(|v6| Train {
            to: local(&b, v6),
            bytes: &bytes,
            segment: 1_000,
            whole: false,
        });
        let mut faults = Vec::new();
        a.send(&trains, &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        for v6 in [false, true] {
            let got = receive(&b, v6, 3);
            let want: Vec<_> = bytes
                .chunks(1_000)
                .map(|d| (local(&a, v6), d.to_vec()))
                .collect();
            assert_eq!(got, want, "{from} to {to}, IPv6 {v6}");
        }
    }
}

#[test]
fn a_refused_datagram_does_not_stop_the_others() {
    let (a, b) = (open_any(), open_any());
    let large = vec![0; 65_530];
    let trains = [
        alone(local(&b, false), b"one"),
        alone("127.0.0.1:0".parse().unwrap(), b"two"),
        alone(local(&b, false), &large),
        alone(local(&b, false), b"three"),
    ];
    let mut faults = Vec::new();
    a.send(&trains, &mut faults);
    let refused: Vec<_> = faults
        .iter()
        .filter_map(|fault| match fault {
            Fault::Refused {
                train, datagrams, ..
            } => Some((*train, *datagrams)),
            Fault::TooBig { .. } => None,
        })
        .collect();
    assert_eq!(refused, [(1, 1), (2, 1)]);
    let got = receive(&b, false, 2);
    let texts: Vec<&[u8]> = got.iter().map(|(_, bytes)| bytes.as_slice()).collect();
    assert_eq!(texts, [b"one".as_slice(), b"three"]);
}

#[test]
fn what_is_too_big_for_the_link_goes_in_fragments_and_is_told() {
    if !in_netns("net::udp::tests::what_is_too_big_for_the_link_goes_in_fragments_and_is_told") {
        return;
    }
    ip("link set lo mtu 1300 up");
    let (a, b) = (open_any(), open_any());
    for v6 in [false, true] {
        let bytes: Vec<u8> = (0..4_000_u32).map(|n| n.to_ne_bytes()[0]).collect();
        let train = Train {
            to: local(&b, v6),
            bytes: &bytes,
            segment: 1_400,
            whole: false,
        };
        let mut faults = Vec::new();
        a.send(&[train], &mut faults);
        assert!(
            matches!(faults[..], [Fault::TooBig { train: 0 }]),
            "{faults:?}"
        );
        let got: Vec<_> = receive(&b, v6, 3)
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(got.concat(), bytes);
        assert_eq!(a.path_mtu(local(&b, v6)).unwrap(), 1_300);
        let mut faults = Vec::new();
        a.send(
            &[Train {
                whole: true,
                ..train
            }],
            &mut faults,
        );
        assert!(
            matches!(faults[..], [Fault::TooBig { train: 0 }]),
            "{faults:?}"
        );
        assert_eq!(receive(&b, v6, 1)[0].1.len(), 1_200, "what fits");
        assert!(a.gso.is_on(), "that is no reason against trains");
    }
}

#[test]
fn a_busy_port_is_waited_for_and_then_named_with_its_holder() {
    let holder = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let start = Instant::now();
    let error = bind(port, None, Offloads::AUTO).unwrap_err().to_string();
    assert!(start.elapsed() >= BUSY_FOR);
    assert!(
        error.contains(&format!(
            "UDP port {port} is in use by process {} (",
            std::process::id()
        )),
        "{error}"
    );

    let waits = thread::spawn(move || bind(port, None, Offloads::AUTO));
    thread::sleep(Duration::from_millis(300));
    drop(holder);
    assert_eq!(waits.join().unwrap().unwrap().port(), port);
}
