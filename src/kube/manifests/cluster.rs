//! What a member cluster runs: `manifests/cluster`. PURE.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use subsea_api::{ClusterId, FleetName};

use super::edit::Draft;
use super::yaml::{ManifestError, parse};
use super::{IMAGE, Image, Object};
use crate::kube::labels;

/// The namespace unless another one is named.
pub const NAMESPACE: &str = "subsea";

/// The files, in the order in which their objects are made.
const FILES: [(&str, &str); 6] = [
    (
        "cluster/crds.yaml",
        include_str!("../../../manifests/cluster/crds.yaml"),
    ),
    (
        "cluster/namespace.yaml",
        include_str!("../../../manifests/cluster/namespace.yaml"),
    ),
    (
        "cluster/accounts.yaml",
        include_str!("../../../manifests/cluster/accounts.yaml"),
    ),
    (
        "cluster/roles.yaml",
        include_str!("../../../manifests/cluster/roles.yaml"),
    ),
    (
        "cluster/configuration.yaml",
        include_str!("../../../manifests/cluster/configuration.yaml"),
    ),
    (
        "cluster/daemons.yaml",
        concat!(
            include_str!("../../../manifests/cluster/gateway.yaml"),
            "---\n",
            include_str!("../../../manifests/cluster/agent.yaml"),
        ),
    ),
];

/// The same of the component that has a cluster admitted.
const ADMISSION: [(&str, &str); 3] = [
    (
        "components/admission/account.yaml",
        include_str!("../../../manifests/components/admission/account.yaml"),
    ),
    (
        "components/admission/roles.yaml",
        include_str!("../../../manifests/components/admission/roles.yaml"),
    ),
    (
        "components/admission/job.yaml",
        include_str!("../../../manifests/components/admission/job.yaml"),
    ),
];

/// What can be chosen about the daemons of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterOptions {
    /// Where they live.
    pub namespace: String,
    /// Their image.
    pub image: Image,
    /// The text of `config.yaml`; none: no settings.
    pub config: Option<String>,
    /// The labels of nodes that are gateways.
    pub gateway_selector: BTreeMap<String, String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            image: Image::new(IMAGE),
            config: None,
            gateway_selector: BTreeMap::from([(labels::GATEWAY.to_owned(), "true".to_owned())]),
        }
    }
}

/// The objects of a member cluster, in the order in which to make them.
///
/// # Errors
/// [`ManifestError`] when the files in this program do not have what is to be put in.
pub fn cluster(options: &ClusterOptions) -> Result<Vec<Object>, ManifestError> {
    let mut draft = Draft {
        file: "cluster",
        objects: Vec::new(),
    };
    for (file, text) in FILES {
        draft.objects.extend(parse(file, text)?);
    }
    draft.namespace(NAMESPACE, &options.namespace)?;
    for daemon in ["subsea-gateway", "subsea-agent"] {
        draft.image("DaemonSet", daemon, &options.image)?;
    }
    if let Some(config) = &options.config {
        let text = "/data/config.yaml";
        draft.set("ConfigMap", "subsea-config", text, json!(config))?;
    }
    let selector = draft.at(
        "DaemonSet",
        "subsea-gateway",
        "/spec/template/spec/nodeSelector",
    )?;
    let mut nodes = json!({ "kubernetes.io/os": "linux" });
    for (key, value) in &options.gateway_selector {
        nodes[key] = json!(value);
    }
    *selector = nodes;
    Ok(draft.objects)
}

/// What has a cluster admitted from within, for who installs without this program: `manifests/components/admission`.
///
/// # Errors
/// [`ManifestError`] when the files in this program do not have what is to be put in.
pub fn admission(options: &ClusterOptions) -> Result<Vec<Object>, ManifestError> {
    let mut draft = Draft {
        file: "components/admission",
        objects: Vec::new(),
    };
    for (file, text) in ADMISSION {
        draft.objects.extend(parse(file, text)?);
    }
    draft.rename(NAMESPACE, &options.namespace);
    draft.image("Job", "subsea-admission", &options.image)?;
    Ok(draft.objects)
}

/// What sweeps the nodes of a cluster that leaves; `of`: what is of another fleet or cluster stays.
///
/// # Errors
/// [`ManifestError`] when the file in this program does not have what is to be put in.
pub fn sweeper(
    namespace: &str,
    image: &Image,
    of: Option<(&FleetName, &ClusterId)>,
) -> Result<Vec<Object>, ManifestError> {
    let text = include_str!("../../../manifests/leave/sweeper.yaml");
    let mut draft = Draft {
        file: "leave/sweeper.yaml",
        objects: parse("leave/sweeper.yaml", text)?,
    };
    for object in &mut draft.objects {
        object.metadata.namespace = Some(namespace.to_owned());
    }
    let (kind, name) = ("DaemonSet", "subsea-sweeper");
    draft.image(kind, name, image)?;
    if let Some((fleet, cluster)) = of {
        let args = "/spec/template/spec/containers/0/args";
        if let Value::Array(args) = draft.at(kind, name, args)? {
            args.push(json!(format!("--fleet={fleet}")));
            args.push(json!(format!("--cluster={cluster}")));
        }
    }
    Ok(draft.objects)
}
