//! The packet engine of a node, as the forwarder sees it.

use super::process::Process;
use crate::settings::Settings;
use nsm_api::Result;
use nsm_hop::mechanism::TunnelKeys;
use nsm_linux::Tunnels;
use std::sync::Arc;

/// Where it is.
pub(super) enum Engine {
    None,
}

impl Engine {
    pub(super) fn read(settings: &mut Settings) -> Engine {
        let _: String = settings.text("packet-engine");
        Engine::None
    }
    pub(super) fn connect(self, _: &Process) -> Result<Option<(Arc<dyn Tunnels>, TunnelKeys)>> {
        Ok(None)
    }
}
