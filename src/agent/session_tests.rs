//! Sessions between agents over real TLS on loopback, with certificates as the broker makes them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::ServerName;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{Allocation, Cidr, Kind};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::client::{AllHeard, Client, Heard};
use super::encap::Encap;
use super::server::Server;
use super::words::{Hello, MAX_LINE, MAX_PREFIXES, Word};
use super::*;
use crate::control::feed::{Feed, HOLD};
use crate::state::Membership;

const DAY: Duration = Duration::from_hours(24);
const LO: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What takes longer than this on loopback does not happen.
const PATIENCE: Duration = Duration::from_secs(20);

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = "subsea fleet harbour";
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        Self { pem, issuer }
    }

    /// A certificate for `spiffe://harbour/HOLDER` that ended, or ends, at `end`.
    fn sign(&self, holder: &str, key: &KeyPair, end: SystemTime) -> String {
        let mut params = CertificateParams::default();
        params.not_before = (end - 2 * DAY).into();
        params.not_after = end.into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, holder);
        let uri = format!("spiffe://harbour/{holder}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    fn tls(&self, holder: &str, end: SystemTime) -> Tls {
        let key = KeyPair::generate().unwrap();
        let certificate = self.sign(holder, &key, end);
        Tls::new(&self.pem, &certificate, &key.serialize_pem()).unwrap()
    }
}

fn later() -> SystemTime {
    SystemTime::now() + DAY
}

fn feed(mtu: u32) -> Feed {
    Feed {
        reaches: [("west".parse().unwrap(), mtu)].into(),
        ..Feed::default()
    }
}

fn hello(prefixes: &[&str]) -> Hello {
    Hello {
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
        encap: Encap::Vxlan,
    }
}

/// The membership of a node of cluster east.
fn link(dir: &Path, ca: &Ca, node: &str) -> Arc<Link> {
    let state = StateDir::create(&dir.join(node)).unwrap();
    let key = KeyPair::from_pem(&state.tls_key_or_create().unwrap()).unwrap();
    let certificate = ca.sign(&format!("cluster/east/agent/{node}"), &key, later());
    state.write_certificate(&certificate).unwrap();
    let pods = Allocation {
        kind: Kind::Pod,
        cidr: "10.32.0.0/16".parse().unwrap(),
        exported: true,
    };
    let membership = Membership {
        version: 1,
        fleet: "harbour".parse().unwrap(),
        cluster: "east".parse().unwrap(),
        node: node.parse().unwrap(),
        role: Role::Agent,
        broker: BrokerInfo {
            urls: vec!["https://broker.example:7443".to_owned()],
            ca_pem: ca.pem.clone(),
        },
        allocations: vec![pods],
        token: None,
    };
    state.write_membership(&membership).unwrap();
    Arc::new(Link::load(state, 0x40).unwrap().0)
}

/// A gateway's node `gw-1` that accepts.
struct Accepting {
    at: SocketAddr,
    link: Arc<Link>,
    nodes: Arc<Nodes>,
    own: watch::Sender<local::Own>,
    tls: watch::Sender<Option<Tls>>,
    task: Option<Task>,
}

impl Accepting {
    fn start(dir: &Path, ca: &Ca, tls: Tls) -> Self {
        let free = std::net::TcpListener::bind((LO, 0)).unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let mut accepting = Self {
            at,
            link: link(dir, ca, "gw-1"),
            nodes: Arc::default(),
            own: watch::Sender::new(Some(Arc::new(feed(1400)))),
            tls: watch::Sender::new(Some(tls)),
            task: None,
        };
        accepting.restart();
        accepting
    }

    fn restart(&mut self) {
        let server = Server {
            link: Arc::clone(&self.link),
            tls: self.tls.subscribe(),
            own: self.own.subscribe(),
            nodes: Arc::clone(&self.nodes),
            listen: self.at,
            encap: Encap::Vxlan,
        };
        self.task = Some(Task::spawn("sessions", server.run()));
    }

    /// What one says and hears who connects from `from`.
    async fn ask(&self, tls: &Tls, from: IpAddr, line: &[u8]) -> io::Result<Asking> {
        let stream = loop {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            match socket.connect(self.at).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let connector = TlsConnector::from(Arc::clone(&tls.client));
        let mut stream = connector.connect(ServerName::from(LO), stream).await?;
        stream.write_all(line).await?;
        let mut asking = Asking(BufReader::new(stream));
        asking.next().await?;
        Ok(asking)
    }

    async fn is_refused(&self, tls: &Tls, line: &[u8]) -> bool {
        let asked = tokio::time::timeout(PATIENCE, self.ask(tls, LO, line)).await;
        asked.expect("an answer in time").is_err()
    }
}

struct Asking(BufReader<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>);

impl Asking {
    async fn next(&mut self) -> io::Result<Word> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

fn line(hello: &Hello) -> Vec<u8> {
    let mut line = serde_json::to_vec(hello).unwrap();
    line.push(b'\n');
    line
}

/// The node `n-1`, which keeps a session with `gw-1`.
fn connecting(link: &Arc<Link>, at: SocketAddr, tls: Tls, hello: Hello) -> (Arc<AllHeard>, Task) {
    connecting_with(link, at, tls, hello, watch::Sender::default().subscribe())
}

/// The same, whose pods have further blocks now and then.
fn connecting_with(
    link: &Arc<Link>,
    at: SocketAddr,
    tls: Tls,
    hello: Hello,
    prefixes: watch::Receiver<Vec<Cidr>>,
) -> (Arc<AllHeard>, Task) {
    let heard: Arc<AllHeard> = Arc::default();
    let options = Options {
        pod_cidrs: hello.prefixes,
        encap: hello.encap,
        session_port: at.port(),
        ..Options::new(link.state.path().to_owned())
    };
    let client = Client {
        link: Arc::clone(link),
        tls: watch::Sender::new(Some(tls)).subscribe(),
        options: Arc::new(options),
        prefixes,
        node: "gw-1".parse().unwrap(),
        addresses: vec![at.ip()],
        from: None,
        mark: 0,
        heard: Arc::clone(&heard),
    };
    (heard, Task::spawn("session", client.run()))
}

async fn until(heard: &AllHeard, wanted: impl Fn(&Heard) -> bool) -> Heard {
    let mut heard = heard.subscribe();
    let gateway: NodeName = "gw-1".parse().unwrap();
    let found = heard.wait_for(|all| all.get(&gateway).is_some_and(&wanted));
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.expect("heard in time").unwrap()[&gateway].clone()
}

fn agent(node: &str) -> String {
    format!("cluster/east/agent/{node}")
}

#[tokio::test]
async fn a_session_tells_of_the_gateway_at_once_and_brings_keys_to_both_ends() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let node = link(dir.path(), &ca, "n-1");
    let mine = ca.tls(&agent("n-1"), later());
    let (heard, _session) = connecting(&node, gateway.at, mine, hello(&["10.32.1.0/24"]));
    let first = until(&heard, |heard| heard.feed.is_some()).await;
    assert_eq!(first.feed, Some(feed(1400)));
    assert_eq!((first.address, first.error), (Some(LO), None));
    let n_1: NodeName = "n-1".parse().unwrap();
    let ours = gateway.nodes.roster.borrow().nodes()[&n_1].clone();
    assert_eq!((ours.address, ours.prefixes.len()), (LO, 1));
    let theirs = gateway.nodes.seals.borrow()[&n_1].clone();
    let sealed = first.seal.unwrap().close(b"probe");
    assert_eq!(theirs.open(&sealed), Some(&b"probe"[..]));

    // At once, but for a machine that is slow in each of five times.
    let mut least = Duration::MAX;
    for mtu in 1300..1305 {
        let changed = Instant::now();
        gateway.own.send_replace(Some(Arc::new(feed(mtu))));
        until(&heard, |heard| heard.feed == Some(feed(mtu))).await;
        least = least.min(changed.elapsed());
    }
    assert!(least < Duration::from_millis(100), "{least:?}");
    gateway.own.send_replace(None);
    until(&heard, |heard| heard.feed.is_none()).await;
}

#[tokio::test]
async fn what_was_known_stands_for_a_while_when_the_other_end_closes() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let mut gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let node = link(dir.path(), &ca, "n-1");
    let mine = ca.tls(&agent("n-1"), later());
    let (heard, _session) = connecting(&node, gateway.at, mine, hello(&["10.32.1.0/24"]));
    until(&heard, |heard| heard.feed.is_some()).await;
    let now = Instant::now();
    drop(gateway.task.take());
    let held = until(&heard, |heard| heard.held.is_some()).await;
    assert_eq!(held.feed, Some(feed(1400)));
    assert!(held.is_held(now) && !held.is_held(now + PATIENCE + HOLD));
    // Attempts that are refused change nothing of it.
    let refused = |heard: &Heard| heard.error.as_ref().is_some_and(|e| e.contains("refused"));
    assert_eq!(until(&heard, refused).await.held, held.held);
    gateway.restart();
    until(&heard, |heard| heard.held.is_none()).await;

    // One that is left out has nothing to be believed.
    let left_out = Feed {
        inward_dead: true,
        ..feed(1400)
    };
    gateway.own.send_replace(Some(Arc::new(left_out)));
    until(&heard, |heard| {
        heard.feed.as_ref().is_some_and(|feed| feed.inward_dead)
    })
    .await;
    drop(gateway.task.take());
    assert_eq!(until(&heard, refused).await.held, None);
}

#[tokio::test]
async fn further_blocks_of_pods_are_told_at_once_in_the_same_session() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let node = link(dir.path(), &ca, "n-1");
    let mine = ca.tls(&agent("n-1"), later());
    let blocks = watch::Sender::new(vec!["10.32.2.0/24".parse().unwrap()]);
    let (heard, _session) = connecting_with(
        &node,
        gateway.at,
        mine,
        hello(&["10.32.1.0/24"]),
        blocks.subscribe(),
    );
    let seal = until(&heard, |heard| heard.seal.is_some()).await.seal;
    let n_1: NodeName = "n-1".parse().unwrap();
    let mut roster = gateway.nodes.roster.subscribe();
    for further in [
        &["10.32.2.0/24"][..],
        &[],
        &["10.32.3.0/24", "10.32.4.0/24"],
    ] {
        blocks.send_replace(further.iter().map(|p| p.parse().unwrap()).collect());
        let wanted = hello(&[&["10.32.1.0/24"], further].concat()).prefixes;
        let known = roster.wait_for(|roster| {
            let node = roster.nodes().get(&n_1);
            node.is_some_and(|node| node.prefixes == wanted)
        });
        // Well below the time after which everything is said again.
        let known = tokio::time::timeout(Duration::from_secs(5), known).await;
        known.expect("told in time").unwrap();
    }
    let now = until(&heard, |_| true).await.seal;
    assert!(Arc::ptr_eq(&now.unwrap(), &seal.unwrap()), "one session");
}

#[tokio::test]
async fn a_gateways_node_believes_only_agents_of_its_cluster() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let hello = line(&hello(&["10.32.1.0/24"]));
    for holder in [
        "cluster/west/agent/n-1",
        "cluster/east/gateway/n-1",
        "cluster/east/member/n-1",
        "cluster/east/dns/n-1",
        "cluster/east/agent/n-1/x",
        "cluster/east/agent/",
        "admin/n-1",
    ] {
        let tls = ca.tls(holder, later());
        assert!(gateway.is_refused(&tls, &hello).await, "{holder}");
    }
    let expired = ca.tls(&agent("n-1"), SystemTime::now() - Duration::from_mins(1));
    assert!(gateway.is_refused(&expired, &hello).await, "expired");
    let early = ca.tls(&agent("n-1"), SystemTime::now() + 3 * DAY);
    assert!(gateway.is_refused(&early, &hello).await, "not yet valid");
    // Trusts our authority, and shows a certificate of its own.
    let other = Ca::new();
    let key = KeyPair::generate().unwrap();
    let forged = other.sign(&agent("n-1"), &key, later());
    let forged = Tls::new(&ca.pem, &forged, &key.serialize_pem()).unwrap();
    assert!(gateway.is_refused(&forged, &hello).await, "another CA");
    assert!(gateway.nodes.roster.borrow().nodes().is_empty());
    assert!(gateway.nodes.seals.borrow().is_empty());
    let right = ca.tls(&agent("n-1"), later());
    assert!(!gateway.is_refused(&right, &hello).await);
}

#[tokio::test]
async fn a_node_believes_only_the_agent_of_its_gateways_node() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let node = link(dir.path(), &ca, "n-1");
    for (n, (holder, end, why)) in [
        (agent("gw-2"), later(), "node gw-2 answers there"),
        (
            "cluster/west/agent/gw-1".to_owned(),
            later(),
            "not an agent of this cluster",
        ),
        (
            "cluster/east/gateway/gw-1".to_owned(),
            later(),
            "not an agent of this cluster",
        ),
        (agent("gw-1"), SystemTime::now() - DAY, "expired"),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = dir.path().join(n.to_string());
        std::fs::create_dir(&dir).unwrap();
        let gateway = Accepting::start(&dir, &ca, ca.tls(&holder, end));
        let mine = ca.tls(&agent("n-1"), later());
        let (heard, _session) = connecting(&node, gateway.at, mine, hello(&[]));
        let refused = |heard: &Heard| heard.error.as_ref().is_some_and(|e| e.contains(why));
        let heard = until(&heard, refused).await;
        assert!(heard.seal.is_none() && heard.feed.is_none(), "{holder}");
    }
    let other = Ca::new();
    let own = dir.path().join("other");
    std::fs::create_dir(&own).unwrap();
    let gateway = Accepting::start(&own, &other, other.tls(&agent("gw-1"), later()));
    let mine = ca.tls(&agent("n-1"), later());
    let (heard, _session) = connecting(&node, gateway.at, mine, hello(&[]));
    let heard = until(&heard, |heard| heard.error.is_some()).await;
    assert!(heard.seal.is_none() && heard.feed.is_none(), "another CA");
}

#[tokio::test]
async fn a_word_that_is_too_long_ends_its_session_alone() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let right = ca.tls(&agent("n-1"), later());
    let mut asking = gateway.ask(&right, LO, &line(&hello(&[]))).await.unwrap();
    let tls = ca.tls(&agent("n-2"), later());
    let endless = vec![b' '; usize::try_from(MAX_LINE).unwrap() + 1];
    // Not the first word, for which there is little time: only the length ends this one.
    let long = [line(&hello(&[])), endless].concat();
    let mut long = gateway.ask(&tls, LO, &long).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, async { while long.next().await.is_ok() {} });
    ended.await.expect("an end in time");
    assert!(gateway.is_refused(&tls, b"no JSON\n").await);
    let block = |n: u32| Cidr::containing(Ipv4Addr::from_bits(0x0a20_0000 + n).into(), 32);
    let many = Hello {
        prefixes: (0..=u32::try_from(MAX_PREFIXES).unwrap())
            .map(block)
            .collect(),
        encap: Encap::Vxlan,
    };
    assert!(gateway.is_refused(&tls, &line(&many)).await);
    assert_eq!(gateway.nodes.roster.borrow().nodes().len(), 1);
    gateway.own.send_replace(None);
    assert_eq!(asking.next().await.unwrap().gateway, None, "others go on");
}

#[tokio::test]
async fn two_nodes_have_a_session_each_and_only_a_node_itself_takes_its_own_away() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let ask = async |node: &str, last, block: &str| {
        let tls = ca.tls(&agent(node), later());
        let from = Ipv4Addr::new(127, 0, 0, last).into();
        let hello = line(&hello(&[block]));
        gateway.ask(&tls, from, &hello).await.unwrap()
    };
    let mut first = ask("n-1", 1, "10.32.1.0/24").await;
    let mut second = ask("n-2", 2, "10.32.2.0/24").await;
    assert_eq!(gateway.nodes.roster.borrow().nodes().len(), 2);
    assert_eq!(gateway.nodes.seals.borrow().len(), 2);
    // Any pod of a node may have its address: who says nothing, or something wrong, ends nothing.
    let silent = std::net::TcpStream::connect(gateway.at).unwrap();
    let stranger = ca.tls("cluster/west/agent/n-1", later());
    assert!(gateway.is_refused(&stranger, &line(&hello(&[]))).await);
    gateway.own.send_replace(Some(Arc::new(feed(1))));
    for session in [&mut first, &mut second] {
        assert_eq!(session.next().await.unwrap().gateway, Some(feed(1)));
    }
    drop(silent);
    // The same node once more: its old session is dead, whether it knows or not.
    let before = gateway.nodes.seals.borrow().clone();
    let mut again = ask("n-1", 1, "10.32.1.0/24").await;
    let gone = tokio::time::timeout(PATIENCE, first.next()).await;
    assert!(gone.expect("an end in time").is_err());
    gateway.own.send_replace(Some(Arc::new(feed(2))));
    for session in [&mut again, &mut second] {
        assert_eq!(session.next().await.unwrap().gateway, Some(feed(2)));
    }
    let after = gateway.nodes.seals.borrow().clone();
    let same = |node: &str| {
        let node: NodeName = node.parse().unwrap();
        Arc::ptr_eq(&before[&node], &after[&node])
    };
    assert!(!same("n-1") && same("n-2"));
}

#[tokio::test]
async fn a_session_that_is_dropped_or_replaced_leaves_no_keys_but_those_of_the_newest() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let mut gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let tls = ca.tls(&agent("n-1"), later());
    let first = gateway.ask(&tls, LO, &line(&hello(&[]))).await.unwrap();
    let mut second = gateway.ask(&tls, LO, &line(&hello(&[]))).await.unwrap();
    second.next().await.unwrap();
    drop(first);
    assert_eq!(gateway.nodes.with_session(), ["n-1".parse().unwrap()]);
    assert_eq!(gateway.nodes.seals.borrow().len(), 1);
    gateway.task = None;
    let mut seals = gateway.nodes.seals.subscribe();
    let none = tokio::time::timeout(PATIENCE, seals.wait_for(BTreeMap::is_empty));
    assert!(none.await.expect("an end in time").is_ok());
    assert!(gateway.nodes.with_session().is_empty());
}

#[tokio::test]
async fn a_restart_of_the_gateways_node_brings_a_new_session() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let mut gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let node = link(dir.path(), &ca, "n-1");
    let mine = ca.tls(&agent("n-1"), later());
    let (heard, _session) = connecting(&node, gateway.at, mine, hello(&[]));
    let first = until(&heard, |heard| heard.seal.is_some()).await;
    gateway.task = None;
    let lost = until(&heard, |heard| heard.error.is_some()).await;
    assert_eq!(
        lost.feed, first.feed,
        "what it said stands: the echo judges"
    );
    gateway.restart();
    let second = until(&heard, |heard| heard.error.is_none()).await;
    assert!(!Arc::ptr_eq(&first.seal.unwrap(), &second.seal.unwrap()));
}

#[tokio::test]
async fn agents_that_encapsulate_otherwise_say_so_and_pass_nothing() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let gateway = Accepting::start(dir.path(), &ca, ca.tls(&agent("gw-1"), later()));
    let node = link(dir.path(), &ca, "n-1");
    let mine = ca.tls(&agent("n-1"), later());
    let other = Hello {
        encap: Encap::None,
        ..hello(&["10.32.1.0/24"])
    };
    let (heard, _session) = connecting(&node, gateway.at, mine, other);
    let heard = until(&heard, |heard| heard.error.is_some()).await;
    let error = heard.error.unwrap();
    assert!(
        error.contains("`--encap vxlan`, and we with `--encap none`"),
        "{error}"
    );
    assert!(heard.seal.is_none());
    assert!(gateway.nodes.roster.borrow().nodes().is_empty());
    assert!(gateway.nodes.seals.borrow().is_empty());
}
