//! Taking this gateway out of service: it says so, waits until its traffic has moved, and only then ends. Shell.

use std::time::Duration;

use tokio::time::Instant;

use super::Room;
use super::budget::Traffic;

/// What the others need at least to hear of it and to move their flows: all are told at once, and again by the next probe,
/// which on an idle path may be 2 s away.
const LEAST: Duration = Duration::from_millis(2_500);
/// For so long nothing but echo must go through.
const QUIET: Duration = Duration::from_secs(1);
/// Traffic that nobody takes over holds a gateway no longer.
const MOST: Duration = Duration::from_secs(20);
/// How often the counters are read.
const LOOK: Duration = Duration::from_millis(100);

impl Room {
    /// Says that this gateway is about to stop, and resolves when its traffic has moved to the others of the cluster, or does
    /// not move; at once, where there are no others.
    pub(super) async fn drained(&self) {
        self.flags.send_if_modified(|flags| {
            let changed = !flags.draining;
            flags.draining = true;
            changed
        });
        let own = &self.shared.link.membership.node;
        let view = self.shared.link.view.borrow().clone();
        let others = view.own().map_or(0, |record| {
            record.gateways.keys().filter(|node| *node != own).count()
        });
        if others == 0 {
            tracing::warn!(
                "draining: there is no other gateway in this cluster to take the traffic over"
            );
            return;
        }
        tracing::info!(others, "draining");
        let start = Instant::now();
        let mut traffic = Traffic::default();
        loop {
            self.read(&mut traffic);
            let now = self.shared.link.clock.now().mono;
            let busy = traffic.within(QUIET, now);
            let waited = start.elapsed();
            if waited >= LEAST + QUIET && busy.is_empty() {
                tracing::info!(?waited, "drained");
                return;
            }
            if waited >= MOST {
                let paths: Vec<String> = busy
                    .iter()
                    .map(|id| format!("{}/{}", id.cluster, id.node))
                    .collect();
                tracing::warn!(?waited, ?paths, "still not drained: ending all the same");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn read(&self, traffic: &mut Traffic) {
        let now = self.shared.link.clock.now().mono;
        let mesh = self.published.borrow().mesh.clone();
        let stats = self.tunnel.stats();
        let by_kernel = self.tunnel.leaves_checks();
        let reports = self.prober.reports(now);
        let paths = mesh.paths.iter().filter_map(|path| {
            let peer = stats.peers.get(&path.key)?;
            let echo = reports
                .get(&path.id)
                .map_or(0, |report| report.echo.as_counted(by_kernel));
            Some((path.id.clone(), peer.rx_bytes + peer.tx_bytes, echo))
        });
        traffic.observe(now, paths);
    }
}
