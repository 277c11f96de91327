//! `nsm describe`: one object whole, as YAML or JSON.

use super::{
    mesh::{self, REGISTRY_URL, REQUEST_TIMEOUT, Way},
    table,
};
use crate::{
    context::{Context, Output},
    exit::Exit,
    roles::process::{CONNECT_TO, WORKLOAD_API},
    settings::{Opt, Settings, Shape},
};
use nsm_api::{Connection, EndpointName, EndpointQuery, Error, Kind, Result, ServiceName, ServiceQuery};
use serde::Serialize;
use std::{fmt::Display, str::FromStr};

const NAME: Opt = Opt::words("name", Shape::Text, "Its name");
const ID: Opt = Opt::words("name", Shape::Text, "Its id at any hop of its path");
pub(crate) const REGISTRY_OPTIONS: &[Opt] = &[NAME, REGISTRY_URL, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];
pub(crate) const CONNECTION_OPTIONS: &[Opt] = &[ID, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];

pub(crate) async fn service(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let name: ServiceName = one(&mut settings)?;
    settings.finish()?;
    let query = ServiceQuery { name: Some(name.clone()), ..ServiceQuery::default() };
    let found = mesh::find_services(&*way.registry().await?, query, &way).await?;
    show(context.output, found.into_iter().next(), &format!("network service \"{name}\""))
}

pub(crate) async fn endpoint(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let name: EndpointName = one(&mut settings)?;
    settings.finish()?;
    let query = EndpointQuery { name: Some(name.clone()), ..EndpointQuery::default() };
    let found = mesh::find_endpoints(&*way.registry().await?, query, &way).await?;
    show(context.output, found.into_iter().next(), &format!("endpoint \"{name}\""))
}

pub(crate) async fn connection(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let id: String = one(&mut settings)?;
    settings.finish()?;
    let found = mesh::connections(&*way.manager().await?, &[], &way).await?;
    show(context.output, found.into_iter().find(|connection| has_id(connection, &id)), &format!("connection \"{id}\""))
}

fn has_id(connection: &Connection, id: &str) -> bool {
    connection.id.as_str() == id || connection.path.segments.iter().any(|segment| segment.id.as_str() == id)
}

/// The one word that was given.
fn one<T: FromStr<Err: Display>>(settings: &mut Settings) -> Result<T> {
    let words = settings.words(NAME.flag);
    let [word] = words.as_slice() else {
        return Err(Error::invalid("the command line", format!("it names {} objects", words.len()), "name the one to show"));
    };
    word.parse().map_err(|problem: T::Err| Error::invalid(format!("name {word:?}"), problem.to_string(), "name the one to show"))
}

fn show<T: Serialize>(output: Output, found: Option<T>, object: &str) -> Result<Exit> {
    let found = found.ok_or_else(|| Error::new(Kind::NotFound, object, "nobody knows it", "see `nsm get` for what is there"))?;
    match output {
        Output::Json => table::say(&table::json(&found)?)?,
        Output::Text => table::say(&table::yaml(&found)?)?,
    }
    Ok(Exit::Ok)
}
