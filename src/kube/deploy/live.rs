//! How a broker that is there was installed: a second `deploy-broker` keeps what it is not told to change.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use super::{BROKER, DeployError};
use crate::kube::error::KubeError;
use crate::kube::manifests::{BrokerOptions, Expose};

/// So many URLs are told to members at most, beside the one inside of the cluster: they take 8.
const URLS: usize = 7;

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The type of its Service; none: there is no Service.
    service: Option<String>,
    /// Whether there is more than a Service.
    installed: bool,
    /// What members are told, but for the URL inside of the cluster.
    urls: Vec<String>,
    /// The class of its volume, where one was named, and the size.
    volume: Option<(Option<String>, Option<String>)>,
}

impl Live {
    pub(super) async fn read(client: &Client, namespace: &str) -> Result<Self, KubeError> {
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
        let failed =
            |kind: &str, e| KubeError::of("get", format!("{kind} {namespace}/{BROKER}"), e);
        let service = services.get_opt(BROKER).await;
        let set = sets.get_opt(BROKER).await;
        Ok(Self::of(
            service.map_err(|e| failed("Service", e))?,
            set.map_err(|e| failed("StatefulSet", e))?,
        ))
    }

    fn of(service: Option<Service>, set: Option<StatefulSet>) -> Self {
        let service = service.map(|service| {
            let spec = service.spec.unwrap_or_default();
            spec.type_.unwrap_or_else(|| "ClusterIP".to_owned())
        });
        let installed = set.is_some();
        let spec = set.and_then(|set| set.spec).unwrap_or_default();
        let containers = spec.template.spec.map(|pod| pod.containers);
        let args = containers.into_iter().flatten().flat_map(|container| {
            let args = container.args.into_iter().flatten();
            args.collect::<Vec<_>>()
        });
        // What the kubelet is to put in is that of the file.
        let told = |arg: String| Some(arg.strip_prefix("--advertise=")?.to_owned());
        let urls = args.filter_map(told).filter(|url| !url.contains("$("));
        let claims = spec.volume_claim_templates.unwrap_or_default();
        let claim = claims.into_iter().next().and_then(|claim| claim.spec);
        Self {
            service,
            installed,
            urls: urls.collect(),
            volume: claim.map(|claim| {
                let requests = claim.resources.and_then(|r| r.requests);
                let size = requests.and_then(|mut requests| requests.remove("storage"));
                (claim.storage_class_name, size.map(|size| size.0))
            }),
        }
    }

    /// Fills in what was not said, and refuses what cannot be changed.
    pub(super) fn settle(&self, broker: &mut BrokerOptions) -> Result<(), DeployError> {
        if broker.expose.is_none() {
            broker.expose = Some(self.expose()?);
        }
        let Some((class, size)) = &self.volume else {
            return Ok(());
        };
        for (flag, said, is) in [
            ("--storage-class", &mut broker.storage_class, class),
            ("--storage-size", &mut broker.storage_size, size),
        ] {
            if said.is_some() && said != is && !is_same_size(said.as_deref(), is.as_deref()) {
                return Err(DeployError::Volume {
                    flag,
                    said: said.clone().unwrap_or_default(),
                    is: is.clone().unwrap_or_else(|| "the default".to_owned()),
                });
            }
            said.clone_from(is);
        }
        Ok(())
    }

    fn expose(&self) -> Result<Expose, DeployError> {
        match (self.service.as_deref(), self.urls.first()) {
            (Some("NodePort"), _) => Ok(Expose::NodePort),
            (Some("ClusterIP"), Some(url)) => {
                url.parse().map_err(|why: String| DeployError::NoAddress {
                    why: format!("the broker that is there tells members {url}: {why}"),
                    hint: "name the URL that leads to the Service: --expose https://HOST:PORT",
                })
            }
            (Some("ClusterIP"), None) if self.installed => Err(DeployError::NoAddress {
                why: "the broker that is there is for its own cluster alone".to_owned(),
                hint: "say how others are to reach it: --expose loadbalancer, nodeport, or https://HOST:PORT",
            }),
            _ => Ok(Expose::LoadBalancer),
        }
    }

    /// What members know besides, and may know alone: the broker's certificate has to name it as well.
    pub(super) fn others(&self, urls: &[String]) -> Vec<String> {
        let others = self.urls.iter().filter(|url| !urls.contains(url));
        let room = URLS.saturating_sub(urls.len());
        others.take(room).cloned().collect()
    }
}

/// Whether two quantities of Kubernetes are one: the API server writes `1024Mi` as `1Gi`.
fn is_same_size(one: Option<&str>, other: Option<&str>) -> bool {
    let bytes = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = text.split_at(end);
        let powers = ["k", "M", "G", "T", "P", "E"];
        let (base, unit) = match unit.strip_suffix('i') {
            Some("K") => (1024.0_f64, "k"),
            Some(unit) => (1024.0, unit),
            None => (1000.0, unit),
        };
        let power = powers
            .iter()
            .zip(1_i32..)
            .find(|(name, _)| **name == unit)?
            .1;
        Some(number.parse::<f64>().ok()? * base.powi(power))
    };
    one.and_then(bytes)
        .zip(other.and_then(bytes))
        .is_some_and(|(one, other)| (one - other).abs() < 1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::manifests;

    /// As the API server has what was made of these options.
    fn live(options: &BrokerOptions) -> Live {
        let objects = manifests::broker(options).unwrap();
        let find = |kind: &str| {
            let of_kind = |o: &&manifests::Object| o.types.as_ref().unwrap().kind == kind;
            json!(objects.iter().find(of_kind).unwrap())
        };
        Live::of(
            Some(serde_json::from_value(find("Service")).unwrap()),
            Some(serde_json::from_value(find("StatefulSet")).unwrap()),
        )
    }

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|&url| url.to_owned()).collect()
    }

    #[test]
    fn what_is_not_said_stays() {
        for expose in [
            Expose::LoadBalancer,
            Expose::NodePort,
            Expose::Url("https://b.example:443".to_owned()),
        ] {
            let first = BrokerOptions {
                advertise: urls(&["https://b.example:443"]),
                expose: Some(expose),
                storage_class: Some("fast".to_owned()),
                storage_size: Some("10Gi".to_owned()),
                ..BrokerOptions::default()
            };
            let mut again = BrokerOptions {
                advertise: first.advertise.clone(),
                ..BrokerOptions::default()
            };
            live(&first).settle(&mut again).unwrap();
            assert_eq!(again, first);
        }
        let mut new = BrokerOptions::default();
        Live::default().settle(&mut new).unwrap();
        assert_eq!(new.expose, Some(Expose::LoadBalancer));
        assert_eq!(new.storage_size, None);
    }

    #[test]
    fn what_cannot_be_kept_or_changed_is_refused() {
        let first = BrokerOptions {
            storage_size: Some("10Gi".to_owned()),
            ..BrokerOptions::default()
        };
        let inside = live(&first);
        let mut again = BrokerOptions::default();
        let error = inside.settle(&mut again).unwrap_err();
        assert!(error.hint().unwrap().contains("--expose"), "{error}");
        again.expose = Some(Expose::NodePort);
        again.storage_size = Some("20Gi".to_owned());
        let error = inside.settle(&mut again).unwrap_err().to_string();
        assert!(
            error.contains("10Gi") && error.contains("--storage-size 20Gi"),
            "{error}"
        );
    }

    #[test]
    fn a_size_may_be_written_in_several_ways() {
        for (one, other, is) in [
            ("1024Mi", "1Gi", true),
            ("0.5Gi", "512Mi", true),
            ("1Gi", "1G", false),
            ("1Ki", "1k", false),
            ("fast", "slow", false),
        ] {
            assert_eq!(is_same_size(Some(one), Some(other)), is, "{one} {other}");
        }
        assert!(!is_same_size(None, Some("1Gi")));
    }

    #[test]
    fn members_go_on_to_be_told_what_they_know() {
        let first = BrokerOptions {
            advertise: (0..10).map(|n| format!("https://b{n}:1")).collect(),
            ..BrokerOptions::default()
        };
        let live = live(&first);
        assert_eq!(
            live.others(&urls(&["https://new:1", "https://b1:1"])),
            urls(&[
                "https://b0:1",
                "https://b2:1",
                "https://b3:1",
                "https://b4:1",
                "https://b5:1",
            ])
        );
        assert!(live.others(&first.advertise).is_empty());
    }
}
