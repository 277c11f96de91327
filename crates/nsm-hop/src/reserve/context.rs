//! Additions that hold nothing: labels of the place, the first MTU, what a manager excludes, what an endpoint offers.

use crate::role::{Draft, Reserve};
use ipnet::IpNet;
use nsm_api::*;
use std::sync::Arc;

/// A list that may be another one at the next Request: it comes from a file that people edit.
pub type Current<T> = Box<dyn Fn() -> Arc<Vec<T>> + Send + Sync>;

/// Prefixes that no endpoint may give out on this node.
pub struct Excluded(pub Current<IpNet>);

impl Reserve for Excluded {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let list = &mut draft.connection.context.ip_context.excluded_prefixes;
        for prefix in self.0().iter() {
            if !list.contains(prefix) {
                list.push(*prefix);
            }
        }
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

/// Policy routes that an endpoint gives its clients. The source of a policy becomes an address of the client.
pub struct Policies(pub Current<PolicyRoute>);

impl Reserve for Policies {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let context = &mut draft.connection.context.ip_context;
        let sources = |policies: &[PolicyRoute]| policies.iter().filter_map(|policy| policy.from.parse().ok()).collect::<Vec<IpNet>>();
        let (former, policies) = (sources(&context.policies), self.0());
        context.src_ip_addrs.retain(|address| !former.contains(address));
        context.src_ip_addrs.extend(sources(&policies));
        context.policies = policies.to_vec();
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

/// Resolver configurations that an endpoint gives its clients.
pub struct Dns(pub Vec<DnsConfig>);

impl Reserve for Dns {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        let configs = &mut draft.connection.context.dns_context.get_or_insert_default().configs;
        for config in &self.0 {
            if !configs.contains(config) {
                configs.push(config.clone());
            }
        }
        Ok(())
    }
    fn release(&self, _: &ConnectionId) {}
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn draft() -> Draft {
        let connection = Connection::new(ConnectionId::new("a").unwrap(), "svc".parse().unwrap());
        Draft { connection, preferences: vec![], files: Files::default() }
    }
    fn policy(from: &str) -> PolicyRoute {
        let (proto, port) = ("6".to_owned(), "80".to_owned());
        PolicyRoute { from: from.into(), proto, dst_port: port, src_port: String::new(), routes: vec![], unknown: Unknown::default() }
    }

    /// E-21
    #[test]
    fn the_source_of_a_policy_is_an_address_of_the_client_while_the_policy_lasts() {
        let mut draft = draft();
        draft.connection.context.ip_context.src_ip_addrs = vec!["10.0.0.1/32".parse().unwrap()];
        let with = |from: &'static [&'static str]| Policies(Box::new(|| Arc::new(from.iter().map(|from| policy(from)).collect())));
        let addresses =
            |draft: &Draft| draft.connection.context.ip_context.src_ip_addrs.iter().map(ToString::to_string).collect::<Vec<_>>();
        for _ in 0..2 {
            with(&["172.16.2.201/24", ""]).reserve(&mut draft).unwrap();
            assert_eq!(addresses(&draft), ["10.0.0.1/32", "172.16.2.201/24"]);
        }
        with(&["2004::3/120"]).reserve(&mut draft).unwrap();
        assert_eq!(addresses(&draft), ["10.0.0.1/32", "2004::3/120"]);
        with(&[]).reserve(&mut draft).unwrap();
        assert_eq!(addresses(&draft), ["10.0.0.1/32"]);
        assert!(draft.connection.context.ip_context.policies.is_empty());
    }

    /// E-18, E-20
    #[test]
    fn lists_are_added_once() {
        let mut draft = draft();
        let config = DnsConfig { dns_server_ips: vec!["10.0.0.53".into()], ..DnsConfig::default() };
        let excluded = Excluded(Box::new(|| Arc::new(vec!["10.0.0.0/8".parse().unwrap()])));
        for _ in 0..2 {
            Dns(vec![config.clone()]).reserve(&mut draft).unwrap();
            excluded.reserve(&mut draft).unwrap();
        }
        assert_eq!(draft.connection.context.dns_context.unwrap().configs, [config]);
        assert_eq!(draft.connection.context.ip_context.excluded_prefixes.len(), 1);
    }
}
