use std::process::Command;

use subsea_api::snapshot::BrokerInfo;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn membership() -> Membership {
    Membership {
        version: 1,
        fleet: "harbour".parse().unwrap(),
        cluster: "east".parse().unwrap(),
        node: "gw-1".parse().unwrap(),
        role: Role::Member,
        broker: BrokerInfo {
            urls: vec!["https://b:1".into()],
            ca_pem: "ca".into(),
        },
        allocations: Vec::new(),
        token: None,
    }
}

#[test]
fn the_directory_is_0700_and_the_files_0600() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("parent/state");
    let state = StateDir::create(&path).unwrap();
    let lock = state.lock().unwrap();
    state.write_membership(&membership()).unwrap();
    let tls = state.tls_key_or_create().unwrap();
    let wireguard = state.wireguard_key_or_create(0).unwrap();
    state.write_certificate("pem").unwrap();
    assert_eq!(mode(&path), 0o700);
    for name in [MEMBER, TLS_KEY, "wireguard.key", CERTIFICATE, LOCK] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
    drop(lock);
    let state = StateDir::open(&path).unwrap();
    assert_eq!(state.membership().unwrap(), Some(membership()));
    assert_eq!(*state.tls_key_or_create().unwrap(), *tls);
    assert_eq!(
        state.wireguard_key_or_create(0).unwrap().public_key(),
        wireguard.public_key(),
    );
    assert_eq!(state.certificate().unwrap().as_deref(), Some("pem"));
    assert_eq!(state.snapshot().unwrap(), None);
}

#[test]
fn every_listener_has_a_key_of_its_own_that_stays_and_is_ours_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::create(dir.path()).unwrap();
    let keys = || -> Vec<_> {
        let public = |n| state.wireguard_key_or_create(n).unwrap().public_key();
        (0..16).map(|n| public(n).unwrap()).collect()
    };
    let made = keys();
    assert_eq!(keys(), made, "they survive");
    let mut different = made.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 16);
    assert_eq!(mode(&dir.path().join("wireguard-15.key")), 0o600);
    let error = state.wireguard_key_or_create(16).unwrap_err();
    assert!(error.to_string().contains("wireguard-16.key"), "{error}");
    fs::write(dir.path().join("wireguard-3.key"), "x").unwrap();
    let error = state.wireguard_key_or_create(3).unwrap_err();
    assert!(error.to_string().contains("wireguard-3.key"), "{error}");
    for name in files() {
        state.remove(name).unwrap();
    }
    assert_eq!(state.names().unwrap(), Vec::<String>::new());
}

#[test]
fn a_directory_of_others_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let chmod = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o755);
    fs::write(dir.path().join("photo.jpg"), "").unwrap();
    let error = StateDir::create(dir.path()).unwrap_err();
    assert!(
        matches!(error, StateError::Foreign { mode: 0o755, .. }),
        "{error}"
    );
    assert_eq!(mode(dir.path()), 0o755);
    // Ours, opened up by somebody: closed again.
    fs::write(dir.path().join(MEMBER), "").unwrap();
    StateDir::create(dir.path()).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
    assert!(matches!(
        StateDir::open(&dir.path().join("none")),
        Err(StateError::Missing { .. })
    ));
    assert!(matches!(
        StateDir::open(&dir.path().join("photo.jpg")),
        Err(StateError::Missing { .. })
    ));
}

#[test]
fn damaged_files_are_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::create(dir.path()).unwrap();
    for (name, text) in [
        (SNAPSHOT, "{\"fleet\":"),
        (MEMBER, "{}"),
        ("wireguard.key", "x"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let errors = [
        state.snapshot().unwrap_err(),
        state.membership().unwrap_err(),
        state.wireguard_key_or_create(0).unwrap_err(),
    ];
    for (error, name) in errors.iter().zip([SNAPSHOT, MEMBER, "wireguard.key"]) {
        assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert_eq!(
        fs::read_to_string(dir.path().join("wireguard.key")).unwrap(),
        "x"
    );
    fs::write(dir.path().join(SNAPSHOT), [0xff, 0xfe]).unwrap();
    assert!(matches!(state.snapshot(), Err(StateError::Corrupt { .. })));
    let mut later = membership();
    later.version = 2;
    state.write_membership(&later).unwrap();
    assert!(
        state
            .membership()
            .unwrap_err()
            .to_string()
            .contains("version 2")
    );
}

#[test]
fn one_owner_at_a_time_and_a_dead_one_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::create(dir.path()).unwrap();
    // A process of another program holds the lock, and has noted itself as we do.
    let mut holder = Command::new("flock")
        .arg(dir.path().join(LOCK))
        .args(["sh", "-c", "printf '%-11s\\n' $$ > \"$0\"; exec sleep 60"])
        .arg(dir.path().join(LOCK))
        .spawn()
        .unwrap();
    let error = loop {
        match state.lock() {
            // Our own note stands until the shell has overwritten it.
            Err(error @ StateError::Locked { pid: Some(pid), .. }) if pid != std::process::id() => {
                break error;
            }
            Ok(_) | Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    let note = fs::read_to_string(dir.path().join(LOCK)).unwrap();
    assert!(
        error.to_string().contains(&format!("pid {}", note.trim())),
        "{error}"
    );
    // flock's child keeps the lock alive: it is the one to die.
    let child = note.trim().to_owned();
    assert!(
        Command::new("kill")
            .args(["-9", &child])
            .status()
            .unwrap()
            .success()
    );
    holder.wait().unwrap();
    assert!(dir.path().join(LOCK).exists());
    fs::write(dir.path().join(".tmp-1-0-snapshot.json"), "half").unwrap();
    let lock = state.lock().unwrap();
    assert!(!dir.path().join(".tmp-1-0-snapshot.json").exists());
    // A second owner in this process is refused too, naming us.
    let error = state.lock().unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("pid {}", std::process::id())),
        "{error}"
    );
    drop(lock);
    assert!(state.lock().is_ok());
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("tiny");
    fs::create_dir(&mount).unwrap();
    let tiny = Tmpfs::mount(&mount);
    let state = StateDir::create(&mount).unwrap();
    let lock = state.lock().unwrap();
    state.write_membership(&membership()).unwrap();
    // Fill what is left, to the last page.
    let mut filler = fs::File::create(mount.join("filler")).unwrap();
    while io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
    let mut other = membership();
    other.cluster = "west".parse().unwrap();
    let error = state.write_membership(&other).unwrap_err();
    assert!(matches!(error, StateError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert_eq!(state.membership().unwrap(), Some(membership()));
    assert!(!state.names().unwrap().iter().any(|n| file::is_temporary(n)));
    // The lock still works, and names its holder.
    drop(lock);
    let again = state.lock().unwrap();
    assert!(matches!(
        state.lock(),
        Err(StateError::Locked { pid: Some(_), .. })
    ));
    drop(filler);
    fs::remove_file(mount.join("filler")).unwrap();
    state.write_membership(&other).unwrap();
    drop(again);
    drop(tiny);
}

/// A file system of 64 KiB; needs root, as all tests of the kernel's behaviour do.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path) -> Self {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "subsea-test"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "mounting a tmpfs needs root");
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_empty_directory_goes_and_a_used_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let state = StateDir::create(&path).unwrap();
    fs::write(path.join("mine"), "").unwrap();
    assert!(!state.remove_if_empty().unwrap());
    assert!(state.remove("mine").unwrap());
    assert!(!state.remove("mine").unwrap());
    assert!(state.remove_if_empty().unwrap());
}

#[test]
fn the_socket_can_be_elsewhere_and_is_found_from_here() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::create(&dir.path().join("state")).unwrap();
    let there = dir.path().join("run/gateway");
    // As a kubelet makes it.
    fs::create_dir_all(&there).unwrap();
    for _ in 0..2 {
        let socket = state.lead_socket_to(&there).unwrap();
        assert_eq!(socket, there.join(SOCKET));
        assert_eq!(mode(&there), 0o700);
        fs::write(&socket, "").unwrap();
        let found = fs::canonicalize(state.socket_path()).unwrap();
        assert_eq!(found, fs::canonicalize(&socket).unwrap());
    }
    // What leaves the state directory leaves the other one alone.
    assert!(state.remove(SOCKET).unwrap());
    assert!(there.join(SOCKET).exists());
    let itself = state.lead_socket_to(&dir.path().join("state")).unwrap();
    assert_eq!(itself, state.socket_path());
    assert!(!itself.exists(), "no link to itself");
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("theirs"), "").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = state.lead_socket_to(&foreign);
    assert!(matches!(refused, Err(StateError::Foreign { .. })));
}
