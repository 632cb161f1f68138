//! Puts a broker into a management cluster, and waits until it answers. Shell.

mod address;
mod answer;
mod live;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use subsea_api::admin::{AdminFile, BrokerStatus};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::apply::{Applier, Progress};
use super::error::KubeError;
use super::manifests::{self, BrokerOptions, Expose, ManifestError, Object};
use super::tenants;
use crate::broker_client::ClientError;
use crate::membership::chain;

/// The Service, and the `StatefulSet`.
const BROKER: &str = "subsea-broker";
/// Where the broker writes how operators reach it.
const ADMIN_SECRET: &str = "subsea-broker-admin";
/// The key in it.
const ADMIN_FILE: &str = "admin.yaml";
/// How often it is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(500);

/// What can be chosen.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// About the broker; its `advertise` is found here. What is `None` stays as it is where a broker is there already.
    pub broker: BrokerOptions,
    /// Members are told no URLs but those of now.
    pub drop_urls: bool,
    /// How long to wait until it answers.
    pub timeout: Duration,
    /// Take over fields that belong to others.
    pub force: bool,
}

/// A broker that answers.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// The URLs by which members reach it, best first.
    pub urls: Vec<String>,
    /// What it says.
    pub status: BrokerStatus,
}

/// Why there is no broker that answers.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The objects cannot be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The cluster did not do what it was asked.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// Another part of Subsea lives there.
    #[error("the daemons of a cluster live in the namespace {0}, which the broker cannot share")]
    DaemonsHere(String),
    /// There is no address for members.
    #[error("members have no way to the broker: {why}")]
    NoAddress {
        /// Why.
        why: String,
        /// What else to try.
        hint: &'static str,
    },
    /// What a volume is cannot be changed.
    #[error(
        "the volume of the broker that is there has {is}: it cannot be made another one with {flag} {said}"
    )]
    Volume {
        /// Which flag.
        flag: &'static str,
        /// What it says.
        said: String,
        /// What is there.
        is: String,
    },
    /// It runs, and this host does not reach it.
    #[error(
        "the broker runs, but it does not answer this host after {seconds} s: {}",
        chain(source)
    )]
    NotReached {
        /// How long it was waited.
        seconds: u64,
        /// Why.
        source: ClientError,
    },
    /// There is no admin file.
    #[error("the Secret `{namespace}/{ADMIN_SECRET}` has no usable `{ADMIN_FILE}`: {why}")]
    NoAdminFile {
        /// Where.
        namespace: String,
        /// Why.
        why: String,
    },
}

impl DeployError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kube(error) => error.hint(),
            Self::NoAddress { hint, .. } => Some((*hint).to_owned()),
            Self::NotReached { source, .. } => Some(source.hint().unwrap_or_else(|| {
                "members must reach it by that URL: see what is between them and the cluster".into()
            })),
            Self::NoAdminFile { .. } => Some(
                "the broker writes it when it starts: see `kubectl logs statefulset/subsea-broker`, \
                 or put one there with `subsea deploy-broker`"
                    .into(),
            ),
            Self::DaemonsHere(_) => {
                Some("choose another one with `--namespace`; `subsea-broker` is the default".into())
            }
            Self::Volume { .. } => Some(
                "leave the flag out: the volume stays as it is. Where its class allows it, `kubectl edit persistentvolumeclaim \
                 data-subsea-broker-0` makes it larger"
                    .into(),
            ),
            Self::Manifest(_) => None,
        }
    }
}

/// The objects as they are known without asking the cluster: a URL that is given, but no address that is still to be had.
///
/// # Errors
/// [`ManifestError`].
pub fn planned(options: &BrokerOptions) -> Result<Vec<Object>, ManifestError> {
    let mut options = options.clone();
    options.expose.get_or_insert(Expose::LoadBalancer);
    if let Some(Expose::Url(url)) = &options.expose {
        options.advertise = vec![url.clone()];
    }
    manifests::broker(&options)
}

/// Installs the broker, or brings it up to date, and waits until it answers at the address that members are told.
///
/// # Errors
/// [`DeployError`], with what stands in the way. It can be repeated.
pub async fn deploy_broker(
    client: Client,
    options: &DeployOptions,
    progress: Progress<'_>,
) -> Result<Deployed, DeployError> {
    let limit = Instant::now() + options.timeout;
    let mut broker = options.broker.clone();
    broker.api_ports = api_ports(&client).await?;
    if tenants::has_daemons(&client, &broker.namespace).await? {
        return Err(DeployError::DaemonsHere(broker.namespace));
    }
    let live = live::Live::read(&client, &broker.namespace).await?;
    live.settle(&mut broker)?;
    let mut applier = Applier::new(client.clone(), options.force);
    // The Service first: the broker is to be told the address that it gets.
    let (_, before) = split(manifests::broker(&broker)?);
    applier.apply(&before, &mut *progress).await?;
    let urls = addresses(&client, &broker, limit, &mut *progress).await?;
    progress(&format!("members reach it at {}", urls.join(", ")));
    broker.advertise.clone_from(&urls);
    let others = live.others(&urls);
    if !others.is_empty() && !options.drop_urls {
        progress(&format!(
            "members that know it at {} may go on to use that: `--drop-urls` ends it",
            others.join(", ")
        ));
        broker.advertise.extend(others);
    }
    let (set, _) = split(manifests::broker(&broker)?);
    applier.apply(&set, &mut *progress).await?;
    let waited = answer::Wait {
        client: &client,
        namespace: &broker.namespace,
        urls: &urls,
        told: &broker.advertise,
        limit,
        timeout: options.timeout,
    };
    let status = waited.until(&mut *progress).await?;
    Ok(Deployed { urls, status })
}

/// The `StatefulSet`, and all else.
fn split(objects: Vec<Object>) -> (Vec<Object>, Vec<Object>) {
    objects
        .into_iter()
        .partition(|o| o.types.as_ref().is_some_and(|t| t.kind == "StatefulSet"))
}

/// The ports of the API server as pods see it behind its Service.
async fn api_ports(client: &Client) -> Result<BTreeSet<u16>, KubeError> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let params = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let slices = slices
        .list(&params)
        .await
        .map_err(|e| KubeError::of("list", "EndpointSlices of the API server", e))?;
    let ports = slices.items.iter().flat_map(|s| s.ports.iter().flatten());
    Ok(ports
        .filter_map(|p| p.port.and_then(|port| u16::try_from(port).ok()))
        .collect())
}

/// By which URLs members reach the broker, as soon as that is known.
async fn addresses(
    client: &Client,
    broker: &BrokerOptions,
    limit: Instant,
    progress: Progress<'_>,
) -> Result<Vec<String>, DeployError> {
    let services: Api<Service> = Api::namespaced(client.clone(), &broker.namespace);
    let service = async || {
        let what = || format!("Service {}/{BROKER}", broker.namespace);
        services
            .get(BROKER)
            .await
            .map_err(|e| KubeError::of("get", what(), e))
    };
    match &broker.expose {
        None => Ok(Vec::new()),
        Some(Expose::Url(url)) => Ok(vec![url.clone()]),
        Some(Expose::NodePort) => {
            let nodes: Api<Node> = Api::all(client.clone());
            let nodes = nodes
                .list(&ListParams::default())
                .await
                .map_err(|e| KubeError::of("list", "nodes", e))?;
            address::of_nodes(&service().await?, &nodes.items).map_err(|why| {
                DeployError::NoAddress {
                    why,
                    hint: "name a URL that leads to the Service: --expose https://HOST:PORT",
                }
            })
        }
        Some(Expose::LoadBalancer) => {
            let mut told = false;
            loop {
                let urls = address::of_load_balancer(&service().await?);
                if !urls.is_empty() {
                    return Ok(urls);
                }
                if Instant::now() >= limit {
                    return Err(DeployError::NoAddress {
                        why: format!(
                            "the Service {}/{BROKER} of type LoadBalancer has got no address",
                            broker.namespace
                        ),
                        hint: "does the cluster have load balancers? Otherwise use --expose nodeport, or \
                               --expose https://HOST:PORT",
                    });
                }
                if !told {
                    told = true;
                    progress("waiting for an address of the load balancer");
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// How an operator reaches the broker of a cluster: read from its Secret.
///
/// # Errors
/// [`DeployError::NoAdminFile`] when it is not there, or not whole; [`DeployError::Kube`].
pub async fn admin_file(client: &Client, namespace: &str) -> Result<AdminFile, DeployError> {
    let none = |why: &str| DeployError::NoAdminFile {
        namespace: namespace.to_owned(),
        why: why.to_owned(),
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets
        .get_opt(ADMIN_SECRET)
        .await
        .map_err(|e| KubeError::of("get", format!("Secret {namespace}/{ADMIN_SECRET}"), e))?;
    let Some(secret) = secret else {
        return Err(none("there is no such Secret"));
    };
    let Some(bytes) = secret.data.and_then(|mut d| d.remove(ADMIN_FILE)) else {
        return Err(none("the broker has not written it yet"));
    };
    let bytes = Zeroizing::new(bytes.0);
    let text = std::str::from_utf8(&bytes).map_err(|_| none("it is no text"))?;
    AdminFile::parse(text).map_err(|e| none(&e.to_string()))
}
