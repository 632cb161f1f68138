//! Gateways without some or all offloads: whether told to, or because the kernel refuses one at run time.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::process::Command;

use serde_json::Value;
use subsea::net::sys::option;

use crate::daemon::Daemon;
use crate::flows::{pair, transfer};
use crate::namespace::run;
use crate::site::{Family, Site};
use crate::wait::{LONG, until};
use crate::world::World;

const BULK: usize = 20 << 20;
const NAMES: [&str; 4] = ["tun-tso", "tun-uso", "udp-gso", "udp-gro"];
const NOT_ALLOWED: &str = "not allowed by --offloads";

fn dual(east: &str) -> World {
    let mut world = World::new();
    world.broker.start();
    for name in ["east", "west"] {
        world.add(name, Family::Dual).join();
    }
    world.site_mut("east").start_gateway(east);
    world
}

/// The features of a gateway that are not in use, and why.
fn off(site: &Site) -> Vec<(String, String)> {
    let status = site.status().expect("a status");
    let features = status["features"].as_array().expect("features").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    features
        .filter(|f| f["active"] == false)
        .map(|f| (text(&f["name"]), text(&f["reason"])))
        .collect()
}

/// Sends datagrams of many sizes, each several times in a row, so that they can go as trains; all arrive as they were.
fn datagrams(from: &Site, to: &Site, address: IpAddr) {
    let (sender, receiver) = pair(&from.pod, (&to.pod, address));
    let header = if address.is_ipv4() { 28 } else { 48 };
    let tight = 1_420 - header;
    let mut sizes: Vec<usize> = (0..tight).step_by(61).collect();
    // About the largest that goes whole, and those that the pod's own kernel cuts.
    sizes.extend([1, 2, tight - 1, tight, tight + 1, 1_473, 4_000, 16_000]);
    let mut room = vec![0; 65_536];
    // The pod's kernel cuts what is too big for the tunnel once it was told so.
    until(
        "a datagram of 1,400 bytes arrives in fragments",
        LONG,
        || {
            drop(sender.send(&[9; 1_400]));
            drop(sender.take_error());
            receiver.recv(&mut room).is_ok()
        },
    );
    while receiver.recv(&mut room).is_ok() {}
    drop(sender.take_error());
    receiver.set_read_timeout(Some(LONG)).expect("a timeout");
    let mut arrives = |want: &[u8], what: &str| {
        let len = loop {
            let len = receiver
                .recv(&mut room)
                .unwrap_or_else(|e| panic!("{what} to {address}: {e}"));
            // One of the above may be late; what follows has other sizes.
            if len != 1_400 {
                break len;
            }
        };
        assert!(room[..len] == *want, "{what} to {address}: other content");
    };
    for size in sizes {
        let bytes = |n: u8| vec![n.wrapping_add(size.to_le_bytes()[0]); size];
        // So many fit into the receiver's buffer.
        let row = if size > 2_000 { 3 } else { 10 };
        for n in 0..row {
            sender
                .send(&bytes(n))
                .unwrap_or_else(|e| panic!("{size} to {address}: {e}"));
        }
        for n in 0..row {
            arrives(&bytes(n), &format!("datagram {n} of {size} bytes"));
        }
    }
    // And a train that the pod makes itself.
    option::set(sender.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1_000).expect("UDP_SEGMENT");
    let train: Vec<u8> = (0..20_500_u32).map(|n| n.to_le_bytes()[1]).collect();
    sender.send(&train).expect("it is sent");
    for (n, want) in train.chunks(1_000).enumerate() {
        arrives(want, &format!("segment {n}"));
    }
}

/// Everything passes between the two, both ways and in both families, and nothing is dropped.
fn all_passes(world: &World) {
    let (east, west) = (world.site("east"), world.site("west"));
    for (from, to) in [(east, west), (west, east)] {
        for address in [to.pod4(), to.pod6()] {
            transfer(&from.pod, (&to.pod, address), BULK, LONG);
            datagrams(from, to, address);
        }
    }
    for (site, other) in [(east, "west"), (west, "east")] {
        let path = site.path_to(other).expect("a path");
        for reason in ["kernel", "malformed", "replay", "unknown", "unauthentic"] {
            let of_path = path["drops"].get(reason);
            assert_eq!(of_path, None, "{}: {path}", site.name);
        }
    }
}

#[test]
fn a_gateway_without_some_or_all_offloads_works_with_one_that_has_all() {
    let mut world = dual("--offloads auto");
    let minus_one = NAMES.map(|name| {
        let rest: Vec<&str> = NAMES.into_iter().filter(|n| *n != name).collect();
        (rest.join(","), vec![name])
    });
    let all_off = vec!["tun-tso", "tun-uso", "tun-gro", "udp-gso", "udp-gro"];
    let choices = [("off".to_owned(), all_off)].into_iter().chain(minus_one);
    for (choice, without) in choices {
        let flags = format!("--offloads {choice}");
        world.site_mut("west").start_gateway(&flags);
        world.wait_connected();
        all_passes(&world);
        assert_eq!(off(world.site("east")), []);
        let why: Vec<_> = without
            .iter()
            .map(|n| ((*n).to_owned(), NOT_ALLOWED.to_owned()))
            .collect();
        assert_eq!(off(world.site("west")), why, "{flags}");
        let text = world.site("west").subsea("status").ok();
        let named = without.iter().map(|name| format!("{name} ({NOT_ALLOWED})"));
        let named = format!("off: {}", named.collect::<Vec<_>>().join(", "));
        assert!(text.contains(&named), "{flags}: {text}");
        world.site_mut("west").stop_gateway();
    }
}

/// Compiles what stands between the gateway and its kernel.
fn preload(world: &World) -> String {
    let library = world.path("sendmmsg_eio.so").display().to_string();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/sendmmsg_eio.c");
    run(Command::new("cc").args([
        "-shared", "-fPIC", "-Wall", "-Werror", "-o", &library, source,
    ]))
    .ok();
    library
}

#[test]
fn eio_for_a_train_switches_trains_off_and_loses_nothing() {
    let mut world = dual("");
    let library = preload(&world);
    let log = world.path("gateway-west-preload.log");
    let west = world.site_mut("west");
    let mut command = west.host.command(env!("CARGO_BIN_EXE_subsea"));
    command.arg("gateway").arg("--state-dir").arg(&west.state);
    command.env("LD_PRELOAD", library);
    west.gateway = Some(Daemon::start(command, &log));
    world.wait_connected();
    all_passes(&world);
    let west = world.site("west");
    let reason = "the kernel refused a train with EIO: a device without checksum offload";
    assert_eq!(off(west), [("udp-gso".to_owned(), reason.to_owned())]);
    let text = west.subsea("status").ok();
    assert!(text.contains(&format!("off: udp-gso ({reason})")), "{text}");
    assert_eq!(off(world.site("east")), []);
    let said = std::fs::read_to_string(&log).expect("the log");
    assert_eq!(
        said.matches("UDP segmentation offload is switched off")
            .count(),
        1
    );
}

#[test]
fn an_underlay_device_without_checksum_offload_loses_nothing() {
    let mut world = dual("");
    let west = world.site_mut("west");
    west.host.run("ethtool -K u0 tx off").ok();
    west.start_gateway("");
    world.wait_connected();
    all_passes(&world);
    // Since Linux 6.11 the kernel computes the checksums itself; before, it says EIO.
    let off = off(world.site("west"));
    eprintln!("without checksum offload: {off:?}");
    assert!(
        off.iter()
            .all(|(name, reason)| name == "udp-gso" && reason.contains("EIO")),
        "{off:?}"
    );
    // The pods' devices, too: what they send then comes with whole checksums.
    for name in ["east", "west"] {
        world.site(name).pod.run("ethtool -K eth0 tx off").ok();
        world.site(name).host.run("ethtool -K cni0 tx off").ok();
    }
    until("they are connected", LONG, || {
        world.site("east").path_state("west").as_deref() == Some("connected")
    });
    all_passes(&world);
}
