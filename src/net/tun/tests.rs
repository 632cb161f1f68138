//! Real devices, each test in a network namespace of its own: it runs itself again under `unshare --net`.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::net::wake::wait_readable;

/// True inside the namespace; outside it runs the test `name` inside and gives false.
pub(crate) fn in_netns(name: &str) -> bool {
    if std::env::var_os("SUBSEA_IN_NETNS").is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SUBSEA_IN_NETNS", "1")
        .status()
        .expect("`unshare` (util-linux) runs");
    assert!(
        status.success(),
        "{name} failed inside its network namespace"
    );
    false
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("`ip` (iproute2) runs");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn names_that_the_kernel_would_read_otherwise_are_refused() {
    for bad in [
        "",
        "a/b",
        "tun%d",
        "white space",
        "sixteen-letters-",
        ".",
        "..",
    ] {
        assert!(matches!(Tun::open(bad), Err(TunError::Name(_))), "{bad}");
    }
    assert!(check_name("fifteen-letters").is_ok());
}

#[test]
fn a_device_outlives_its_process_and_is_adopted() {
    if !in_netns("net::tun::tests::a_device_outlives_its_process_and_is_adopted") {
        return;
    }
    drop(Tun::open("subsea0").unwrap());
    ip("addr add 10.9.0.1/24 dev subsea0");
    let tun = Tun::open("subsea0").unwrap();
    ip("link set subsea0 up");
    ip("addr show dev subsea0 to 10.9.0.1/24");
    let ping = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
    ping.send_to(b"hello", "10.9.0.2:9").unwrap();
    let mut batch = Batch::new();
    while !batch.iter().any(|((), p)| p.ends_with(b"hello")) {
        assert!(
            wait_readable([tun.as_fd()], Some(Duration::from_secs(5))).unwrap()[0],
            "nothing came"
        );
        batch.clear();
        tun.recv_batch(&mut batch).unwrap();
    }
    tun.set_persistent(false).unwrap();
    drop(tun);
    assert!(
        !Command::new("ip")
            .args(["link", "show", "subsea0"])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_busy_device_is_waited_for_and_then_named_with_its_holder() {
    if !in_netns("net::tun::tests::a_busy_device_is_waited_for_and_then_named_with_its_holder") {
        return;
    }
    let first = Tun::open("subsea0").unwrap();
    let start = Instant::now();
    let error = Tun::open("subsea0").unwrap_err().to_string();
    assert!(start.elapsed() >= BUSY_FOR);
    assert!(
        error.contains(&format!("in use by process {} (", std::process::id())),
        "{error}"
    );
    let waits = thread::spawn(|| Tun::open("subsea0"));
    thread::sleep(Duration::from_millis(300));
    drop(first);
    assert!(waits.join().unwrap().is_ok());
}

#[test]
fn another_kind_of_device_is_refused() {
    if !in_netns("net::tun::tests::another_kind_of_device_is_refused") {
        return;
    }
    ip("tuntap add dev subsea0 mode tap");
    assert!(matches!(Tun::open("subsea0"), Err(TunError::OtherKind(_))));
    assert!(matches!(Tun::open("lo"), Err(TunError::OtherKind(_))));
}

#[test]
fn a_deleted_device_wakes_its_reader_and_is_known_as_lost() {
    if !in_netns("net::tun::tests::a_deleted_device_wakes_its_reader_and_is_known_as_lost") {
        return;
    }
    let tun = Tun::open("subsea0").unwrap();
    let mut batch = Batch::new();
    assert_eq!(tun.recv_batch(&mut batch).unwrap(), 0);
    let mut packet = Batch::new();
    packet.push(&[0x45; 40], ());
    let down = tun.send_batch(&packet);
    assert_eq!(down.len(), 1);
    assert!(!is_lost(&down[0].error), "only down: {}", down[0].error);

    let deleter = thread::spawn(|| {
        thread::sleep(Duration::from_millis(200));
        ip("link del subsea0");
    });
    assert!(
        wait_readable([tun.as_fd()], Some(Duration::from_secs(5))).unwrap()[0],
        "poll did not wake"
    );
    deleter.join().unwrap();
    let error = tun.recv_batch(&mut batch).unwrap_err();
    assert!(is_lost(&error), "{error}");
    assert!(is_lost(&tun.send_batch(&packet)[0].error));
    assert!(Tun::open("subsea0").is_ok());
}
