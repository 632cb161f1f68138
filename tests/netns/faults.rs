//! Crashes, full disks, busy ports, second daemons.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::kernel::without_turn;
use crate::site::Family;
use crate::traffic::{Pings, TinyDisk};
use crate::wait::{LONG, bounded, until};
use crate::world::{World, broker_program};

#[test]
fn a_gateway_killed_with_9_is_back_three_seconds_after_its_restart() {
    let mut world = World::fleet(&["east", "west", "north"]);
    let key = world.site("east").status().expect("a status")["public_key"].clone();
    let pings = Pings::start(
        &world.site("west").pod,
        world.site("north").pod4(),
        Duration::from_millis(20),
        world.path("pings.log"),
    );
    for round in 1..=3 {
        world.site_mut("east").kill_gateway();
        let restarted = Instant::now();
        world.site_mut("east").start_gateway("");
        let east = world.site("east");
        east.pings(world.site("west").pod4(), LONG);
        let what = format!("tunnels are back after kill -9 and restart, round {round}");
        bounded(&what, restarted.elapsed(), Duration::from_secs(3));
        assert_eq!(east.status().expect("a status")["public_key"], key);
    }
    world.wait_connected();
    pings.stop_without_loss();
}

#[test]
fn a_second_daemon_on_a_state_directory_is_refused() {
    let world = World::fleet(&["east"]);
    let east = world.site("east");
    let pid = east.gateway.as_ref().expect("it runs").pid().to_string();
    let text = east.subsea("gateway").fails_with(1);
    assert!(text.contains(&pid), "the holder {pid} is not named: {text}");
    assert!(east.status().is_some());
}

#[test]
fn a_busy_port_and_a_busy_device_are_named_with_their_holder() {
    let mut world = World::fleet(&["east"]);
    // A second member on the same host.
    let token = world.broker.token("west").display().to_string();
    let state = world.path("state-second").display().to_string();
    let program = env!("CARGO_BIN_EXE_subsea");
    let host = &world.site("east").host;
    host.run(&format!(
        "{program} join {token} --cluster west --pod-cidr 10.77.0.0/16 --service-cidr 10.78.0.0/20 --state-dir {state}"
    ))
    .ok();
    let pid = world
        .site("east")
        .gateway
        .as_ref()
        .expect("it runs")
        .pid()
        .to_string();
    let start = Instant::now();
    let line = format!(
        "{program} gateway --state-dir {state} --device subsea9 --table 584 --rule-pref 584"
    );
    let text = host.run(&line).fails_with(1);
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "it was not retried"
    );
    assert!(
        text.contains("51820") && text.contains(&pid),
        "no port or holder {pid}: {text}"
    );
    let line = format!("{program} gateway --state-dir {state} --listen-port 51821");
    let text = host.run(&line).fails_with(1);
    assert!(
        text.contains("subsea0") && text.contains(&pid),
        "no device or holder {pid}: {text}"
    );
    assert!(
        world
            .site_mut("east")
            .gateway
            .as_mut()
            .is_some_and(crate::daemon::Daemon::is_running)
    );
}

/// Starts a join in the broker's namespace.
fn join(world: &World, token: &Path, cluster: &str, state: &Path) -> Child {
    let mut command = world.broker.space.command(env!("CARGO_BIN_EXE_subsea"));
    command
        .arg("join")
        .arg(token)
        .args(["--cluster", cluster, "--pod-cidr", "auto/24"]);
    command
        .args(["--service-cidr", "auto/24", "--state-dir"])
        .arg(state);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("a join")
}

#[test]
fn a_broker_killed_in_the_middle_of_joins_has_whole_members_or_none() {
    let mut world = World::new();
    world.broker.start();
    let mut expected = Vec::new();
    for round in 0..5_u32 {
        let ids: Vec<String> = (0..6).map(|n| format!("c{round}-{n}")).collect();
        let tokens: Vec<_> = ids.iter().map(|id| world.broker.token(id)).collect();
        let states: Vec<_> = ids
            .iter()
            .map(|id| world.path(&format!("state-{id}")))
            .collect();
        let mut joins: Vec<Child> = (0..6)
            .map(|n| join(&world, &tokens[n], &ids[n], &states[n]))
            .collect();
        std::thread::sleep(Duration::from_millis(u64::from(20 + 60 * round)));
        world.broker.kill();
        let done: Vec<bool> = joins
            .iter_mut()
            .map(|j| j.wait().expect("its end").success())
            .collect();
        world.broker.start();
        let members = world.broker.members();
        for (id, done) in ids.iter().zip(&done) {
            assert!(
                !done || members.contains(id),
                "{id} was told that it joined, and is lost"
            );
        }
        for member in &members {
            let show = world.broker.admin_json(&format!("cluster show {member}"));
            let kinds: Vec<_> = show["allocations"]
                .as_array()
                .expect("blocks")
                .iter()
                .collect();
            assert_eq!(kinds.len(), 2, "half a registration: {show}");
        }
        // The same command again, whatever happened to the first.
        for n in 0..6 {
            let status = join(&world, &tokens[n], &ids[n], &states[n])
                .wait()
                .expect("its end");
            assert!(status.success(), "{} cannot repeat its join", ids[n]);
        }
        expected.extend(ids);
        assert_eq!(world.broker.members(), expected);
        let blocks = world.broker.admin_json("allocation list");
        let blocks = blocks.as_array().expect("a list").iter();
        let mut pods: Vec<_> = blocks
            .filter(|b| b["kind"] == "pod")
            .map(|b| b["cidr"].to_string())
            .collect();
        pods.sort();
        pods.dedup();
        assert_eq!(pods.len(), expected.len(), "a block is lost or given twice");
    }
}

#[test]
fn a_full_disk_under_the_broker_is_named_and_overwrites_nothing() {
    let mut world = World::new();
    let disk = TinyDisk::mount(&world.broker.dir, 4096);
    world.broker.start();
    world.add("east", Family::V4).enrol();
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    disk.fill();
    let mut refused = String::new();
    for n in 0..200 {
        // The store's own spare pages may take a few changes more.
        let ran = world.broker.admin(&format!(
            "token create --cluster full-{n} -o {}",
            world.path("t").display()
        ));
        if ran.code != Some(0) {
            refused = ran.fails_with(1);
            break;
        }
    }
    assert!(
        refused.contains("disk") || refused.contains("full"),
        "it does not say why: {refused}"
    );
    assert!(world.broker.is_running());
    world.site("east").reaches(world.site("west"));
    assert_eq!(world.broker.members(), ["east", "west"]);
    disk.free();
    until("it writes again", LONG, || {
        world
            .broker
            .admin(&format!(
                "token create --cluster again -o {}",
                world.path("t2").display()
            ))
            .code
            == Some(0)
    });
    world.broker.kill();
    world.broker.start();
    assert_eq!(world.broker.members(), ["east", "west"]);
    world.add("north", Family::V4).enrol();
    world.wait_connected();
    drop(world);
    drop(disk);
}

#[test]
fn a_full_disk_under_a_gateway_is_named_and_overwrites_nothing() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4);
    let disk = TinyDisk::mount(&world.site("east").state, 256);
    world.join("east").ok();
    world.site_mut("east").start_gateway("");
    world.add("west", Family::V4).enrol();
    world.wait_connected();
    let snapshot = world.site("east").state.join("snapshot.json");
    until("the snapshot is saved", LONG, || {
        std::fs::read_to_string(&snapshot).is_ok_and(|s| s.contains("192.0.2.102"))
    });
    disk.fill();
    world.add("north", Family::V4).enrol();
    world.wait_connected();
    world.site("east").reaches(world.site("north"));
    until("status names the full disk", LONG, || {
        let text = world.site("east").subsea("status").ok();
        text.contains("disk") || text.contains("space")
    });
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&snapshot).expect("the snapshot"))
            .expect("whole JSON");
    assert!(kept["clusters"]["west"].is_object(), "{kept}");
    // From there it starts again, with the disk still full.
    world.broker.kill();
    world.site_mut("east").kill_gateway();
    world.site_mut("east").start_gateway("");
    world.site("east").pings(world.site("west").pod4(), LONG);
    disk.free();
    world.broker.start();
    until("the snapshot is saved again", LONG, || {
        std::fs::read_to_string(&snapshot).is_ok_and(|s| s.contains("192.0.2.103"))
    });
    drop(world);
    drop(disk);
}

#[test]
fn a_join_onto_a_full_disk_fails_and_can_be_repeated() {
    let mut world = World::new();
    world.broker.start();
    world.add("east", Family::V4);
    let disk = TinyDisk::mount(&world.site("east").state, 64);
    disk.fill();
    let token = world.broker.token("east").display().to_string();
    let east = world.site("east");
    let line = format!("join {token} {}", east.join_flags());
    let text = east.subsea(&line).fails_with(1);
    assert!(text.contains("disk") || text.contains("space"), "{text}");
    disk.free();
    east.subsea(&line).ok();
    assert_eq!(world.broker.members(), ["east"]);
    drop(world);
    drop(disk);
}

#[test]
fn a_damaged_snapshot_is_no_obstacle_and_a_damaged_key_is_named() {
    let mut world = World::fleet(&["east", "west"]);
    world.site_mut("east").stop_gateway();
    let state = world.site("east").state.clone();
    std::fs::write(state.join("snapshot.json"), "{\"fleet\": \"har").expect("damage");
    // Left by a daemon that died: a lock and a socket.
    std::fs::write(state.join("lock"), "4194304\n").expect("a stale lock");
    world.site_mut("east").start_gateway("");
    world.site("east").subsea("status --wait 20s").ok();
    world.site_mut("east").stop_gateway();
    std::fs::write(state.join("wireguard.key"), "not a key").expect("damage");
    let text = world.site("east").subsea("gateway").fails_with(1);
    assert!(text.contains("wireguard.key"), "{text}");
    let kept = std::fs::read_to_string(state.join("wireguard.key")).expect("the file");
    assert_eq!(kept, "not a key", "it was overwritten");
}

#[test]
fn without_a_snapshot_and_a_broker_what_stands_stays_and_nothing_leaves_in_clear() {
    const HELD: &str = "ip route show table 583; ip -6 route show table 583; ip rule | grep 583; ip -6 rule | grep 583 || true;
        ip address show dev subsea0 scope global; nft list table inet subsea";
    for damage in ["{\"fleet\": \"har", ""] {
        let mut world = World::fleet(&["east", "west"]);
        let held = |world: &World| {
            let mut command = world.site("east").host.command("sh");
            crate::namespace::run(command.args(["-c", HELD])).ok()
        };
        world.site_mut("east").stop_gateway();
        let before = held(&world);
        assert!(before.contains("unreachable 10."), "{before}");
        world.broker.stop();
        let snapshot = world.site("east").state.join("snapshot.json");
        if damage.is_empty() {
            std::fs::remove_file(&snapshot).expect("the snapshot");
        } else {
            std::fs::write(&snapshot, damage).expect("damage");
        }
        let east = world.site("east");
        let capture = crate::traffic::Capture::start(&east.host, "u0", world.path("clear.pcap"));
        world.site_mut("east").start_gateway("");
        let east = world.site("east");
        until("a pass over the kernel", LONG, || {
            let status = east.status();
            status.is_some_and(|status| !status["kernel"]["last_reconcile"].is_null())
        });
        for _ in 0..3 {
            assert!(east.is_cut_from(world.site("west").pod4()));
        }
        let captured = capture.stop();
        assert_eq!(captured.lines("net 10.0.0.0/8"), Vec::<String>::new());
        let after = held(&world);
        // The device came up again, which the kernel shows in words of its own.
        let routes = |text: &str| -> Vec<String> {
            let shown = text.lines().map(|line| line.replace(" linkdown", ""));
            shown
                .filter(|line| !line.contains('<'))
                .map(|line| {
                    let words = line.split_whitespace().map(without_turn);
                    words.collect::<Vec<_>>().join(" ")
                })
                .collect()
        };
        assert_eq!(routes(&after), routes(&before));
        world.broker.start();
        world.wait_connected();
        world.site("east").reaches(world.site("west"));
    }
}

#[test]
fn a_damaged_store_is_named_and_left_alone() {
    let mut world = World::new();
    world.broker.start();
    world.broker.stop();
    let store = world.broker.dir.join("store.db");
    for rest in ["store.db-wal", "store.db-shm"] {
        // They are gone already when it was closed in order.
        drop(std::fs::remove_file(world.broker.dir.join(rest)));
    }
    std::fs::write(&store, vec![b'x'; 8192]).expect("damage");
    let mut command = world.broker.space.command("timeout");
    command.args([
        "10",
        &broker_program(),
        "serve",
        "--listen",
        "192.0.2.10:7443",
        "--data-dir",
    ]);
    let ran = crate::namespace::run(command.arg(&world.broker.dir));
    let text = ran.fails_with(1);
    assert!(text.contains("store.db"), "{text}");
    assert_eq!(std::fs::read(&store).expect("the store"), vec![b'x'; 8192]);
}

#[test]
fn sigterm_and_sigint_end_a_gateway_and_the_kernel_keeps_failing_closed() {
    let mut world = World::fleet(&["east", "west"]);
    world.site_mut("east").stop_gateway();
    let east = world.site("east");
    // Nothing of the remote blocks may leave in clear while no gateway runs.
    let capture = crate::traffic::Capture::start(&east.host, "u0", world.path("clear.pcap"));
    assert!(east.is_cut_from(world.site("west").pod4()));
    let captured = capture.stop();
    assert_eq!(captured.lines("net 10.0.0.0/8"), Vec::<String>::new());
    world.site_mut("east").start_gateway("");
    world.wait_connected();
    let gateway = world.site_mut("east").gateway.take().expect("it runs");
    gateway.signal(rustix::process::Signal::INT);
    let mut gateway = gateway;
    assert!(gateway.wait(Duration::from_secs(10)).success());
}
