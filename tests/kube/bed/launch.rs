//! The command lines of the servers, and the ports that they take.

use std::path::{Path, PathBuf};

use super::keys::SigningKey;
use super::ports::free_port;

/// As most clusters have it, so that a token says nothing of its cluster but by its key.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Not used by a test: they would mark our fake nodes as lost, and delete their pods. Each name is that of a controller.
const NO_CONTROLLERS: [&str; 6] = [
    "node-lifecycle-controller",
    "node-ipam-controller",
    "taint-eviction-controller",
    "device-taint-eviction-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
];

/// Every request of a service account is noted, and nothing else: what was asked for, not what was said.
pub(super) const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ['system:serviceaccounts']
  - level: None
";

/// Where [`AUDIT_POLICY`] is.
pub(super) fn audit_policy(dir: &Path) -> PathBuf {
    dir.join("audit-policy.yaml")
}

/// Where what it asks for is noted, a JSON object a line; a restarted API server goes on with it.
pub(super) fn audit_log(dir: &Path) -> PathBuf {
    dir.join("audit.log")
}

/// Where the servers of one control plane listen, on `127.0.0.1`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) etcd: u16,
    pub(super) peer: u16,
    pub(super) api: u16,
}

impl Ports {
    /// Free at this moment; who starts servers on them looks whether it was too late.
    pub(super) fn choose() -> Self {
        Self {
            etcd: free_port(),
            peer: free_port(),
            api: free_port(),
        }
    }
}

pub(super) fn etcd(dir: &Path, ports: Ports) -> Vec<String> {
    let clients = format!("http://127.0.0.1:{}", ports.etcd);
    let peers = format!("http://127.0.0.1:{}", ports.peer);
    vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // Nothing here needs to survive a power cut.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

/// `keys`: the last one signs, all are accepted.
pub(super) fn api_server(
    dir: &Path,
    ports: Ports,
    services: &[String; 2],
    keys: &[SigningKey],
) -> Vec<String> {
    let signing = keys.last().expect("a key");
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--secure-port={}", ports.api),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        // It refuses to publish a loopback address as the one of Service `kubernetes`.
        "--endpoint-reconciler-type=none".to_owned(),
        // It makes its certificate there when there is none.
        format!("--cert-dir={}", dir.join("tls").display()),
        format!("--token-auth-file={}", dir.join("tokens.csv").display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Without it, a stop waits a minute for watches to end by themselves.
        "--shutdown-watch-termination-grace-period=1s".to_owned(),
        format!("--service-cluster-ip-range={}", services.join(",")),
        format!("--audit-policy-file={}", audit_policy(dir).display()),
        format!("--audit-log-path={}", audit_log(dir).display()),
        format!("--service-account-issuer={ISSUER}"),
        format!(
            "--service-account-signing-key-file={}",
            signing.private.display()
        ),
    ];
    arguments.extend(
        keys.iter()
            .map(|key| format!("--service-account-key-file={}", key.public.display())),
    );
    arguments
}

pub(super) fn controller_manager(dir: &Path, kubeconfig: &Path) -> Vec<String> {
    let without: String = NO_CONTROLLERS.map(|name| format!(",-{name}")).concat();
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers=*{without}"),
        // It is put into every namespace, and from there into pods.
        format!("--root-ca-file={}", dir.join("tls/apiserver.crt").display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ]
}
