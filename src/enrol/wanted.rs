//! What a join asks for, held against its token and against what there is. PURE.

use subsea_api::join_file::JoinFile;
use subsea_api::member::CidrRequests;
use subsea_api::{Allocation, Cidr, CidrRequest, Kind, NodeName, Role};

use super::error::EnrolError;
use crate::state::Membership;

/// Blocks belong to a cluster, so only the token that admits one goes with them.
pub(super) fn check_role(role: Role, cidrs: &CidrRequests) -> Result<(), EnrolError> {
    let fail = |message: String, hint| Err(EnrolError::Flags { message, hint });
    match role {
        Role::Member => {
            let missing: Vec<&str> = [
                ("--pod-cidr", cidrs.pod.is_empty()),
                ("--service-cidr", cidrs.service.is_empty()),
            ]
            .into_iter()
            .filter_map(|(flag, is_missing)| is_missing.then_some(flag))
            .collect();
            if missing.is_empty() {
                return Ok(());
            }
            fail(
                format!(
                    "to admit a cluster, {} must be given",
                    missing.join(" and ")
                ),
                "give the cluster's own blocks, or let the broker choose: `--pod-cidr auto/16 --service-cidr auto/20`",
            )
        }
        Role::Gateway | Role::Agent | Role::Dns => {
            let given = [
                ("--pod-cidr", !cidrs.pod.is_empty()),
                ("--service-cidr", !cidrs.service.is_empty()),
                ("--node-cidr", !cidrs.node.is_empty()),
                ("--export-nodes", cidrs.export_nodes),
            ];
            match given.into_iter().find(|(_, is_given)| *is_given) {
                None => Ok(()),
                Some((flag, _)) => fail(
                    format!("{flag} does not go with a join file of role `{role}`"),
                    "the blocks are the cluster's, which is a member already: leave the flag out",
                ),
            }
        }
        Role::Admin => fail(
            "no join file gives the role `admin`".to_owned(),
            "create a join file with `subsea-broker token create --cluster ID`",
        ),
    }
}

/// A state directory is one node's. The founder of a cluster stays what it is with a further token.
pub(super) fn check_same(
    file: &JoinFile,
    node: &NodeName,
    earlier: &Membership,
) -> Result<(), EnrolError> {
    let is = (&earlier.fleet, &earlier.cluster, &earlier.node);
    let wanted = (&file.fleet, &file.cluster, node);
    let founder = (earlier.role, file.role) == (Role::Member, Role::Gateway);
    if is == wanted && (earlier.role == file.role || founder) {
        return Ok(());
    }
    Err(EnrolError::Occupied {
        is: EnrolError::owner(is.0, is.1, is.2, earlier.role),
        wanted: EnrolError::owner(wanted.0, wanted.1, wanted.2, file.role),
    })
}

/// Whether the blocks that a cluster has are those that it asks for.
pub(crate) fn satisfied(role: Role, cidrs: &CidrRequests, has: &[Allocation]) -> bool {
    if role != Role::Member {
        return true;
    }
    let nodes: Vec<CidrRequest> = cidrs.node.iter().copied().map(CidrRequest::Exact).collect();
    let of = |kind| {
        has.iter()
            .filter(|a| a.kind == kind)
            .map(|a| a.cidr)
            .collect()
    };
    let exported_alike = has
        .iter()
        .filter(|a| a.kind == Kind::Node)
        .all(|a| a.exported == cidrs.export_nodes);
    exported_alike
        && matches(&cidrs.pod, of(Kind::Pod))
        && matches(&cidrs.service, of(Kind::Service))
        && matches(&nodes, of(Kind::Node))
}

/// Whether each block is asked for by one request and each request has its block. An exact request takes its
/// own block, so that what is left over can be any of the right size.
fn matches(requests: &[CidrRequest], mut has: Vec<Cidr>) -> bool {
    let mut sorted: Vec<&CidrRequest> = requests.iter().collect();
    sorted.sort();
    sorted.dedup_by(|a, b| a == b && matches!(a, CidrRequest::Exact(_)));
    for request in sorted {
        let fits = |cidr: &Cidr| match request {
            CidrRequest::Exact(wanted) => cidr == wanted,
            CidrRequest::Auto { family, prefix_len } => {
                cidr.family() == *family && cidr.prefix_len() == *prefix_len
            }
        };
        match has.iter().position(fits) {
            Some(index) => has.swap_remove(index),
            None => return false,
        };
    }
    has.is_empty()
}

#[cfg(test)]
mod tests {
    use subsea_api::Kind;

    use super::*;

    fn requests(pod: &[&str], service: &[&str], node: &[&str]) -> CidrRequests {
        let parse = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        CidrRequests {
            pod: parse(pod),
            service: parse(service),
            node: node.iter().map(|t| t.parse().unwrap()).collect(),
            export_nodes: false,
        }
    }

    fn has(blocks: &[(Kind, &str)]) -> Vec<Allocation> {
        blocks
            .iter()
            .map(|(kind, cidr)| Allocation {
                kind: *kind,
                cidr: cidr.parse().unwrap(),
                exported: *kind != Kind::Node,
            })
            .collect()
    }

    #[test]
    fn the_same_wish_is_satisfied_and_another_is_not() {
        let blocks = has(&[
            (Kind::Pod, "10.32.0.0/16"),
            (Kind::Pod, "10.40.0.0/16"),
            (Kind::Pod, "fd00:32::/56"),
            (Kind::Service, "10.112.0.0/20"),
        ]);
        for (pod, service, node, same) in [
            (
                &["10.32.0.0/16", "10.40.0.0/16", "fd00:32::/56"][..],
                "10.112.0.0/20",
                &[][..],
                true,
            ),
            (
                &["auto/16", "10.32.0.0/16", "auto6/56"],
                "auto/20",
                &[],
                true,
            ),
            (&["auto/16", "auto/16", "auto6/56"], "auto/20", &[], true),
            (
                &["10.40.0.0/16", "10.32.0.0/16", "fd00:32::/56"],
                "10.112.0.0/20",
                &[],
                true,
            ),
            (&["auto/16", "auto6/56"], "auto/20", &[], false),
            (&["auto/16", "auto/16", "auto6/64"], "auto/20", &[], false),
            (
                &["10.32.0.0/16", "10.41.0.0/16", "auto6/56"],
                "auto/20",
                &[],
                false,
            ),
            (
                &["auto/16", "auto/16", "auto6/56"],
                "auto/20",
                &["192.0.2.0/24"],
                false,
            ),
        ] {
            let wish = requests(pod, &[service], node);
            assert_eq!(
                satisfied(Role::Member, &wish, &blocks),
                same,
                "{pod:?} {service} {node:?}"
            );
        }
        assert!(satisfied(Role::Gateway, &CidrRequests::default(), &blocks));
    }

    #[test]
    fn node_blocks_differ_by_their_export_too() {
        let blocks = has(&[
            (Kind::Pod, "10.32.0.0/16"),
            (Kind::Service, "10.112.0.0/20"),
            (Kind::Node, "192.168.0.0/24"),
        ]);
        let mut wish = requests(&["10.32.0.0/16"], &["10.112.0.0/20"], &["192.168.0.0/24"]);
        assert!(satisfied(Role::Member, &wish, &blocks));
        wish.export_nodes = true;
        assert!(!satisfied(Role::Member, &wish, &blocks));
    }

    #[test]
    fn blocks_go_with_the_member_role_alone() {
        let error = check_role(Role::Member, &requests(&[], &["auto/20"], &[])).unwrap_err();
        assert!(error.to_string().contains("--pod-cidr must"), "{error}");
        let error = check_role(Role::Member, &CidrRequests::default()).unwrap_err();
        assert!(
            error.to_string().contains("--pod-cidr and --service-cidr"),
            "{error}"
        );
        assert!(check_role(Role::Member, &requests(&["auto/16"], &["auto/20"], &[])).is_ok());
        for role in [Role::Gateway, Role::Agent, Role::Dns] {
            assert!(check_role(role, &CidrRequests::default()).is_ok());
            let error = check_role(role, &requests(&[], &["auto/20"], &[])).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains("--service-cidr"),
                "{error}"
            );
        }
        assert!(check_role(Role::Admin, &CidrRequests::default()).is_err());
    }
}
