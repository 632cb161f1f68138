//! In which namespace Subsea lives: a leave of another one would take the definitions, the roles and the labels of nodes from it. Shell.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::sweep::ALL;
use crate::kube::error::KubeError;
use crate::kube::install::SECRET;
use crate::kube::labels;
use crate::kube::tenants;

/// There is one of each in a cluster, and both name the namespace that they are for.
const BINDINGS: [&str; 2] = ["subsea-gateway", "subsea-agent"];
const ACCOUNTS: [&str; 3] = ["subsea-gateway", "subsea-agent", "subsea-operator"];

/// What of ours is in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// What half a join or half a leave has left.
    Remains,
    /// Daemons.
    Daemons,
}

/// The other namespace in which Subsea lives; none: it is this one, or nowhere. `holds`: something of ours is in this one.
pub(super) async fn elsewhere(
    client: &Client,
    namespace: &str,
    holds: bool,
) -> Result<Option<String>, KubeError> {
    let mut claims = claims(client).await?;
    if holds {
        claims.entry(namespace.to_owned()).or_insert(Claim::Remains);
    }
    let bound = bound(client).await?;
    let home = home(&claims, bound.as_deref(), namespace);
    Ok(home.filter(|home| *home != namespace).map(str::to_owned))
}

/// Of several namespaces, daemons count for more than remains, then the one that the bindings are for. A namespace that has nothing
/// of ours does not count, whatever names it. Whichever is named, the answer can be left: no two refer to each other.
fn home<'c>(
    claims: &'c BTreeMap<String, Claim>,
    bound: Option<&str>,
    named: &str,
) -> Option<&'c str> {
    let most = claims.values().max()?;
    let mut first: Vec<&str> = claims
        .iter()
        .filter(|(_, claim)| *claim == most)
        .map(|(namespace, _)| namespace.as_str())
        .collect();
    first.sort_by_key(|namespace| (bound != Some(*namespace), *namespace != named));
    first.first().copied()
}

/// By names and `part-of`: Helm writes its own name into `managed-by`, and the Secret may be that of another operator.
async fn claims(client: &Client) -> Result<BTreeMap<String, Claim>, KubeError> {
    let ours = format!("{}={}", labels::PART_OF, labels::SUBSEA);
    let ours = ListParams::default().labels(&ours);
    let live = tenants::homes(client, &ALL).await?;
    let accounts: Api<ServiceAccount> = Api::all(client.clone());
    let accounts = accounts.list_metadata(&ours).await;
    let accounts = accounts.map_err(|e| KubeError::of("list", "ServiceAccounts", e))?;
    let secrets: Api<Secret> = Api::all(client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={SECRET}"));
    let secrets = secrets.list_metadata(&named).await;
    let secrets = secrets.map_err(|e| KubeError::of("list", format!("Secrets {SECRET}"), e))?;

    let remains = accounts
        .iter()
        .filter(|account| ACCOUNTS.contains(&account.name_any().as_str()))
        .filter_map(ResourceExt::namespace)
        .chain(secrets.iter().filter_map(ResourceExt::namespace));
    let remains = remains.map(|namespace| (namespace, Claim::Remains));
    let live = live
        .into_iter()
        .map(|namespace| (namespace, Claim::Daemons));
    Ok(remains.chain(live).collect())
}

/// The namespace whose accounts have the rights of the daemons.
async fn bound(client: &Client) -> Result<Option<String>, KubeError> {
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    for name in BINDINGS {
        let found = bindings.get_opt(name).await;
        let what = || format!("ClusterRoleBinding {name}");
        let found = found.map_err(|e| KubeError::of("get", what(), e))?;
        let subjects = found.and_then(|binding| binding.subjects);
        let mut subjects = subjects.into_iter().flatten();
        if let Some(namespace) = subjects.find_map(|subject| subject.namespace) {
            return Ok(Some(namespace));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(claims: &[(&str, Claim)], bound: Option<&str>, named: &str) -> Option<String> {
        let claims = claims
            .iter()
            .map(|(name, claim)| ((*name).to_owned(), *claim));
        home(&claims.collect(), bound, named).map(str::to_owned)
    }

    #[test]
    fn it_lives_where_its_daemons_are_and_then_where_its_rights_are() {
        use Claim::{Daemons, Remains};
        let named = "subsea";
        for (claims, bound, home) in [
            (&[][..], None, None),
            // The namespace is gone, or has nothing of ours.
            (&[], Some("net"), None),
            (&[("subsea", Remains)], Some("net"), Some("subsea")),
            (&[("net", Daemons)], Some("net"), Some("net")),
            // Helm, or somebody, has taken the roles out.
            (&[("net", Daemons)], None, Some("net")),
            // A leave of it was interrupted.
            (&[("net", Remains)], None, Some("net")),
            (
                &[("net", Remains), ("subsea", Remains)],
                Some("net"),
                Some("net"),
            ),
            (
                &[("net", Remains), ("subsea", Remains)],
                None,
                Some("subsea"),
            ),
            // A join into the wrong one was interrupted: it has taken the rights along.
            (
                &[("net", Remains), ("subsea", Daemons)],
                Some("net"),
                Some("subsea"),
            ),
            (
                &[("net", Daemons), ("subsea", Daemons)],
                Some("net"),
                Some("net"),
            ),
            (
                &[("net", Daemons), ("subsea", Daemons)],
                None,
                Some("subsea"),
            ),
            (
                &[("net", Daemons), ("subsea", Remains)],
                Some("subsea"),
                Some("net"),
            ),
        ] {
            let home = home.map(str::to_owned);
            assert_eq!(chosen(claims, bound, named), home, "{claims:?} {bound:?}");
            // Where it sends one, the leave goes on.
            if let Some(home) = home {
                assert_eq!(chosen(claims, bound, &home).as_ref(), Some(&home));
            }
        }
    }
}
