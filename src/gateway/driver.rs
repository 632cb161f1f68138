//! Opens the data plane: the kernel's WireGuard where it is, else our own. Shell; blocks.

use std::sync::Arc;

use super::GatewayError;
use super::keyring::Keyring;
use super::options::{Driver, Options};
use super::shared::chain;
use crate::key::PrivateKey;
use crate::net::tun::Tun;
use crate::net::udp::{self, UdpSettings};
use crate::net::wireguard::{self, Names, WireguardError};
use crate::tunnel::Tunnel;
use crate::tunnel::kernel::{Kernel, KernelSettings};
use crate::tunnel::userspace::Userspace;

/// Opens the driver that the options ask for. Says whether it needs a listener for each slot.
pub(super) fn open(
    options: &Options,
    keys: &Arc<Keyring>,
) -> Result<(Arc<dyn Tunnel>, bool), GatewayError> {
    let first = || keys.first().private.clone();
    if options.driver == Driver::Userspace {
        return Ok((userspace(options, first())?, false));
    }
    let ring = Arc::clone(keys);
    let of_slot = move |slot| match ring.get(slot) {
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
            Ok((userspace(options, first())?, false))
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

fn userspace(options: &Options, key: PrivateKey) -> Result<Arc<dyn Tunnel>, GatewayError> {
    // An earlier run with the kernel driver left its devices, which have our name and our port.
    if let Some(error) = wireguard::remove(&Names::new(&options.device)).pop() {
        return Err(GatewayError::Wireguard(error));
    }
    let mark = udp::Mark {
        value: options.mark.value,
        mask: options.mark.mask,
    };
    let tun = Tun::open(&options.device, options.tun())?;
    let udp = UdpSettings {
        listen_port: options.listen_port,
        mark: Some(mark),
        offloads: options.offloads,
    };
    let tunnel = Userspace::start(tun, udp, key)?;
    if let Some(age) = options.rekey_after {
        tunnel.rekey_after(age);
    }
    Ok(Arc::new(tunnel))
}
