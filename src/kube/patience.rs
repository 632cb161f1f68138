//! Waits on while the API server does not answer. Shell.

use tokio::time::Instant;

use super::apply::Progress;
use super::error::KubeError;

/// Of something that is waited for by looking again and again: a look that failed for a moment does not end it.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Instant,
    told: bool,
}

impl Patience {
    /// Until then.
    pub(super) fn until(limit: Instant) -> Self {
        Self { limit, told: false }
    }

    /// What a look came to; none: the API server does not answer just now, and there is time for another one.
    ///
    /// # Errors
    /// The look's, when another one would not help, or at the end of the time.
    pub(super) fn take<T>(
        &mut self,
        looked: Result<T, KubeError>,
        progress: Progress<'_>,
    ) -> Result<Option<T>, KubeError> {
        match looked {
            Ok(seen) => {
                if self.told {
                    self.told = false;
                    progress("the API server answers again");
                }
                Ok(Some(seen))
            }
            Err(error) if error.is_transient() && Instant::now() < self.limit => {
                if !self.told {
                    self.told = true;
                    progress(&format!("waiting until the API server answers: {error}"));
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
