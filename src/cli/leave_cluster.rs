//! `subsea leave --context`: a whole cluster of Kubernetes. Shell.

use std::process::ExitCode;
use std::time::Duration;

use super::args;
use super::failure::{Failure, say};
use super::out;
use crate::kube::connect::connect;
use crate::kube::manifests::ClusterOptions;
use crate::kube::remove::{self, RemoveOptions};

/// Of a leave of a whole cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For a whole cluster of Kubernetes")]
pub(super) struct ClusterArgs {
    /// The context of the kubeconfig: takes that cluster out of the fleet, and Subsea out of it
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// Where the daemons live
    #[arg(long, value_name = "NAME", default_value = "subsea", value_parser = args::namespace, requires = "context")]
    namespace: String,

    /// The image that sweeps the nodes. Otherwise that of the daemons
    #[arg(long, value_name = "IMAGE", requires = "context")]
    image: Option<String>,

    /// How long to wait for the daemons to end, for the nodes to be swept, and for the namespace to go
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = args::duration, requires = "context")]
    timeout: Duration,
}

/// Leaves, and says what is done.
pub(super) async fn run(local: bool, args: ClusterArgs) -> Result<ExitCode, Failure> {
    let client = connect(args.context.as_deref()).await?;
    let options = RemoveOptions {
        manifests: ClusterOptions {
            namespace: args.namespace,
            ..ClusterOptions::default()
        },
        image: args.image,
        local,
        timeout: args.timeout,
    };
    let mut progress = |line: &str| say(&format!("{line}\n"));
    let stayed = remove::remove(&client, &options, &mut progress).await?;
    let all = [stayed.nodes.as_slice(), &stayed.objects].concat();
    if all.is_empty() {
        out::print("nothing of Subsea is left in the cluster\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let on_nodes = (!stayed.nodes.is_empty()).then_some(
        "each node that is named, when it is back: `manifests/leave/node.yaml` sweeps it with the image of the daemons; or, where subsea, nft and \
         conntrack are on the node, as root `subsea leave --local --state-dir /var/lib/subsea/gateway`, and the same with /var/lib/subsea/agent",
    );
    let of_others = (!stayed.objects.is_empty())
        .then_some("what Helm or another tool has installed, it removes: `helm uninstall subsea`");
    let hints: Vec<&str> = on_nodes.into_iter().chain(of_others).collect();
    Err(Failure::failed(format!(
        "not everything was removed:\n  {}",
        all.join("\n  ")
    ))
    .hint(hints.join("\n")))
}
