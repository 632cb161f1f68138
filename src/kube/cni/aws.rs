//! Amazon's VPC CNI: pods have addresses of the VPC, which no object of the cluster tells in full. PURE.

use serde::Serialize;
use subsea_api::Cidr;

use super::finding::{Finding, Severity, Surroundings};
use crate::kube::discover::facts::{Facts, switch, text};
use crate::kube::discover::found::{Claims, Note};
use crate::kube::discover::query::Query;

/// The VPC CNI as it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AwsVpc {
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`: it leaves translation to a NAT gateway.
    pub external_snat: bool,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`.
    pub excluded: Vec<Cidr>,
    /// The bit of marks that it uses.
    pub connmark: u32,
    /// Whether pods may have security groups of their own, and so network cards of their own.
    pub pod_eni: bool,
    /// Whether those pods' packets pass by the node's routes.
    pub strict_security_groups: bool,
    /// Subnets of pods apart from the nodes', by name of their `ENIConfig`: the subnet's id, not its block.
    pub subnets: Vec<(String, String)>,
}

const DAEMON_SET: [&str; 1] = ["aws-node"];

impl AwsVpc {
    pub(super) fn detect(facts: &Facts) -> Option<Self> {
        let configs = facts.objects(Query::EniConfigs);
        if !facts.runs(&DAEMON_SET).unwrap_or(!configs.is_empty()) {
            return None;
        }
        let variable = |name| facts.variable(&DAEMON_SET, name);
        let is_on = |name| variable(name).and_then(switch).unwrap_or(false);
        let name_and_subnet = |o| {
            let name = text(o, "/metadata/name")?.to_owned();
            Some((name, text(o, "/spec/subnet")?.to_owned()))
        };
        Some(Self {
            external_snat: is_on("AWS_VPC_K8S_CNI_EXTERNALSNAT"),
            excluded: variable("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS")
                .unwrap_or_default()
                .split(',')
                .filter_map(|c| c.trim().parse().ok())
                .collect(),
            connmark: variable("AWS_VPC_K8S_CNI_CONNMARK")
                .and_then(number)
                .unwrap_or(0x80),
            pod_eni: is_on("ENABLE_POD_ENI"),
            strict_security_groups: variable("POD_SECURITY_GROUP_ENFORCING_MODE")
                .is_none_or(|mode| mode == "strict"),
            subnets: configs.iter().filter_map(name_and_subnet).collect(),
        })
    }

    /// No block: only what helps to find it elsewhere.
    pub(super) fn claims(&self) -> Claims {
        let mut claims = Claims::default();
        let mut text = "with the AWS VPC CNI pods have addresses of the VPC's subnets, which the API does not tell: look up the blocks of \
                        all subnets in which nodes are, or may come to be"
            .to_owned();
        if !self.subnets.is_empty() {
            let named: Vec<String> = self
                .subnets
                .iter()
                .take(8)
                .map(|(name, subnet)| format!("{subnet} (ENIConfig {name})"))
                .collect();
            text = format!("{text}, and of {}", named.join(", "));
        }
        claims.notes.push(Note::info(text));
        claims
    }

    pub(super) fn findings(&self, around: Surroundings<'_>) -> Vec<Finding> {
        let mut all = vec![
            Finding::bad(
                Severity::Warns,
                "aws-source-check",
                "AWS VPC CNI",
                "nodes have no blocks of pods, so what comes out of a tunnel goes to its pod by the VPC, with the source of another \
                 cluster: the VPC drops that unless it is allowed, and it cannot be seen from here",
                "switch the source/destination check off for the gateways' instances, and let the nodes' security groups take the other \
                 clusters' blocks",
            ),
            Finding::fine(
                "aws-snat",
                if self.external_snat {
                    "DaemonSet kube-system/aws-node, AWS_VPC_K8S_CNI_EXTERNALSNAT=true"
                } else {
                    "DaemonSet kube-system/aws-node, AWS_VPC_K8S_CNI_EXTERNALSNAT=false"
                },
                "its translation is in netfilter, where Subsea has kept the source before",
            ),
        ];
        if self.pod_eni && self.strict_security_groups {
            all.push(Finding::bad(
                Severity::Warns,
                "aws-pod-security-groups",
                "DaemonSet kube-system/aws-node, ENABLE_POD_ENI=true with POD_SECURITY_GROUP_ENFORCING_MODE=strict",
                "pods with security groups of their own have a card of their own, whose packets pass by Subsea's routes",
                "set POD_SECURITY_GROUP_ENFORCING_MODE=standard, if such pods are to reach other clusters",
            ));
        }
        if self.connmark & around.marks.all() != 0 {
            all.push(Finding::bad(
                Severity::Blocks,
                "aws-mark",
                format!(
                    "DaemonSet kube-system/aws-node, AWS_VPC_K8S_CNI_CONNMARK is {:#x}",
                    self.connmark
                ),
                format!("Subsea uses {:#x} of marks", around.marks.all()),
                "set AWS_VPC_K8S_CNI_CONNMARK to 0x80, its default",
            ));
        }
        all
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::discover::facts::fixture::facts;

    const SET: &str = include_str!("fixtures/aws-node.yaml");
    const ENI: &str = "
apiVersion: crd.k8s.amazonaws.com/v1alpha1
kind: ENIConfig
metadata: {name: eu-west-1a}
spec:
  securityGroups: [sg-0dff111a1d11c1c11]
  subnet: subnet-011b111c1f11fdf11
";

    #[test]
    fn it_asks_for_the_blocks_and_names_the_subnets() {
        let facts = facts(&[(Query::DaemonSets, SET), (Query::EniConfigs, ENI)]);
        let aws = AwsVpc::detect(&facts).unwrap();
        assert!(!aws.external_snat);
        assert_eq!(aws.excluded.len(), 2);
        let claims = aws.claims();
        assert!(claims.pod.is_empty() && claims.service.is_empty());
        assert!(
            claims.notes[0]
                .text
                .contains("subnet-011b111c1f11fdf11 (ENIConfig eu-west-1a)")
        );
        assert!(
            aws.findings(Surroundings::default())
                .iter()
                .all(|f| f.severity != Severity::Blocks)
        );
    }

    #[test]
    fn marks_and_cards_that_pass_us_by_are_named() {
        let set = SET
            .replace(
                "{name: ENABLE_POD_ENI, value: \"false\"}",
                "{name: ENABLE_POD_ENI, value: \"true\"}",
            )
            .replace("standard", "strict")
            .replace(
                "- {name: AWS_VPC_K8S_CNI_LOGLEVEL, value: DEBUG}",
                "- {name: AWS_VPC_K8S_CNI_CONNMARK, value: \"0x20\"}",
            );
        let aws = AwsVpc::detect(&facts(&[(Query::DaemonSets, &set)])).unwrap();
        let ids: Vec<_> = aws
            .findings(Surroundings::default())
            .iter()
            .map(|f| (f.id, f.severity))
            .collect();
        assert!(ids.contains(&("aws-mark", Severity::Blocks)), "{ids:?}");
        assert!(
            ids.contains(&("aws-pod-security-groups", Severity::Warns)),
            "{ids:?}"
        );
    }
}
