//! Nodes that enrol by their service account: `subsea`'s own client against a real broker.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use subsea::broker_client::BrokerClient;
use subsea::enrol::{
    self, CREDENTIAL_FILE, ENROLMENT_FILE, EnrolError, Joined, by_service_account,
    by_service_account_again,
};
use subsea::state::StateDir;
use subsea_api::enrolment::{AdmitRequest, AdmitResponse, ServiceAccountKeys, WithdrawRequest};
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::{Code, Role, ServiceAccountToken, Token};

use crate::fleet::Fleet;
use crate::signer::{Signer, accounts, claims};

/// A cluster in Kubernetes: its Secret is mounted in `secret`, and `signer` is its API server's key.
pub(crate) struct Cluster {
    pub(crate) fleet: Fleet,
    signer: Signer,
    pub(crate) secret: PathBuf,
    file: EnrolmentFile,
    credential: Token,
}

impl Cluster {
    pub(crate) async fn east(fleet: Fleet) -> Self {
        let (signer, credential) = (Signer::ec("k1"), Token::from_parts(1, [1; 32]));
        let answer = admit(&fleet, "east", &credential, &signer).await;
        let file = EnrolmentFile::new(answer.fleet, answer.cluster, answer.broker);
        let secret = fleet.dir.path().join("secret");
        let cluster = Self {
            fleet,
            signer,
            secret,
            file,
            credential,
        };
        cluster.mount();
        cluster
    }

    pub(crate) fn mount(&self) {
        fs::create_dir_all(&self.secret).expect("made");
        let text = self.file.to_yaml().expect("YAML");
        fs::write(self.secret.join(ENROLMENT_FILE), text).expect("written");
        let text = format!("{}\n", self.credential.expose());
        fs::write(self.secret.join(CREDENTIAL_FILE), text).expect("written");
    }

    pub(crate) fn token(&self, account: &str, node: &str) -> ServiceAccountToken {
        let text = self.signer.token(&claims(account, node, now()));
        let path = self.fleet.dir.path().join("token");
        fs::write(&path, text).expect("written");
        enrol::read_service_account_token(&path).expect("a token")
    }

    /// Enrols a gateway on `node`, with what is mounted.
    pub(crate) async fn enrol(&self, node: &str, dir: &Path) -> Result<Joined, EnrolError> {
        let (file, credential) = enrol::read_enrolment(&self.secret)?;
        let token = self.token("subsea-gateway", node);
        by_service_account(&file, &credential, &token, dir).await
    }

    fn actions(&self) -> Vec<String> {
        let log = self.fleet.admin("audit list -o json").exits(0).json();
        let entries = log.as_array().expect("a list").iter();
        entries
            .filter(|e| e["subject"].as_str().is_some_and(|s| s.starts_with("east")))
            .map(|e| e["action"].as_str().expect("text").to_owned())
            .collect()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

async fn admit(fleet: &Fleet, cluster: &str, credential: &Token, signer: &Signer) -> AdmitResponse {
    let file =
        enrol::read_join_file(Path::new(&fleet.token(cluster, "member"))).expect("a join file");
    let request = AdmitRequest {
        fleet: file.fleet.clone(),
        cluster: file.cluster.clone(),
        token: file.token.clone(),
        credential: credential.clone(),
        cidrs: serde_json::from_value(json!({"pod": ["auto/16"], "service": ["auto/20"]}))
            .expect("blocks"),
        service_accounts: serde_json::from_value(accounts(&[signer])).expect("accounts"),
        service_account_token: signer
            .token(&claims("subsea-operator", "n1", now()))
            .parse()
            .expect("a token"),
    };
    let client = BrokerClient::anonymous(&file.broker, None).expect("a client");
    client.admit(&request).await.expect("admitted")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_enrols_and_can_repeat_it_after_every_step() {
    let mut cluster = Cluster::east(Fleet::start()).await;
    let dir = cluster.fleet.dir.path().join("n1");
    let first = cluster.enrol("n1", &dir).await.expect("enrolled");
    let member = &first.membership;
    assert!(!first.already);
    assert_eq!((member.node.as_str(), member.role), ("n1", Role::Gateway));
    assert_eq!(
        (member.cluster.as_str(), member.allocations.len()),
        ("east", 2)
    );
    let key = fs::read(dir.join("tls.key")).expect("a key");
    let again = cluster.enrol("n1", &dir).await.expect("enrolled");
    assert!(again.already);
    // Died before the membership, or before the certificate was kept; or somebody removed one of them.
    for lost in [
        &["member.json"][..],
        &["member.json", "tls.crt"],
        &["tls.crt"],
    ] {
        for name in lost {
            fs::remove_file(dir.join(name)).expect("removed");
        }
        let again = cluster.enrol("n1", &dir).await.expect("enrolled");
        assert!(!again.already, "without {lost:?}");
        assert_eq!(again.membership, first.membership);
        assert_eq!(fs::read(dir.join("tls.key")).expect("a key"), key);
    }
    assert_eq!(
        cluster.actions()[1..],
        [
            "node.enrol",
            "certificate.reissue",
            "certificate.reissue",
            "certificate.reissue"
        ]
    );
    // Without its key the node makes another one: the token proves that it is the node.
    fs::remove_file(dir.join("tls.key")).expect("removed");
    assert!(!cluster.enrol("n1", &dir).await.expect("enrolled").already);
    fs::remove_dir_all(&dir).expect("removed");
    assert!(!cluster.enrol("n1", &dir).await.expect("enrolled").already);
    assert_eq!(
        cluster
            .actions()
            .iter()
            .filter(|a| *a == "node.enrol")
            .count(),
        3
    );
    // Enrolled, nobody is asked.
    cluster.fleet.down();
    assert!(cluster.enrol("n1", &dir).await.expect("enrolled").already);
    let error = cluster
        .enrol("n2", &cluster.fleet.dir.path().join("n2"))
        .await
        .unwrap_err();
    assert!(matches!(error, EnrolError::Client(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_can_be_renewed_and_is_kept() {
    let mut cluster = Cluster::east(Fleet::with(&[
        "--fleet",
        "harbour",
        "--certificate-lifetime",
        "1s",
    ]))
    .await;
    let dir = cluster.fleet.dir.path().join("n1");
    cluster.enrol("n1", &dir).await.expect("enrolled");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cluster.fleet.down();
    assert!(cluster.enrol("n1", &dir).await.expect("enrolled").already);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_node_cluster_or_role_is_refused_and_left_alone() {
    let cluster = Cluster::east(Fleet::start()).await;
    let dir = cluster.fleet.dir.path().join("n1");
    cluster.enrol("n1", &dir).await.expect("enrolled");
    let before = fs::read(dir.join("member.json")).expect("read");
    let refused = |error: EnrolError, shown: &str| {
        let text = error.to_string();
        assert!(matches!(error, EnrolError::OtherNode { .. }), "{text}");
        assert!(text.contains(shown), "{text}");
        assert_eq!(fs::read(dir.join("member.json")).expect("read"), before);
    };
    let error = cluster.enrol("n2", &dir).await.unwrap_err();
    refused(error, "this is gateway `n2` of cluster `east`");
    let (file, credential) = enrol::read_enrolment(&cluster.secret).expect("mounted");
    let agent = cluster.token("subsea-agent", "n1");
    let error = by_service_account(&file, &credential, &agent, &dir)
        .await
        .unwrap_err();
    refused(error, "this is agent `n1`");
    let mut west = file.clone();
    west.cluster = "west".parse().expect("a name");
    let token = cluster.token("subsea-gateway", "n1");
    let error = by_service_account(&west, &credential, &token, &dir)
        .await
        .unwrap_err();
    refused(error, "cluster `west`");
    let mut other = file.clone();
    other.fleet = "other".parse().expect("a name");
    let error = by_service_account(&other, &credential, &token, &dir)
        .await
        .unwrap_err();
    refused(error, "fleet `other`");
    // What the broker would refuse is asked before anything is there.
    let error = by_service_account(
        &west,
        &credential,
        &token,
        &cluster.fleet.dir.path().join("w"),
    )
    .await;
    let EnrolError::Client(error) = error.unwrap_err() else {
        panic!("the broker was not asked")
    };
    assert_eq!(error.code(), Some(Code::CredentialUnknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_broker_has_forgotten_enrols_again() {
    let cluster = Cluster::east(Fleet::start()).await;
    let dir = cluster.fleet.dir.path().join("n1");
    let first = cluster.enrol("n1", &dir).await.expect("enrolled");
    let state = StateDir::open(&dir).expect("a directory");
    let client = |state: &StateDir| {
        let certificate = state.certificate().expect("read").expect("there");
        let key = state.tls_key().expect("read").expect("there");
        BrokerClient::with_identity(&first.membership.broker, &certificate, &key, None)
            .expect("a client")
    };
    // It says so itself: its API server has a further key.
    let keys = accounts(&[&cluster.signer, &Signer::rsa("k2")])["keys"].clone();
    let keys = ServiceAccountKeys {
        keys: serde_json::from_value(keys).expect("keys"),
    };
    client(&state)
        .put_service_accounts(&keys)
        .await
        .expect("taken");
    cluster
        .fleet
        .admin("gateway forget --cluster east --node n1")
        .exits(0);
    let error = client(&state).watch(None, 0).await.expect_err("refused");
    assert_eq!(error.code(), Some(Code::NotMember));
    assert!(
        cluster.enrol("n1", &dir).await.expect("enrolled").already,
        "it looks enrolled"
    );
    // The daemon, which owns the directory, asks again.
    let lock = state.lock().expect("owned");
    let token = cluster.token("subsea-gateway", "n1");
    let again = by_service_account_again(&cluster.file, &cluster.credential, &token, &state, &lock)
        .await
        .expect("enrolled");
    assert!(!again.already);
    client(&state).watch(None, 0).await.expect("a member again");
    let error = cluster.enrol("n1", &dir).await.unwrap_err();
    assert!(matches!(error, EnrolError::State(_)), "owned: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_withdrawn_by_its_operator() {
    let cluster = Cluster::east(Fleet::start()).await;
    cluster
        .enrol("n1", &cluster.fleet.dir.path().join("n1"))
        .await
        .expect("enrolled");
    let client = BrokerClient::anonymous(&cluster.file.broker, None).expect("a client");
    let withdrawal = |account: &str| WithdrawRequest {
        fleet: cluster.file.fleet.clone(),
        cluster: cluster.file.cluster.clone(),
        service_account_token: cluster.token(account, "n1"),
    };
    let error = client
        .withdraw(&withdrawal("subsea-gateway"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::ServiceAccountRefused));
    assert!(error.hint().is_some());
    for _ in 0..2 {
        client
            .withdraw(&withdrawal("subsea-operator"))
            .await
            .expect("withdrawn");
    }
    assert!(cluster.fleet.clusters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_has_moved_is_found_by_the_secret() {
    let mut cluster = Cluster::east(Fleet::start()).await;
    let dir = cluster.fleet.dir.path().join("n1");
    cluster.enrol("n1", &dir).await.expect("enrolled");
    cluster.file.broker.urls = vec!["https://moved.example:8443".to_owned()];
    cluster.mount();
    let joined = cluster.enrol("n1", &dir).await.expect("enrolled");
    assert!(joined.already);
    let urls = &joined.membership.broker.urls;
    assert_eq!(
        (urls[0].as_str(), urls.len()),
        ("https://moved.example:8443", 2)
    );
    let kept = StateDir::open(&dir)
        .expect("there")
        .membership()
        .expect("read");
    assert_eq!(kept, Some(joined.membership.clone()));
    // Another authority that cannot be reached does not stop a node that is enrolled.
    let other = Fleet::start();
    let foreign = enrol::read_join_file(Path::new(&other.token("east", "member"))).expect("a file");
    cluster.file.broker = foreign.broker;
    drop(other);
    cluster.mount();
    let joined = cluster.enrol("n1", &dir).await.expect("enrolled");
    assert!(joined.already);
    assert_eq!(kept, Some(joined.membership));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_wrong_is_named() {
    let cluster = Cluster::east(Fleet::start()).await;
    let missing = enrol::read_enrolment(&cluster.fleet.dir.path().join("none")).unwrap_err();
    assert!(missing.to_string().contains(ENROLMENT_FILE), "{missing}");
    let secret = cluster.credential.expose();
    for (name, text) in [
        (ENROLMENT_FILE, "version: 1\n"),
        (CREDENTIAL_FILE, &secret[..20]),
        (CREDENTIAL_FILE, ""),
    ] {
        cluster.mount();
        fs::write(cluster.secret.join(name), text).expect("written");
        let error = enrol::read_enrolment(&cluster.secret).unwrap_err();
        assert!(matches!(error, EnrolError::Unusable { .. }), "{error}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains(name) && !shown.contains(&secret[9..20]),
            "{shown}"
        );
        assert!(error.hint().is_some());
    }
    let path = cluster.fleet.dir.path().join("token");
    fs::write(&path, "no.token").expect("written");
    let error = enrol::read_service_account_token(&path).unwrap_err();
    assert!(matches!(error, EnrolError::Unusable { .. }), "{error}");
}
