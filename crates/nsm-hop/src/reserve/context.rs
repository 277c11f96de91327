//! Additions that hold nothing: labels of the place, the first MTU, routes that an endpoint offers.

use crate::role::{Draft, Reserve};
use ipnet::IpNet;
use nsm_api::*;

/// Labels of the place where this process runs (`nodeName`, `podName`, ...), unless the client says otherwise.
pub struct Environment(pub Labels);

impl Reserve for Environment {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        for (key, value) in &self.0 {
            draft.connection.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

/// The largest packet of a link when nobody on the way has said anything yet.
pub struct UnknownMtu(pub u32);

impl Reserve for UnknownMtu {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        if draft.connection.context.mtu == 0 {
            draft.connection.context.mtu = self.0;
        }
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

/// Networks behind an endpoint, as routes for its clients.
pub struct Routes(pub Vec<IpNet>);

impl Reserve for Routes {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let routes = &mut draft.connection.context.ip_context.src_routes;
        for prefix in &self.0 {
            if !routes.iter().any(|route| route.prefix == *prefix) {
                routes.push(Route::on_link(*prefix));
            }
        }
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}
