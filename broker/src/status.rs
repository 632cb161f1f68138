//! The broker at a glance. PURE.

use subsea_api::UnixMillis;
use subsea_api::admin::BrokerStatus;

use crate::registry::State;

/// Adds up what an operator sees first.
pub(crate) fn status(
    state: &State,
    ca_expires: UnixMillis,
    started: UnixMillis,
    watches: u64,
) -> BrokerStatus {
    let gateways = || state.clusters.values().flat_map(|c| c.gateways.values());
    BrokerStatus {
        fleet: state.identity.fleet.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: state.identity.epoch.clone(),
        revision: state.revision,
        started,
        urls: state.broker.urls.clone(),
        ca_expires,
        clusters: state.clusters.len() as u64,
        gateways: gateways().count() as u64,
        expired: gateways().filter(|g| g.expired.is_some()).count() as u64,
        watches,
        pools: state.pools().to_vec(),
    }
}
