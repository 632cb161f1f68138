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

/// A "device" that takes packets behind their header, on any descriptor.
pub(crate) fn with_headers(fd: OwnedFd) -> Tun {
    let framing = Framing {
        vnet: true,
        multi_queue: false,
    };
    let settings = TunSettings {
        offloads: Offloads::AUTO,
        multi_queue: false,
    };
    Tun::with("test", fd, framing, settings)
}

fn open(name: &str) -> Result<Tun, TunError> {
    Tun::open(name, TunSettings::default())
}

/// Reads one packet, without its header; `None` when none waits.
fn read(tun: &Tun) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; 70_000];
    let (first, second) = bytes.split_at_mut(2_000);
    let len = tun.read(0, [first, second])?;
    Ok(len.map(|len| bytes[VNET..len].to_vec()))
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
        assert!(matches!(open(bad), Err(TunError::Name(_))), "{bad}");
    }
    assert!(check_name("fifteen-letters").is_ok());
}

#[test]
fn a_device_outlives_its_process_and_is_adopted() {
    if !in_netns("net::tun::tests::a_device_outlives_its_process_and_is_adopted") {
        return;
    }
    drop(open("subsea0").unwrap());
    ip("addr add 10.9.0.1/24 dev subsea0");
    let tun = open("subsea0").unwrap();
    let shown = Command::new("ip")
        .args(["link", "show", "subsea0"])
        .output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    assert!(shown.contains(&format!("qlen {QUEUE_LEN}\n")), "{shown}");
    ip("link set subsea0 up");
    ip("addr show dev subsea0 to 10.9.0.1/24");
    let ping = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
    ping.send_to(b"hello", "10.9.0.2:9").unwrap();
    while !read(&tun)
        .unwrap()
        .is_some_and(|packet| packet.ends_with(b"hello"))
    {
        assert!(
            wait_readable([tun.queue(0)], Some(Duration::from_secs(5))).unwrap()[0],
            "nothing came"
        );
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
    let first = open("subsea0").unwrap();
    let start = Instant::now();
    let error = open("subsea0").unwrap_err().to_string();
    assert!(start.elapsed() >= BUSY_FOR);
    assert!(
        error.contains(&format!("in use by process {} (", std::process::id())),
        "{error}"
    );
    let waits = thread::spawn(|| open("subsea0"));
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
    assert!(matches!(open("subsea0"), Err(TunError::OtherKind(_))));
    assert!(matches!(open("lo"), Err(TunError::OtherKind(_))));
}

#[test]
fn a_deleted_device_wakes_its_reader_and_is_known_as_lost() {
    if !in_netns("net::tun::tests::a_deleted_device_wakes_its_reader_and_is_known_as_lost") {
        return;
    }
    let tun = open("subsea0").unwrap();
    assert!(read(&tun).unwrap().is_none());
    let packet = [&[0; VNET][..], &[0x45; 40]].concat();
    let down = tun.write(0, &packet).unwrap_err();
    assert!(!is_lost(&down), "only down: {down}");

    let deleter = thread::spawn(|| {
        thread::sleep(Duration::from_millis(200));
        ip("link del subsea0");
    });
    assert!(
        wait_readable([tun.queue(0)], Some(Duration::from_secs(5))).unwrap()[0],
        "poll did not wake"
    );
    deleter.join().unwrap();
    let error = read(&tun).unwrap_err();
    assert!(is_lost(&error), "{error}");
    assert!(is_lost(&tun.write(0, &packet).unwrap_err()));
    assert!(open("subsea0").is_ok());
}

#[test]
fn offloads_are_used_where_allowed_and_named_where_not() {
    if !in_netns("net::tun::tests::offloads_are_used_where_allowed_and_named_where_not") {
        return;
    }
    let states = |offloads: &str| {
        let settings = TunSettings {
            offloads: offloads.parse().unwrap(),
            multi_queue: false,
        };
        // The device stays from one to the next, with whatever was asked for before.
        let tun = Tun::open("subsea0", settings).unwrap();
        [&tun.tso, &tun.uso, &tun.gro].map(Switch::is_on)
    };
    assert_eq!(states("auto"), [true, true, true]);
    assert_eq!(states("off"), [false, false, false]);
    assert_eq!(states("tun-tso,udp-gso"), [true, false, true]);
    assert_eq!(states("udp-gso,udp-gro"), [false, false, false]);
    assert_eq!(states("auto"), [true, true, true]);
}

#[test]
fn queues_are_added_to_a_device_that_was_made_for_them_and_it_stays_ours() {
    if !in_netns(
        "net::tun::tests::queues_are_added_to_a_device_that_was_made_for_them_and_it_stays_ours",
    ) {
        return;
    }
    let many = TunSettings {
        multi_queue: true,
        ..TunSettings::default()
    };
    let tun = Tun::open("subsea0", many).unwrap();
    tun.add_queue().unwrap();
    assert_eq!(tun.queues(), 2);
    assert!(matches!(
        Tun::open("subsea0", many),
        Err(TunError::Busy { .. })
    ));
    drop(tun);
    // A device of many queues is adopted by who wants one, and the other way round.
    let one = open("subsea0").unwrap();
    assert!(one.framing.multi_queue);
    drop(one);
    ip("link del subsea0");
    drop(open("subsea0").unwrap());
    let one = Tun::open("subsea0", many).unwrap();
    assert_eq!(
        one.add_queue().unwrap_err().kind(),
        io::ErrorKind::Unsupported
    );
}
