//! The WireGuard keys of this gateway, by number: the first is there from the start, others are made when a listener
//! needs them. Shell.

use std::collections::BTreeMap;
use std::sync::Mutex;

use subsea_api::PublicKey;

use super::GatewayError;
use super::shared::lock;
use crate::key::PrivateKey;
use crate::state::StateDir;

/// A key pair.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) private: PrivateKey,
    pub(super) public: PublicKey,
}

/// The keys.
pub(super) struct Keyring {
    state: StateDir,
    first: Identity,
    further: Mutex<BTreeMap<u16, Identity>>,
}

impl Keyring {
    /// Reads or makes the first key.
    pub(super) fn open(state: StateDir) -> Result<Self, GatewayError> {
        Ok(Self {
            first: read(&state, 0)?,
            further: Mutex::default(),
            state,
        })
    }

    /// The key of stripe 0, and of slot 0.
    pub(super) fn first(&self) -> &Identity {
        &self.first
    }

    /// The key of this number. Blocks: the first time it is read from the disk, or made.
    pub(super) fn get(&self, number: u16) -> Result<Identity, GatewayError> {
        if number == 0 {
            return Ok(self.first.clone());
        }
        let mut further = lock(&self.further);
        if let Some(identity) = further.get(&number) {
            return Ok(identity.clone());
        }
        let identity = read(&self.state, number)?;
        further.insert(number, identity.clone());
        Ok(identity)
    }
}

fn read(state: &StateDir, number: u16) -> Result<Identity, GatewayError> {
    let private = state.wireguard_key_or_create(number)?;
    let public = private.public_key().map_err(GatewayError::Key)?;
    Ok(Identity { private, public })
}
