//! Which image a command installs, and with which Secrets it is pulled. Shell.

use super::args;
use super::failure::{Failure, say};
use crate::kube::error::KubeError;
use crate::kube::live_image;
use crate::kube::manifests::Image;

/// How an image is pulled.
#[derive(Debug, clap::Args)]
pub(super) struct PullSecrets {
    /// A Secret of type `kubernetes.io/dockerconfigjson` in that namespace, with which the image is pulled; may repeat. Otherwise
    /// those that are in use there
    #[arg(long, value_name = "NAME", value_parser = args::secret)]
    pull_secret: Vec<String>,

    /// The image is pulled without a Secret
    #[arg(long, conflicts_with = "pull_secret")]
    no_pull_secret: bool,
}

impl PullSecrets {
    /// What was said; none: nothing.
    fn given(self) -> Option<Vec<String>> {
        let said = self.no_pull_secret || !self.pull_secret.is_empty();
        said.then_some(self.pull_secret)
    }
}

/// What to install where `live` runs; says what is kept of it. With `client` it is looked whether the Secrets are there: one that was
/// given has to be, unless it is only shown what would be done (`dry`).
pub(super) async fn chosen(
    client: Option<&kube::Client>,
    namespace: &str,
    live: Option<&Image>,
    (name, secrets): (Option<String>, PullSecrets),
    dry: bool,
) -> Result<Image, Failure> {
    let (named, secrets) = (name.is_some(), secrets.given());
    let given = secrets.is_some();
    let image = Image::next(live, name, secrets);
    if !named && !image.has_default_name() {
        say(&format!(
            "keeps image {}; `--image` changes it\n",
            image.name
        ));
    }
    if !given && !image.pull_secrets.is_empty() {
        let all = image.pull_secrets.join(", ");
        say(&format!(
            "keeps pull secret {all}; `--pull-secret` changes it\n"
        ));
    }
    if let Some(client) = client {
        match live_image::check_secrets(client, namespace, &image).await {
            Err(error @ KubeError::NoPullSecret { .. }) if dry || !given => {
                say(&format!("warning: {error}\n"));
            }
            done => done?,
        }
    }
    Ok(image)
}
