//! Which image a command installs. Shell.

use super::failure::{Failure, say};
use crate::kube::error::KubeError;
use crate::kube::live_image;
use crate::kube::manifests::Image;

/// What to install where `live` runs, and says what is kept of it.
pub(super) fn chosen(
    live: Option<&Image>,
    name: Option<String>,
    pull_secrets: Vec<String>,
) -> Image {
    let (named, given) = (name.is_some(), !pull_secrets.is_empty());
    let image = Image::next(live, name, pull_secrets);
    if !named && live.is_some_and(|live| live.name == image.name) && !image.has_default_name() {
        say(&format!(
            "keeps image {}; `--image` changes it\n",
            image.name
        ));
    }
    if !given && !image.pull_secrets.is_empty() {
        say(&format!(
            "keeps pull secret {}; `--pull-secret` changes it\n",
            image.pull_secrets.join(", ")
        ));
    }
    image
}

/// Checks that its Secrets are there. Who only looks what would be installed is warned.
pub(super) async fn check(
    client: &kube::Client,
    namespace: &str,
    image: &Image,
    dry: bool,
) -> Result<(), Failure> {
    match live_image::check_secrets(client, namespace, image).await {
        Err(error @ KubeError::NoPullSecret { .. }) if dry => {
            say(&format!("warning: {error}\n"));
            Ok(())
        }
        done => Ok(done?),
    }
}
