//! `nsm endpoint supplier`: starts endpoints when somebody needs them (T-07, T-08).

use super::{
    endpoint::{self, Config, Parts},
    guard, process,
    process::{CONNECT_TO, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, WORKLOAD_API},
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Labels, Result};
use nsm_endpoints::supplier::Supplier;
use nsm_hop::{hop::Hop, role::NoWires};
use std::path::PathBuf;

/// Its settings.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    CONNECT_TO,
    Opt::new("name", "NSM_NAME", "nse-supplier", Shape::Text, "Name of this process in paths and in the registry"),
    endpoint::DIR,
    Opt::new("service-names", "NSM_SERVICE_NAME", "nse-supplier", Shape::List, "Services of which it supplies endpoints"),
    endpoint::PAYLOAD,
    endpoint::LABELS,
    endpoint::REGISTER_SERVICE,
    endpoint::UNREGISTER,
    guard::CLIENT_POLICIES,
    Opt::new("template", "NSM_TEMPLATE", "supplier.yaml", Shape::File, "What is started: a YAML map with name, command, env and netns"),
    Opt::new(
        "supplied-env",
        "NSM_SUPPLIED_ENV",
        "",
        Shape::Map,
        "Variables of every endpoint that it starts, unless the template says otherwise",
    ),
];

/// `nsm endpoint supplier`
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let config = Config::read(&mut settings);
    let template: PathBuf = settings.text("template");
    let mut told = config.told();
    told.extend(settings.map("supplied-env"));
    settings.finish()?;

    let process = Process::start(&config.common, &context).await?;
    let supplier = Supplier::open(template, config.registry(&process), place(&context), told)?;
    let parts = Parts { reserve: vec![], onward: Box::new(supplier.clone()), wiring: Box::new(NoWires) };
    // It has no connections, so there is nothing to remember.
    let (served, registration) = config.open(&process, Hop::new(config.role(&process, parts)?), &context).await?;
    context.notify.ready();
    let ended = process::ended(served).await;
    registration.end().await;
    supplier.close().await;
    ended
}

/// Labels of the node: a client of another one is not served here.
fn place(context: &Context) -> Labels {
    context.labels.iter().filter(|(key, _)| *key != "podName").map(|(key, value)| (key.clone(), value.clone())).collect()
}
