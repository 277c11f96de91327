//! `nsm endpoint firewall`: joins each client to the next endpoint of the service, as far as its rules permit (T-12, X-050).

use super::{
    endpoint::{self, Config, Parts},
    guard,
    process::{CONNECT_TO, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, STATE_DIR, WORKLOAD_API},
    registration::own_netns,
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Error, Result};
use nsm_endpoints::firewall::{RuleFile, follow, parse};
use nsm_hop::{
    kernel::Kernel,
    mechanism::{KernelEnd, Negotiate},
    onward::Chain,
    wiring::SpliceWiring,
};
use nsm_linux::{
    LinuxKernel,
    firewall::{Firewall, Guarded},
};
use std::{path::PathBuf, sync::Arc};

/// Its settings.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    Opt::new("name", "NSM_NAME", "firewall-server", Shape::Text, "Name of this process in paths and in the registry"),
    endpoint::DIR,
    Opt::new("service-names", "NSM_SERVICE_NAME", "", Shape::List, "Services that it provides"),
    endpoint::PAYLOAD,
    endpoint::LABELS,
    Opt::new("register-service", "NSM_REGISTER_SERVICE", "false", Shape::Bool, "Register the services, too"),
    endpoint::UNREGISTER,
    guard::CLIENT_POLICIES,
    endpoint::IDLE_TIMEOUT,
    endpoint::CLIENT_LABELS,
    Opt::new(
        "acl-config-path",
        "NSM_ACL_CONFIG_PATH",
        "/etc/firewall/config.yaml",
        Shape::File,
        "Rules, in our form or as a map of access lists; read again when it changes; without the file everything passes",
    ),
    Opt::new("acl-config", "NSM_ACL_CONFIG", "", Shape::Text, "The rules themselves, instead of a file"),
];

/// `nsm endpoint firewall`
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    // The Go implementation's firewall has one set of labels, for its own Request as well.
    let labels = if settings.is_given("client-labels") { settings.map("client-labels") } else { settings.map("labels") };
    let (path, inline): (PathBuf, String) = (settings.text("acl-config-path"), settings.text("acl-config"));
    if config.services.is_empty() {
        settings.mistake("--service-names names no service");
    }
    settings.finish()?;

    let netns = own_netns()?;
    let (rules, file) = if inline.is_empty() {
        let (rules, file) = RuleFile::open(&path)?;
        (rules, Some(file))
    } else {
        (parse(&inline).map_err(|mistake| Error::invalid("--acl-config", mistake, "correct the rules"))?, None)
    };
    let firewall = Arc::new(Firewall::open(&netns, config.name.as_str(), &rules)?);
    let kernel: Arc<dyn Kernel> = Arc::new(Guarded::new(LinuxKernel::new()?, firewall.clone()));
    let parts = Parts {
        reserve: vec![Box::new(Negotiate(vec![Box::new(KernelEnd(netns.clone()))]))],
        onward: Box::new(Chain { manager: config.manager.clone(), labels, netns }),
        wiring: Box::new(SpliceWiring),
    };
    let following = file.map(|file| tokio::spawn(follow(file, firewall.clone())));
    let ended = config.serve_with(parts, Some(kernel), context).await;
    following.iter().for_each(tokio::task::JoinHandle::abort);
    firewall.close_if_unused()?;
    ended
}
