use std::net::UdpSocket;

use super::*;

fn local(udp: &Udp, v6: bool) -> SocketAddr {
    format!("{}:{}", if v6 { "[::1]" } else { "127.0.0.1" }, udp.port())
        .parse()
        .unwrap()
}

fn receive(receiver: &mut UdpReceiver<'_>, want: usize) -> Batch<SocketAddr> {
    let mut batch = Batch::new();
    let start = Instant::now();
    while batch.len() < want && start.elapsed() < Duration::from_secs(5) {
        receiver.recv_batch(&mut batch).unwrap();
    }
    batch
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
fn both_families_share_a_port_and_a_batch() {
    let mark = Some(Mark {
        value: 0x40,
        mask: 0x40,
    });
    let a = Udp::bind(UdpSettings {
        listen_port: 0,
        mark,
    })
    .unwrap();
    let b = Udp::bind(UdpSettings {
        listen_port: 0,
        mark: None,
    })
    .unwrap();
    assert_eq!(a.v4.mark().unwrap(), 0x40);
    let mut batch = Batch::new();
    for n in 0..10_u8 {
        assert!(batch.push(&[n; 20], local(&b, n >= 5)));
    }
    assert!(a.sender().send_batch(&batch).is_empty());
    for (mut receiver, first, v6) in [
        (b.receiver_v4(), 0_u8, false),
        (b.receiver_v6().unwrap(), 5, true),
    ] {
        let got = receive(&mut receiver, 5);
        assert_eq!(got.len(), 5);
        for (n, (from, bytes)) in (first..).zip(got.iter()) {
            assert_eq!((*from, bytes), (local(&a, v6), &[n; 20][..]));
        }
        assert_eq!(receiver.recv_batch(&mut Batch::new()).unwrap(), 0);
    }
}

#[test]
fn a_refused_datagram_does_not_stop_the_others() {
    let a = Udp::bind(UdpSettings {
        listen_port: 0,
        mark: None,
    })
    .unwrap();
    let b = Udp::bind(UdpSettings {
        listen_port: 0,
        mark: None,
    })
    .unwrap();
    let mut batch = Batch::new();
    batch.push(b"one", local(&b, false));
    batch.push(b"two", "127.0.0.1:0".parse().unwrap());
    batch.push(&vec![0; 65_530], local(&b, false));
    batch.push(b"three", local(&b, false));
    let refused: Vec<usize> = a
        .sender()
        .send_batch(&batch)
        .iter()
        .map(|r| r.position)
        .collect();
    assert_eq!(refused, [1, 2]);
    let got = receive(&mut b.receiver_v4(), 2);
    let texts: Vec<&[u8]> = got.iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(texts, [b"one".as_slice(), b"three"]);
}

#[test]
fn a_busy_port_is_waited_for_and_then_named_with_its_holder() {
    let holder = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let start = Instant::now();
    let error = Udp::bind(UdpSettings {
        listen_port: port,
        mark: None,
    })
    .unwrap_err()
    .to_string();
    assert!(start.elapsed() >= BUSY_FOR);
    assert!(
        error.contains(&format!(
            "UDP port {port} is in use by process {} (",
            std::process::id()
        )),
        "{error}"
    );

    let waits = thread::spawn(move || {
        Udp::bind(UdpSettings {
            listen_port: port,
            mark: None,
        })
    });
    thread::sleep(Duration::from_millis(300));
    drop(holder);
    assert_eq!(waits.join().unwrap().unwrap().port(), port);
}
