//! How a daemon stands with the broker and its snapshot, as `status` shows it; where to look for the broker. PURE.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use subsea_api::UnixMillis;
use subsea_api::snapshot::BrokerInfo;

/// So many URLs of the broker are tried; those of its last word come first.
const MAX_URLS: usize = 8;

/// Now, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since the process began.
    pub mono: Duration,
    /// For people.
    pub wall: UnixMillis,
}

impl Now {
    /// The time for people of a moment since the process began.
    pub fn wall_at(&self, mono: Duration) -> UnixMillis {
        let ago = self.mono.saturating_sub(mono);
        UnixMillis(
            self.wall
                .0
                .saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// How it stands with the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStatus {
    /// Whether the watch is open, and if not why it will not open.
    pub state: BrokerState,
    /// Since when.
    pub since: UnixMillis,
    /// The URL in use, or the first that is tried.
    pub url: String,
    /// What went wrong last, while it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Whether the broker can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerState {
    /// The watch stream is open.
    Connected,
    /// It cannot be reached, or fails; tried again for ever.
    Away,
    /// It says that our cluster was revoked.
    Revoked,
    /// It does not know our cluster or node.
    NotMember,
}

impl BrokerState {
    /// The state as it stands in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Away => "away",
            Self::Revoked => "revoked",
            Self::NotMember => "not-member",
        }
    }
}

/// Where the snapshot came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Broker, disk or none.
    pub source: SnapshotSource,
}

/// Where the snapshot came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotSource {
    /// The broker confirmed it since the start of this process.
    Broker,
    /// The state directory.
    Disk,
    /// There is none yet.
    None,
}

/// Where to look for the broker: where its last word says, then where the join file said. A broker that
/// advertises what cannot be reached from here is still found.
pub fn broker(last: Option<&BrokerInfo>, joined: &BrokerInfo) -> BrokerInfo {
    let Some(last) = last else {
        return joined.clone();
    };
    let mut merged = last.clone();
    for url in &joined.urls {
        if merged.urls.len() < MAX_URLS && !merged.urls.contains(url) {
            merged.urls.push(url.clone());
        }
    }
    if last.ca_pem.trim().is_empty() {
        merged.ca_pem.clone_from(&joined.ca_pem);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urls_of_the_join_file_stay_as_the_last_resort() {
        let info = |url: &str, ca: &str| BrokerInfo {
            urls: vec![url.to_owned()],
            ca_pem: ca.to_owned(),
        };
        let joined = info("https://a", "old");
        assert_eq!(broker(None, &joined), joined);
        let merged = broker(Some(&info("https://b", "new")), &joined);
        assert_eq!(
            (merged.urls, merged.ca_pem.as_str()),
            (vec!["https://b".to_owned(), "https://a".to_owned()], "new")
        );
        assert_eq!(broker(Some(&info("https://a", "")), &joined), joined);
    }
}
