//! Opens the data plane: the kernel's WireGuard where it is, else our own. Shell; blocks.

use std::sync::Arc;

use super::GatewayError;
use super::lanes;
use super::options::{Driver, Options, Stripes};
use super::shared::{Shared, chain};
use crate::net::offload::Offloads;
use crate::net::wireguard::{self, Names};
use crate::tunnel::Tunnel;
use crate::tunnel::kernel::{Kernel, KernelSettings};

/// Opens the driver that the options ask for. Says whether it needs a listener for each slot.
pub(super) fn open(shared: &Arc<Shared>) -> Result<(Arc<dyn Tunnel>, bool), GatewayError> {
    let options = &shared.options;
    if options.driver == Driver::Userspace {
        return Ok((userspace(shared)?, false));
    }
    let ring = Arc::clone(shared);
    let of_slot = move |slot| match ring.keys.get(slot) {
        Ok(identity) => Ok(identity.private),
        Err(error) => Err(chain(&error)),
    };
    let settings = KernelSettings {
        device: options.device.clone(),
        listen_port: options.listen_port,
        mark: options.mark.value & options.mark.mask,
    };
    match Kernel::start(settings, Box::new(of_slot)) {
        Ok(kernel) => {
            shared.link.problem("driver", idle(options));
            Ok((Arc::new(kernel), true))
        }
        Err(error) if options.driver == Driver::Kernel || !error.is_missing() => {
            // The userspace driver would take the devices away that an earlier run left, with their sessions.
            Err(GatewayError::Wireguard(error))
        }
        Err(error) => {
            tracing::info!(why = chain(&error), "the kernel's WireGuard is not used");
            Ok((userspace(shared)?, false))
        }
    }
}

/// What was asked for and is of the userspace driver alone.
fn idle(options: &Options) -> Option<String> {
    let asked = [
        ("--stripes", options.stripes != Stripes::Auto),
        ("--offloads", options.offloads != Offloads::AUTO),
        ("--rekey-after", options.rekey_after.is_some()),
    ];
    let names = asked.iter().filter(|(_, is)| *is).map(|(name, _)| *name);
    let names: Vec<&str> = names.collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("of no effect with the kernel driver: {names}; leave it out, or use `--driver userspace`")
    })
}

fn userspace(shared: &Arc<Shared>) -> Result<Arc<dyn Tunnel>, GatewayError> {
    let options = &shared.options;
    // An earlier run with the kernel driver left its devices, which have our name and our port.
    if let Some(error) = wireguard::remove(&Names::new(&options.device)).pop() {
        return Err(GatewayError::Wireguard(error));
    }
    let tunnel = lanes::open(shared)?;
    if let Some(age) = options.rekey_after {
        tunnel.rekey_after(age);
    }
    Ok(Arc::new(tunnel))
}
