//! What a node's object says of it. PURE but for [`read`]. Shell.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};

/// The annotation of a node that says where its gateway is found by those of other clusters: an address, or one with a port.
pub const ENDPOINT: &str = "subsea.dev/endpoint";

/// What is taken from a node's object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// What [`ENDPOINT`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Its addresses of type `ExternalIP`.
    #[serde(default)]
    pub external: Vec<IpAddr>,
    /// Its addresses of type `InternalIP`.
    #[serde(default)]
    pub internal: Vec<IpAddr>,
    /// Its uid; only of one that was read now.
    #[serde(skip)]
    pub uid: String,
}

/// An annotation that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the annotation `{ENDPOINT}` of this node is `{0}`, which is no endpoint: write an address that other gateways can send \
     to, such as 192.0.2.1, 192.0.2.1:51820 or [2001:db8::1]:51820"
)]
pub struct BadEndpoint(String);

impl NodeFacts {
    /// Takes them from the object.
    pub fn of(node: &Node) -> Self {
        let annotations = node.metadata.annotations.as_ref();
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref());
        let of_type = |kind: &str| {
            let all = addresses.into_iter().flatten();
            let all = all.filter(|address| address.type_ == kind);
            all.filter_map(|address| address.address.parse().ok())
                .collect()
        };
        Self {
            endpoint: annotations.and_then(|all| all.get(ENDPOINT).cloned()),
            external: of_type("ExternalIP"),
            internal: of_type("InternalIP"),
            uid: node.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// Where the node's gateway is found, which listens on `port`: as the annotation says, else its external address, else
    /// its internal one, else the one that the pod was `told`.
    ///
    /// # Errors
    /// [`BadEndpoint`].
    pub fn endpoint(
        &self,
        told: Option<IpAddr>,
        port: u16,
    ) -> Result<Option<SocketAddr>, BadEndpoint> {
        if let Some(text) = &self.endpoint {
            let bad = || BadEndpoint(text.chars().take(80).collect());
            let text = text.trim();
            let endpoint = text
                .parse::<SocketAddr>()
                .or_else(|_| text.parse().map(|address: IpAddr| (address, port).into()))
                .map_err(|_| bad())?;
            let address = endpoint.ip();
            let unusable =
                address.is_unspecified() || address.is_multicast() || address.is_loopback();
            if unusable || endpoint.port() == 0 {
                return Err(bad());
            }
            return Ok(Some(endpoint));
        }
        let first = self.external.first().or(self.internal.first()).copied();
        Ok(first.or(told).map(|address| (address, port).into()))
    }

    /// The node as the owner of what is written of it.
    pub fn owner(&self, name: &str) -> Option<OwnerReference> {
        (!self.uid.is_empty()).then(|| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.to_owned(),
            uid: self.uid.clone(),
            ..OwnerReference::default()
        })
    }
}

/// Reads them; none when there is no such node.
///
/// # Errors
/// When the API server does not answer, or refuses.
pub async fn read(client: &Client, name: &str) -> Result<Option<NodeFacts>, kube::Error> {
    let node = Api::<Node>::all(client.clone()).get_opt(name).await?;
    Ok(node.as_ref().map(NodeFacts::of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(annotation: Option<&str>, addresses: &[(&str, &str)]) -> NodeFacts {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(kind, address)| serde_json::json!({"type": kind, "address": address}))
            .collect();
        let mut node = serde_json::json!({
            "metadata": {"name": "n", "uid": "u", "annotations": {}},
            "status": {"addresses": addresses},
        });
        if let Some(annotation) = annotation {
            node["metadata"]["annotations"][ENDPOINT] = annotation.into();
        }
        NodeFacts::of(&serde_json::from_value(node).unwrap())
    }

    #[test]
    fn the_annotation_goes_before_the_external_address_and_that_before_the_internal_one() {
        let all = [
            ("Hostname", "n-1"),
            ("InternalIP", "10.0.0.5"),
            ("ExternalIP", "192.0.2.5"),
            ("ExternalIP", "2001:db8::5"),
        ];
        let endpoint = |facts: &NodeFacts| {
            let told = Some([10, 0, 0, 9].into());
            facts.endpoint(told, 51820).unwrap().unwrap().to_string()
        };
        assert_eq!(
            endpoint(&facts(Some("192.0.2.77"), &all)),
            "192.0.2.77:51820"
        );
        assert_eq!(
            endpoint(&facts(Some("[2001:db8::1]:4500"), &all)),
            "[2001:db8::1]:4500"
        );
        assert_eq!(endpoint(&facts(None, &all)), "192.0.2.5:51820");
        assert_eq!(endpoint(&facts(None, &all[..2])), "10.0.0.5:51820");
        assert_eq!(endpoint(&facts(None, &[])), "10.0.0.9:51820");
        assert_eq!(NodeFacts::default().endpoint(None, 1), Ok(None));
    }

    #[test]
    fn an_annotation_that_is_no_endpoint_is_named() {
        for bad in [
            "",
            "gw.example.net:51820",
            "0.0.0.0",
            "127.0.0.1:5",
            "224.0.0.1",
            "192.0.2.1:0",
            "192.0.2.1:99999",
        ] {
            let error = facts(Some(bad), &[]).endpoint(None, 1).unwrap_err();
            assert!(error.to_string().contains(ENDPOINT), "{bad}");
        }
    }

    #[test]
    fn the_node_owns_what_is_written_of_it() {
        let owner = facts(None, &[]).owner("n").unwrap();
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "u"));
        assert_eq!(NodeFacts::default().owner("n"), None);
    }
}
