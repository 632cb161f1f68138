//! A broker's life: takes its directory, opens or makes its store, serves, ends. Shell.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use subsea_api::admin::{AdminFile, Pool};
use subsea_api::conflict::conflicts;
use subsea_api::snapshot::BrokerInfo;
use subsea_api::{Cidr, FleetName};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::address::{self, AdvertiseError};
use crate::auth::{Challenger, Holder};
use crate::data_dir::{self, ADMIN_FILE, DataDir, DataDirError, LISTEN};
use crate::http::{App, router};
use crate::hub::Hub;
use crate::publish::SecretName;
use crate::registry::{Cut, Decision, Effect, Identity, Leases, Note};
use crate::server::{self, Limits};
use crate::store::sqlite::{Birth, Sqlite};
use crate::store::{Commit, Engine, Line, Store, StoreError};
use crate::tls::{self, Authority, Pair, ServerPair, TlsError};
use crate::{clock, ipam, lease, publish};

/// How often what has had its time is swept away.
const SWEEP: Duration = Duration::from_secs(30);
/// How long the lease of a gateway lasts: two of its renewals may be lost before it is over.
pub const LEASE: Duration = Duration::from_mins(1);
/// How many files the process would like to open.
const FILES: u64 = 65_536;
/// The name in an operator's certificate.
pub(crate) const OPERATOR: &str = "admin";

/// What a broker is told at its start.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Its directory; made when missing.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `https://host:port` for members, best first; empty: made from `listen`.
    pub advertise: Vec<String>,
    /// The name of a new fleet; random when missing.
    pub fleet: Option<FleetName>,
    /// The pools of `auto`; empty: as before, or the defaults.
    pub pools: Vec<Pool>,
    /// How long members' certificates live; 24 hours unless a test says otherwise.
    pub certificate_lifetime: Duration,
    /// How long a gateway's lease lasts; [`LEASE`] unless a test says otherwise.
    pub lease: Duration,
    /// A Secret of the cluster that the broker runs in, which gets the admin file.
    pub publish_admin: Option<SecretName>,
}

/// Why a broker does not start, or a local verb does not work.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An advertised URL is none.
    #[error(transparent)]
    Advertise(#[from] AdvertiseError),
    /// The address cannot be listened on.
    #[error("could not listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The store belongs to another fleet.
    #[error(
        "the store in {path} belongs to fleet {found}, not to {wanted}: leave `--fleet` out, or use another directory"
    )]
    OtherFleet {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        found: FleetName,
        /// Whose it should be.
        wanted: FleetName,
    },
    /// There is no store.
    #[error("there is no store in {0}: start the broker there once, or name its `--data-dir`")]
    NoStore(PathBuf),
    /// A record of the store is missing or cannot be read.
    #[error("the store in {path} has no usable {what}: restore a backup")]
    Incomplete {
        /// Where.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
    /// The admin file cannot be written as YAML.
    #[error("could not write the admin file: {0}")]
    AdminFile(String),
}

/// Runs a broker until `shutdown` resolves.
///
/// # Errors
/// [`ServeError`] when it cannot start; once it listens, nothing but `shutdown` ends it.
pub async fn serve(
    config: ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    raise_file_limit();
    let dir = DataDir::take(&config.data_dir)?;
    let listen_file = dir.path().join(LISTEN);
    // A reader must not find the address of an earlier run.
    remove_if_there(&listen_file)?;
    let mut engine = open_or_create(&dir, &config)?;
    let listen_error = |source| ServeError::Listen {
        address: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(listen_error)?;
    let listen = listener.local_addr().map_err(listen_error)?;
    let identity = identity(&mut engine, &dir, &config)?;
    let authority = authority(&engine, &dir, &identity)?;
    let urls = address::urls(listen, &config.advertise)?;
    let server = server_pair(
        &mut engine,
        &authority,
        address::certificate_hosts(listen, &urls),
    )?;
    let acceptor = TlsAcceptor::from(Arc::new(authority.server_config(&server)?));
    let store = Arc::new(Store::open(Box::new(engine))?);
    announce(&store, &authority, urls)?;
    if store.fleet("admin")?.is_none() {
        issue_admin(&store, &authority, dir.path())?;
    } else {
        refresh_admin_url(&store, dir.path());
    }
    let hub = Arc::new(Hub::new(store.read().state.revision));
    let app = Arc::new(App {
        authority,
        challenger: Challenger::new(&tls::random()?, tls::random()?),
        hub: hub.clone(),
        leases: Mutex::new(Leases::new(config.lease)),
        certificate_lifetime: config.certificate_lifetime,
        started: clock::now(),
        data_dir: dir.path().to_owned(),
        store: store.clone(),
    });
    data_dir::write_private(&listen_file, format!("{listen}\n").as_bytes())?;
    {
        let memory = store.read();
        tracing::info!(%listen, fleet = %memory.state.identity.fleet, urls = ?memory.state.broker.urls,
            members = memory.state.clusters.len(), revision = memory.state.revision, "listening");
    }
    let (stop, stopped) = watch::channel(false);
    let publish = hub.clone().run(store.clone());
    let leases = lease::run(app.clone());
    let secret = publish_admin(config.publish_admin, dir.path(), &store);
    let serving = server::run(listener, acceptor, router(app), Limits::default(), stopped);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        () = serving.as_mut() => {}
        () = publish => {}
        () = sweep(store) => {}
        () = leases => {}
        () = secret => {}
        () = shutdown => {}
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    hub.cut(&Cut::All);
    serving.await;
    remove_if_there(&listen_file)?;
    Ok(())
}

/// Keeps the admin file in a Secret, if there is one to keep it in.
fn publish_admin(
    secret: Option<SecretName>,
    data_dir: &Path,
    store: &Arc<Store>,
) -> impl Future<Output = ()> + Send + use<> {
    let (data_dir, store) = (data_dir.to_owned(), store.clone());
    async move {
        match secret {
            Some(secret) => publish::run(secret, data_dir, store).await,
            None => std::future::pending().await,
        }
    }
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn open_or_create(dir: &DataDir, config: &ServeConfig) -> Result<Sqlite, ServeError> {
    let (path, exists) = dir.store()?;
    if !exists {
        let now = clock::now();
        let fleet = match &config.fleet {
            Some(fleet) => fleet.clone(),
            None => random_fleet()?,
        };
        let pair = Authority::create(&fleet, now)?;
        let identity = Identity {
            fleet,
            epoch: data_dir::new_epoch()?,
            ula: random_ula()?,
            pools: ipam::with_defaults(&config.pools),
        };
        let birth = Birth {
            identity: &identity,
            fleet: &[("authority", json(&pair)?)],
            at: now,
        };
        Sqlite::create(&path, &birth)?;
        tracing::info!(fleet = %identity.fleet, store = %path.display(), "new fleet");
    }
    Ok(Sqlite::open(&path)?)
}

/// The store's identity, with pools as the configuration wants them from now on.
fn identity(
    engine: &mut Sqlite,
    dir: &DataDir,
    config: &ServeConfig,
) -> Result<Identity, ServeError> {
    let mut identity = engine.load()?.identity;
    if let Some(wanted) = config.fleet.as_ref().filter(|f| **f != identity.fleet) {
        return Err(ServeError::OtherFleet {
            path: dir.path().to_owned(),
            found: identity.fleet,
            wanted: wanted.clone(),
        });
    }
    let pools = ipam::with_defaults(&config.pools);
    if !config.pools.is_empty() && pools != identity.pools {
        identity.pools = pools;
        let texts: Vec<String> = identity
            .pools
            .iter()
            .map(|p| format!("{}={}", p.kind, p.cidr))
            .collect();
        let note = Note::new("broker.pools", texts.join(" "), "");
        // The log first: killed between the two, the next start finds the same difference.
        engine.commit(&Commit {
            effects: &[],
            revision: None,
            audit: Some(Line {
                at: clock::now(),
                who: "broker",
                note: &note,
            }),
        })?;
        engine.set_fleet("identity", &crate::store::identity_json(&identity))?;
        tracing::info!(pools = %note.subject, "new pools");
    }
    Ok(identity)
}

fn authority(engine: &Sqlite, dir: &DataDir, identity: &Identity) -> Result<Authority, ServeError> {
    authority_of(engine, dir.path(), identity)
}

pub(crate) fn authority_of(
    engine: &Sqlite,
    data_dir: &Path,
    identity: &Identity,
) -> Result<Authority, ServeError> {
    let kept = engine.fleet("authority")?;
    let pair: Pair = kept
        .and_then(|json| serde_json::from_str(&json).ok())
        .ok_or_else(|| ServeError::Incomplete {
            path: data_dir.to_owned(),
            what: "authority",
        })?;
    Ok(Authority::load(identity.fleet.clone(), &pair)?)
}

fn server_pair(
    engine: &mut Sqlite,
    authority: &Authority,
    hosts: Vec<String>,
) -> Result<ServerPair, ServeError> {
    let kept: Option<ServerPair> = engine
        .fleet("server")?
        .and_then(|json| serde_json::from_str(&json).ok());
    let before = kept.as_ref().map(|k| k.pair.certificate_pem.clone());
    let server = authority.server(kept, hosts, clock::now())?;
    if before.as_deref() != Some(&server.pair.certificate_pem) {
        engine.set_fleet("server", &json(&server)?)?;
        tracing::info!(hosts = ?server.hosts, "new server certificate");
    }
    Ok(server)
}

/// Tells the fleet where the broker is now, if that is news.
fn announce(store: &Store, authority: &Authority, urls: Vec<String>) -> Result<(), ServeError> {
    let broker = BrokerInfo {
        urls,
        ca_pem: authority.certificate_pem().to_owned(),
    };
    if store.read().state.broker != broker {
        let note = Note::new("broker.address", broker.urls.join(" "), "");
        store.put(
            "broker",
            clock::now(),
            Decision::changed((), vec![Effect::Broker(broker)], note),
        )?;
    }
    let memory = store.read();
    for claim in memory.state.broker_claims() {
        for conflict in conflicts(&[claim], memory.state.index(), &[]) {
            tracing::warn!(address = %conflict.wanted.cidr, block = %conflict.existing.cidr, owner = %conflict.existing.owner,
                "the broker's address lies in a block that the fleet routes: members may not reach it");
        }
    }
    Ok(())
}

fn issue_admin(store: &Store, authority: &Authority, data_dir: &Path) -> Result<(), ServeError> {
    let (file, key) = admin_file(authority, &store.read().state.broker)?;
    let path = write_admin(&file, data_dir)?;
    // The file first: a broker killed between the two makes another one.
    store.set_fleet("admin", &key)?;
    tracing::info!(file = %path.display(), "admin file written");
    Ok(())
}

/// Points an admin file that is still there to where the broker is now.
fn refresh_admin_url(store: &Store, data_dir: &Path) {
    let path = data_dir.join(ADMIN_FILE);
    let Ok(text) = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new) else {
        return;
    };
    let Ok(mut file) = serde_saphyr::from_str::<AdminFile>(&text) else {
        return;
    };
    let urls = store.read().state.broker.urls.clone();
    let Some(first) = urls.first().filter(|_| !urls.contains(&file.url)) else {
        return;
    };
    file.url.clone_from(first);
    if let Err(error) = write_admin(&file, data_dir) {
        tracing::warn!(%error, "the admin file still has the old address");
    }
}

pub(crate) fn admin_file(
    authority: &Authority,
    broker: &BrokerInfo,
) -> Result<(AdminFile, String), ServeError> {
    let name = OPERATOR
        .parse()
        .map_err(|_| ServeError::AdminFile("its holder's name is not valid".into()))?;
    let (pair, key) = authority.admin(&Holder::Admin(name), clock::now())?;
    let file = AdminFile {
        url: broker.urls.first().cloned().unwrap_or_default(),
        ca_pem: broker.ca_pem.clone(),
        certificate_pem: pair.certificate_pem.clone(),
        key_pem: pair.key_pem.clone(),
    };
    Ok((file, key.as_str().to_owned()))
}

pub(crate) fn write_admin(file: &AdminFile, data_dir: &Path) -> Result<PathBuf, ServeError> {
    let yaml = serde_saphyr::to_string(file).map_err(|e| ServeError::AdminFile(e.to_string()))?;
    let path = data_dir.join(ADMIN_FILE);
    data_dir::write_private(&path, zeroize::Zeroizing::new(yaml).as_bytes())?;
    Ok(path)
}

async fn sweep(store: Arc<Store>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let store = store.clone();
        let swept = tokio::task::spawn_blocking(move || store.sweep(clock::now())).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "could not sweep the store");
        }
    }
}

fn random_fleet() -> Result<FleetName, ServeError> {
    let name = format!("fleet-{}", crate::auth::hex(&tls::random::<4>()?));
    name.parse()
        .map_err(|_| TlsError::Own("the random fleet name is not valid".into()).into())
}

/// A /48 of its own for the fleet (RFC 4193, section 3.2).
fn random_ula() -> Result<Cidr, ServeError> {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6].copy_from_slice(&tls::random::<5>()?);
    Ok(Cidr::containing(bytes.into(), 48))
}

fn json(value: &impl serde::Serialize) -> Result<String, ServeError> {
    serde_json::to_string(value)
        .map_err(|e| TlsError::Own(format!("could not be written: {e}")).into())
}

/// A thousand watchers are a thousand files; the usual limit is 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.map_or(FILES, |hard| hard.min(FILES));
    if now.current.is_some_and(|soft| soft < most) {
        let raised = Rlimit {
            current: Some(most),
            maximum: now.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "could not raise the limit of open files");
        }
    }
}
