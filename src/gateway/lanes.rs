//! The userspace driver's lanes: how many there are to be, their keys and ports, and what becomes of those that cannot be
//! had. Shell; blocks.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use super::GatewayError;
use super::listeners::offered;
use super::options::Options;
use super::shared::{Shared, chain};
use crate::key::PrivateKey;
use crate::net::tun::{Tun, TunError, TunSettings};
use crate::net::udp::{self, UdpSettings};
use crate::tunnel::Tunnel as _;
use crate::tunnel::userspace::{LaneSource, Userspace};

/// Starts the driver with the lanes that the operator asked for, as far as they can be had.
pub(super) fn open(shared: &Arc<Shared>) -> Result<Userspace, GatewayError> {
    let options = &shared.options;
    let tun = open_device(options)?;
    let key = shared.keys.first().private.clone();
    let tunnel = Userspace::start(tun, listener(options, options.listen_port), key)?;
    let source = Source(Arc::clone(shared));
    tunnel.grow(options.lanes(cores()), Box::new(source))?;
    // Before anybody announces a listener that is not there.
    shared.want_stripes(*tunnel.stripes().borrow());
    Ok(tunnel)
}

/// Opens the device, with room for as many queues as there may be lanes.
fn open_device(options: &Options) -> Result<Tun, TunError> {
    let several = options.lanes(cores()).most() > 1;
    let settings = TunSettings {
        offloads: options.offloads,
        multi_queue: several,
    };
    let tun = Tun::open(&options.device, settings)?;
    if !several || tun.takes_queues(1) {
        return Ok(tun);
    }
    // An earlier run made it for one lane, and a device keeps its kind. What stood in it comes again with the first pass
    // over the kernel; until then nothing leaves, since the routes beneath say unreachable.
    tracing::info!(device = options.device, "made anew: it had one queue");
    if let Err(error) = tun.set_persistent(false) {
        tracing::warn!(device = options.device, %error, "the device stays as it is");
        return Ok(tun);
    }
    drop(tun);
    Tun::open(&options.device, settings)
}

/// The cores that this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn listener(options: &Options, port: u16) -> UdpSettings {
    UdpSettings {
        listen_port: port,
        mark: Some(udp::Mark {
            value: options.mark.value,
            mask: options.mark.mask,
        }),
        offloads: options.offloads,
    }
}

struct Source(Arc<Shared>);

impl LaneSource for Source {
    fn listener(&self, number: u16) -> Result<(UdpSettings, PrivateKey), String> {
        let Self(shared) = self;
        let first = shared.options.listen_port;
        let port = first
            .checked_add(number)
            .ok_or_else(|| format!("there is no UDP port {number} after {first}"))?;
        let key = shared.keys.get(number).map_err(|error| chain(&error))?;
        Ok((listener(&shared.options, port), key.private))
    }

    fn offered(&self) -> u16 {
        let view = self.0.link.view.borrow().clone();
        offered(&view, &self.0.link.membership.cluster)
    }

    fn lacks(&self, what: Option<String>) {
        self.0.link.problem("stripes", what);
    }
}
