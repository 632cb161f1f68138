//! Who holds a UDP port or a TUN device: what the kernel shows under `/proc`. Shell, with a PURE reader.

use std::fmt;
use std::fs;
use std::path::Path;

/// A process, as far as it could be found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// This process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name, as `ps` shows it.
        name: String,
    },
    /// A socket without a process: the kernel itself, such as an interface of its own WireGuard.
    Kernel,
    /// It went away meanwhile, or we may not see it.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Self::Kernel => f.write_str("the kernel itself, perhaps a WireGuard interface: see `ip link show type wireguard`"),
            Self::Unknown => f.write_str("a process that could not be found"),
        }
    }
}

/// Who has UDP `port` in our network namespace.
pub fn of_udp_port(port: u16) -> Holder {
    let inodes: Vec<u64> = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| inodes_of_port(&table, port))
        .collect();
    if inodes.is_empty() {
        return Holder::Unknown;
    }
    let links: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    find("fd", |path| {
        fs::read_link(path)
            .is_ok_and(|to| to.to_str().is_some_and(|to| links.iter().any(|l| l == to)))
    })
    .unwrap_or(Holder::Kernel)
}

/// Who is attached to TUN device `name` in our network namespace.
pub fn of_tun(name: &str) -> Holder {
    let wanted = format!("iff:\t{name}");
    find("fdinfo", |path| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == wanted))
    })
    .unwrap_or(Holder::Unknown)
}

/// The inodes of the sockets on local `port` in a table of the form of `/proc/net/udp`.
fn inodes_of_port(table: &str, port: u16) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace();
            let (_, local) = columns.nth(1)?.rsplit_once(':')?;
            (u16::from_str_radix(local, 16).ok()? == port).then_some(())?;
            columns.nth(7)?.parse().ok()
        })
        .collect()
}

/// The first process of our network namespace with an entry in its directory `kind` that `is_it` knows.
fn find(kind: &str, is_it: impl Fn(&Path) -> bool) -> Option<Holder> {
    let ours = fs::read_link("/proc/thread-self/ns/net").ok();
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries(Path::new("/proc")) {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let process = process.path();
        if fs::read_link(process.join("ns/net")).ok() != ours {
            continue;
        }
        if entries(&process.join(kind)).any(|entry| is_it(&entry.path())) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            return Some(Holder::Process {
                pid,
                name: name.trim().to_owned(),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_table_is_read_by_port() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref\n\
             \x20 10: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 38417 2 0 0\n\
             \x20 11: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 22 2 0 0\n\
             garbage\n";
        assert_eq!(inodes_of_port(table, 51820), [38417]);
        assert_eq!(inodes_of_port(table, 53), [22]);
        assert!(inodes_of_port(table, 54).is_empty());
    }

    #[test]
    fn our_own_socket_is_found() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = of_udp_port(socket.local_addr().unwrap().port());
        let Holder::Process { pid, name } = &holder else {
            panic!("{holder:?}")
        };
        assert_eq!(*pid, std::process::id());
        assert!(!name.is_empty());
    }
}
