//! The broker on a management cluster: `manifests/broker`. PURE.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::edit::Draft;
use super::yaml::{ManifestError, parse};
use super::{IMAGE, Image, Object};

/// The namespace unless another one is named.
const NAMESPACE: &str = "subsea-broker";
/// The `StatefulSet`, its Service and its policy.
const BROKER: &str = "subsea-broker";

/// The files, in the order in which their objects are made.
const FILES: [(&str, &str); 6] = [
    (
        "broker/namespace.yaml",
        include_str!("../../../manifests/broker/namespace.yaml"),
    ),
    (
        "broker/access.yaml",
        include_str!("../../../manifests/broker/access.yaml"),
    ),
    (
        "broker/secret.yaml",
        include_str!("../../../manifests/broker/secret.yaml"),
    ),
    (
        "broker/service.yaml",
        include_str!("../../../manifests/broker/service.yaml"),
    ),
    (
        "broker/network-policy.yaml",
        include_str!("../../../manifests/broker/network-policy.yaml"),
    ),
    (
        "broker/stateful-set.yaml",
        include_str!("../../../manifests/broker/stateful-set.yaml"),
    ),
];

/// How members outside of the management cluster reach the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expose {
    /// By the address that the cloud, or what stands in for it, gives the Service.
    LoadBalancer,
    /// By the addresses of the nodes, and a port that the cluster chooses.
    NodePort,
    /// By a URL that leads to the Service by means of the operator's own.
    Url(String),
}

impl Expose {
    /// The type of the Service.
    fn service_type(&self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::Url(_) => "ClusterIP",
        }
    }
}

impl FromStr for Expose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "loadbalancer" => Ok(Self::LoadBalancer),
            "nodeport" => Ok(Self::NodePort),
            url => broker_url(url).map(Self::Url),
        }
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadBalancer => f.write_str("loadbalancer"),
            Self::NodePort => f.write_str("nodeport"),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// `https://host[:port]`, made to `https://host:port`.
fn broker_url(text: &str) -> Result<String, String> {
    let shape = || {
        "write loadbalancer, nodeport, or https://HOST:PORT, such as https://broker.example.net:8443"
            .to_owned()
    };
    let url: hyper::Uri = text.parse().map_err(|_| shape())?;
    let authority = url.authority().ok_or_else(shape)?;
    let plain = url.path() == "/" && url.query().is_none() && !authority.as_str().contains('@');
    if url.scheme_str() != Some("https") || authority.host().is_empty() || !plain {
        return Err(shape());
    }
    let port = match authority.port_u16() {
        Some(port) if port > 0 => port,
        None if authority.as_str() == authority.host() => 443,
        Some(_) | None => return Err(shape()),
    };
    Ok(format!("https://{}:{port}", authority.host()))
}

/// What can be chosen about the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Where it lives.
    pub namespace: String,
    /// Its image.
    pub image: Image,
    /// How members reach it; none: not from outside.
    pub expose: Option<Expose>,
    /// URLs by which members reach it, best first, before the one inside of the cluster.
    pub advertise: Vec<String>,
    /// The class of its volume; none: the cluster's default.
    pub storage_class: Option<String>,
    /// The size of its volume.
    pub storage_size: Option<String>,
    /// Ports of the API server behind its Service, beside the usual ones.
    pub api_ports: BTreeSet<u16>,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            image: Image::new(IMAGE),
            expose: None,
            advertise: Vec::new(),
            storage_class: None,
            storage_size: None,
            api_ports: BTreeSet::new(),
        }
    }
}

/// The objects of the broker, in the order in which to make them; the `StatefulSet` is the last.
///
/// # Errors
/// [`ManifestError`] when the files in this program do not have what is to be put in.
pub fn broker(options: &BrokerOptions) -> Result<Vec<Object>, ManifestError> {
    let mut draft = Draft {
        file: "broker",
        objects: Vec::new(),
    };
    for (file, text) in FILES {
        draft.objects.extend(parse(file, text)?);
    }
    draft.namespace(NAMESPACE, &options.namespace)?;
    let container = "/spec/template/spec/containers/0";
    draft.image("StatefulSet", BROKER, &options.image)?;
    if let Some(expose) = &options.expose {
        let kind = json!(expose.service_type());
        draft.set("Service", BROKER, "/spec/type", kind)?;
    }
    if !options.advertise.is_empty() {
        advertise(&mut draft, container, &options.advertise)?;
    }
    let claim = "/spec/volumeClaimTemplates/0/spec";
    if let Some(class) = &options.storage_class {
        draft.at("StatefulSet", BROKER, claim)?["storageClassName"] = json!(class);
    }
    if let Some(size) = &options.storage_size {
        let at = format!("{claim}/resources/requests/storage");
        draft.set("StatefulSet", BROKER, &at, json!(size))?;
    }
    allow(&mut draft, &options.api_ports)?;
    Ok(draft.objects)
}

/// Puts the URLs before those that are in the file.
fn advertise(draft: &mut Draft, container: &str, urls: &[String]) -> Result<(), ManifestError> {
    let lacks = draft.lacks("`--advertise` among the arguments");
    let args = draft.at("StatefulSet", BROKER, &format!("{container}/args"))?;
    let Some(args) = args.as_array_mut() else {
        return Err(lacks);
    };
    let is_first = |arg: &Value| arg.as_str().is_some_and(|a| a.starts_with("--advertise="));
    let Some(first) = args.iter().position(is_first) else {
        return Err(lacks);
    };
    let ours = urls.iter().map(|url| json!(format!("--advertise={url}")));
    args.splice(first..first, ours);
    Ok(())
}

/// Lets the broker speak to the API server by these ports, too.
fn allow(draft: &mut Draft, ports: &BTreeSet<u16>) -> Result<(), ManifestError> {
    let lacks = draft.lacks("list of ports in the NetworkPolicy");
    let at = draft.at("NetworkPolicy", BROKER, "/spec/egress/0/ports")?;
    let Some(allowed) = at.as_array_mut() else {
        return Err(lacks);
    };
    for port in ports {
        let rule = json!({ "protocol": "TCP", "port": port });
        if !allowed.contains(&rule) {
            allowed.push(rule);
        }
    }
    Ok(())
}
