//! `nsm export`: the whole registry as YAML, which `nsm apply` takes back.

use super::{
    mesh::{self, REGISTRY_URL, REQUEST_TIMEOUT, Way},
    table,
};
use crate::{
    context::{Context, Output},
    exit::Exit,
    roles::process::{CONNECT_TO, WORKLOAD_API},
    settings::{Opt, Settings},
};
use nsm_api::{EndpointQuery, Result, ServiceQuery};
use nsm_registry::manifest::Documents;
use serde_json::json;

/// Settings of `nsm export`.
pub(crate) const OPTIONS: &[Opt] = &[REGISTRY_URL, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];

pub(crate) async fn run(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    settings.finish()?;
    let registry = way.registry().await?;
    let services = mesh::find_services(&*registry, ServiceQuery::default(), &way).await?;
    let endpoints = mesh::find_endpoints(&*registry, EndpointQuery::default(), &way).await?;
    table::say(&match context.output {
        Output::Text => Documents { services, endpoints, ..Documents::default() }.to_yaml().trim_end().to_owned(),
        Output::Json => table::json(&json!({"services": services, "endpoints": endpoints}))?,
    })?;
    Ok(Exit::Ok)
}
