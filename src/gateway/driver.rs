//! Opens the data plane: the kernel's WireGuard where it is, else our own. Shell; blocks.

use std::sync::Arc;

use super::GatewayError;
use super::lanes;
use super::options::Driver;
use super::shared::{Shared, chain};
use crate::net::wireguard::{self, Names, WireguardError};
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
        Ok(kernel) => Ok((Arc::new(kernel), true)),
        Err(error) if options.driver == Driver::Kernel || is_foreign(&error) => {
            Err(GatewayError::Wireguard(error))
        }
        Err(error) => {
            tracing::info!(why = chain(&error), "the kernel's WireGuard is not used");
            Ok((userspace(shared)?, false))
        }
    }
}

/// Whether somebody else has the name: the other driver would be no better off.
fn is_foreign(error: &WireguardError) -> bool {
    matches!(
        error,
        WireguardError::Foreign { .. } | WireguardError::Busy { .. }
    )
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
