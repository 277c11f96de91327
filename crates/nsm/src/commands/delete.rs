//! `nsm delete`: removes services and endpoints from the registry. Their owner, or an administrator, may.

use super::{
    mesh::{self, REGISTRY_URL, REQUEST_TIMEOUT, Way},
    table,
};
use crate::{
    context::Context,
    exit::Exit,
    roles::process::{CONNECT_TO, WORKLOAD_API},
    settings::{Opt, Settings, Shape},
};
use nsm_api::{EndpointName, EndpointQuery, Error, Kind, Result, ServiceName, ServiceQuery};

const NAMES: Opt = Opt::words("name", Shape::Text, "Their names");
pub(crate) const OPTIONS: &[Opt] = &[NAMES, REGISTRY_URL, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];

pub(crate) async fn services(mut settings: Settings, _: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let names = names(&settings)?;
    settings.finish()?;
    let registry = way.registry().await?;
    for name in names {
        let query = ServiceQuery { name: Some(ServiceName::new(&name)?), ..ServiceQuery::default() };
        let found = mesh::find_services(&*registry, query, &way).await?.into_iter().next();
        registry.unregister_service(found.ok_or_else(|| unknown(&name))?, way.caller()).await?;
        table::say(&format!("network service {name} removed"))?;
    }
    Ok(Exit::Ok)
}

pub(crate) async fn endpoints(mut settings: Settings, _: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let names = names(&settings)?;
    settings.finish()?;
    let registry = way.registry().await?;
    for name in names {
        let query = EndpointQuery { name: Some(EndpointName::new(&name)?), ..EndpointQuery::default() };
        let found = mesh::find_endpoints(&*registry, query, &way).await?.into_iter().next();
        registry.unregister_endpoint(found.ok_or_else(|| unknown(&name))?, way.caller()).await?;
        table::say(&format!("endpoint {name} removed"))?;
    }
    Ok(Exit::Ok)
}

fn names(settings: &Settings) -> Result<Vec<String>> {
    let names = settings.words(NAMES.flag);
    if names.is_empty() {
        return Err(Error::invalid("the command line", "it names nothing to remove", "add one or more names"));
    }
    Ok(names)
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("{name:?}"), "the registry does not know it", "see `nsm get` for what is there")
}
