//! The Secret by which the nodes of a cluster enrol, and the broker's word that it is worth something. Shell.
//!
//! The Secret is written before the broker is asked, and again after it has answered: an admission that dies between the two is
//! repeated with the same credential, and the broker answers it alike.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use subsea_api::enrolment::{AdmitRequest, ServiceAccounts};
use subsea_api::enrolment_file::EnrolmentFile;
use subsea_api::join_file::JoinFile;
use subsea_api::jwks::Jwks;
use subsea_api::member::CidrRequests;
use subsea_api::{Role, ServiceAccountToken, Token};

use super::InstallError;
use crate::broker_client::{BrokerClient, ClientError};
use crate::enrol::{self, CREDENTIAL_FILE, ENROLMENT_FILE, wanted};
use crate::kube::apply::{MANAGER, Progress};
use crate::kube::error::{KubeError, is_absent};
use crate::kube::labels;
use crate::kube::operator_token::operator_token;

/// Holds what the nodes enrol with.
pub const SECRET: &str = "subsea-enrolment";
/// On the Secret: `pending` until the broker has answered, then the name of the join token that admitted the cluster, and `left` at last.
const ADMISSION: &str = "subsea.dev/admission";
/// Its value while nobody knows whether the broker has heard of the credential.
const PENDING: &str = "pending";
/// Its value from when the broker has been told that the cluster leaves.
const LEFT: &str = "left";

/// What the Secret says.
#[derive(Debug, Clone)]
pub struct Standing {
    namespace: String,
    secret: Option<Secret>,
}

impl Standing {
    /// Reads the Secret, if there is one.
    ///
    /// # Errors
    /// [`KubeError`] when the API server refuses.
    pub async fn read(client: &Client, namespace: &str) -> Result<Self, KubeError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let found = secrets.get_opt(SECRET).await;
        let secret =
            found.map_err(|e| KubeError::of("get", format!("Secret {namespace}/{SECRET}"), e))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            secret,
        })
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.secret.is_some()
    }

    /// Who the cluster is, or is to be.
    pub fn file(&self) -> Option<EnrolmentFile> {
        EnrolmentFile::parse(value(self.secret.as_ref()?, ENROLMENT_FILE)?).ok()
    }

    /// Who the cluster is, when its nodes can enrol with what is there. An admission that was not answered is none.
    pub fn enrolled(&self) -> Option<EnrolmentFile> {
        let whole = !self.is_pending() && self.credential().is_some();
        self.file().filter(|_| whole)
    }

    /// Whether it was this token that admitted the cluster with what is there.
    pub fn is_by(&self, token: &Token) -> bool {
        self.admission() == Some(token.id().as_str())
    }

    /// Whether the broker was told that the cluster leaves, and the nodes are not swept yet.
    pub fn has_left(&self) -> bool {
        self.admission() == Some(LEFT)
    }

    /// Takes the credential out, and keeps who the cluster was: what is on its nodes is still to be told from what is of others.
    /// What is not ours stays as it is.
    ///
    /// # Errors
    /// [`KubeError`] when the API server refuses.
    pub async fn leave(&self, client: &Client) -> Result<(), KubeError> {
        let Some(there) = &self.secret else {
            return Ok(());
        };
        let is_ours =
            |(key, value): (&str, &str)| there.labels().get(key).is_some_and(|v| v == value);
        let Some(known) = value(there, ENROLMENT_FILE) else {
            return Ok(());
        };
        if !labels::ours().into_iter().all(is_ours) {
            return Ok(());
        }
        let mut left = secret_of(&self.namespace, known);
        let annotations = left.annotations_mut();
        annotations.insert(ADMISSION.to_owned(), LEFT.to_owned());
        let what = format!("Secret {}/{SECRET}", self.namespace);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let params = PatchParams::apply(MANAGER).force();
        let done = secrets.patch(SECRET, &params, &Patch::Apply(&left)).await;
        done.map(drop).map_err(|e| KubeError::of("apply", what, e))
    }

    /// Whether nobody knows that the broker has admitted the cluster: it has not answered, or has refused.
    pub fn is_pending(&self) -> bool {
        self.admission() == Some(PENDING)
    }

    /// Where the Secret is, or would be.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The credential that is there, when it is of the join file's cluster.
    pub(super) fn credential_for(&self, file: &JoinFile) -> Option<Token> {
        let there = self.file()?;
        let is_same = there.fleet == file.fleet && there.cluster == file.cluster;
        self.credential().filter(|_| is_same)
    }

    /// Refuses a join file of another cluster. An admission that was not answered may be replaced: should the broker have heard of it
    /// after all, it has this cluster's keys on record under that id, and takes them under no other.
    ///
    /// # Errors
    /// [`InstallError::OtherCluster`].
    pub fn check(&self, file: &JoinFile) -> Result<(), InstallError> {
        match self.file() {
            Some(there)
                if !self.is_pending()
                    && (there.fleet != file.fleet || there.cluster != file.cluster) =>
            {
                Err(InstallError::OtherCluster {
                    namespace: self.namespace.clone(),
                    cluster: there.cluster.to_string(),
                    fleet: there.fleet.to_string(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn credential(&self) -> Option<Token> {
        let text = value(self.secret.as_ref()?, CREDENTIAL_FILE)?;
        text.trim().parse().ok()
    }

    fn admission(&self) -> Option<&str> {
        let annotations = self.secret.as_ref()?.annotations();
        annotations.get(ADMISSION).map(String::as_str)
    }
}

fn value<'s>(secret: &'s Secret, key: &str) -> Option<&'s str> {
    let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(bytes).ok()
}

/// By which token who asks shows that it is at home where the cluster's keys are from.
#[derive(Debug, Clone)]
pub enum Proof {
    /// Of the operator's account: an administrator asks the API server for it.
    Operator,
    /// Of the Job's account, in this file.
    File(PathBuf),
}

/// A cluster that asks to be admitted.
pub struct Applicant<'a> {
    client: &'a Client,
    file: &'a JoinFile,
    standing: Standing,
    accounts: ServiceAccounts,
    force: bool,
}

impl std::fmt::Debug for Applicant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applicant").finish_non_exhaustive()
    }
}

impl<'a> Applicant<'a> {
    /// Reads what the broker is to be told; nothing is touched. `force`: fields of the Secret that others have written are taken
    /// over.
    ///
    /// # Errors
    /// [`InstallError::OtherCluster`], [`InstallError::Issuer`], [`InstallError::Kube`].
    pub async fn new(
        client: &'a Client,
        file: &'a JoinFile,
        standing: Standing,
        force: bool,
    ) -> Result<Self, InstallError> {
        standing.check(file)?;
        let accounts = service_accounts(client, &standing.namespace).await?;
        Ok(Self {
            client,
            file,
            standing,
            accounts,
            force,
        })
    }

    /// Asks the broker to admit the cluster, and keeps what its nodes enrol with. Can be repeated.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn admit(
        self,
        cidrs: &CidrRequests,
        proof: &Proof,
        progress: Progress<'_>,
    ) -> Result<EnrolmentFile, InstallError> {
        let file = self.file;
        let service_account_token = self.token(proof).await?;
        let credential = if let Some(credential) = self.standing.credential_for(file) {
            credential
        } else {
            if let Some(other) = self.standing.file()
                && other.cluster != file.cluster
            {
                progress(&format!(
                    "instead of cluster {}, which was not admitted",
                    other.cluster
                ));
            }
            let made = random()?;
            // With who the cluster is to be: a leave can tell the broker even if this ends before the answer comes.
            let known = before_admission(file);
            self.keep(&known, &made, PENDING).await?;
            made
        };
        let broker = BrokerClient::anonymous(&file.broker, None).map_err(InstallError::Broker)?;
        let admitted = broker
            .admit(&AdmitRequest {
                fleet: file.fleet.clone(),
                cluster: file.cluster.clone(),
                token: file.token.clone(),
                credential: credential.clone(),
                cidrs: cidrs.clone(),
                service_accounts: self.accounts.clone(),
                service_account_token,
            })
            .await
            .map_err(|error| self.refused(error))?;
        progress(&format!(
            "cluster {} is a member of fleet {}",
            admitted.cluster, admitted.fleet
        ));
        if !wanted::satisfied(Role::Member, cidrs, &admitted.allocations) {
            let blocks = admitted.allocations.iter().map(|a| a.cidr.to_string());
            return Err(InstallError::OtherBlocks(
                blocks.collect::<Vec<_>>().join(", "),
            ));
        }
        let enrolment = EnrolmentFile::new(admitted.fleet, admitted.cluster, admitted.broker);
        self.keep(&enrolment, &credential, &file.token.id()).await?;
        Ok(enrolment)
    }

    /// A used token is no answer to who brings the credential that it was used with: then there is no such member any more.
    fn refused(&self, error: ClientError) -> InstallError {
        let error = InstallError::Broker(error);
        if !error.is_used() {
            return error;
        }
        InstallError::NoMember {
            namespace: self.standing.namespace.clone(),
            cluster: self.file.cluster.to_string(),
        }
    }

    async fn token(&self, proof: &Proof) -> Result<ServiceAccountToken, InstallError> {
        let namespace = &self.standing.namespace;
        match proof {
            Proof::File(path) => Ok(enrol::read_service_account_token(path)?),
            Proof::Operator => match operator_token(self.client, namespace).await {
                Err(error) if error.is_missing() => Err(InstallError::NoAccount(namespace.clone())),
                token => Ok(token?),
            },
        }
    }

    async fn keep(
        &self,
        enrolment: &EnrolmentFile,
        credential: &Token,
        admission: &str,
    ) -> Result<(), InstallError> {
        let namespace = &self.standing.namespace;
        let mut secret = secret(namespace, enrolment)?;
        let annotations = secret.annotations_mut();
        annotations.insert(ADMISSION.to_owned(), admission.to_owned());
        let credential = ByteString(credential.expose().into_bytes());
        let data = secret.data.get_or_insert_default();
        data.insert(CREDENTIAL_FILE.to_owned(), credential);
        // Whoever put one there for us, such as an operator of external secrets, is not contradicted silently.
        let mut params = PatchParams::apply(MANAGER);
        params.force = self.force;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match secrets.patch(SECRET, &params, &Patch::Apply(&secret)).await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Err(InstallError::NoNamespace(namespace.clone())),
            Err(error) => {
                let what = format!("Secret {namespace}/{SECRET}");
                Err(KubeError::of("apply", what, error).into())
            }
        }
    }
}

/// Who the cluster will be, as far as the join file knows.
pub(super) fn before_admission(file: &JoinFile) -> EnrolmentFile {
    EnrolmentFile::new(
        file.fleet.clone(),
        file.cluster.clone(),
        file.broker.clone(),
    )
}

/// The Secret, but for what is secret in it.
pub(super) fn secret(namespace: &str, enrolment: &EnrolmentFile) -> Result<Secret, InstallError> {
    let text = enrolment.to_yaml();
    let text = text.map_err(|e| InstallError::Broker(ClientError::Protocol(e.to_string())))?;
    Ok(secret_of(namespace, &text))
}

fn secret_of(namespace: &str, enrolment: &str) -> Secret {
    let mut all: BTreeMap<String, String> = labels::ours()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    all.insert(labels::COMPONENT.to_owned(), "enrolment".to_owned());
    let enrolment = ByteString(enrolment.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(all),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some([(ENROLMENT_FILE.to_owned(), enrolment)].into()),
        ..Secret::default()
    }
}

/// 256 random bits.
fn random() -> Result<Token, InstallError> {
    let failed = |error: getrandom::Error| InstallError::Random {
        why: error.to_string(),
    };
    let mut secret = zeroize::Zeroizing::new([0; 32]);
    let mut id = [0; 4];
    getrandom::fill(&mut *secret).map_err(failed)?;
    getrandom::fill(&mut id).map_err(failed)?;
    Ok(Token::from_parts(u32::from_be_bytes(id), *secret))
}

/// How the broker can check the tokens of the cluster's service accounts.
pub(super) async fn service_accounts(
    client: &Client,
    namespace: &str,
) -> Result<ServiceAccounts, InstallError> {
    let unusable = |why: String| InstallError::Issuer { why };
    let read = async |path: &'static str| {
        let request = hyper::Request::get(path).body(Vec::new());
        let request = request.map_err(|e| unusable(e.to_string()))?;
        let answer = client.request_text(request).await;
        answer.map_err(|e| InstallError::Kube(KubeError::of("get", path, e)))
    };
    let configuration = read("/.well-known/openid-configuration").await?;
    let configuration: serde_json::Value =
        serde_json::from_str(&configuration).map_err(|e| unusable(e.to_string()))?;
    let issuer = configuration["issuer"].as_str().unwrap_or_default();
    let keys = read("/openid/v1/jwks").await?;
    Ok(ServiceAccounts {
        issuer: issuer.parse().map_err(|e| unusable(format!("{e}")))?,
        namespace: namespace.parse().map_err(|e| unusable(format!("{e}")))?,
        keys: Jwks::parse(&keys).map_err(|e| unusable(e.to_string()))?,
    })
}
