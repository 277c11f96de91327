//! `nsm watch`: what is there and every change, one line each, until interrupted.

use super::{
    get::{SERVICE, connection_row, endpoint_row, service_row},
    mesh::{Way, ended, selector},
    table,
};
use crate::{
    context::{Context, Output},
    exit::Exit,
    settings::Settings,
};
use futures::{Stream, StreamExt};
use nsm_api::{
    Caller, Connection, ConnectionEvent, EndpointQuery, EndpointUpdate, EventKind, Files, Result, ServiceName, ServiceQuery, ServiceUpdate,
};
use serde::Serialize;

/// One line.
#[derive(Serialize)]
struct Line<T> {
    #[serde(rename = "type")]
    kind: EventKind,
    object: T,
}

pub(crate) async fn services(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    settings.finish()?;
    let query = ServiceQuery { watch: true, ..ServiceQuery::default() };
    let updates = way.registry().await?.find_services(query, endless()).await?;
    let lines = |update: ServiceUpdate| vec![Line { kind: kind(update.deleted), object: update.service }];
    follow(updates, &context, lines, |service| service_row(service).to_vec()).await
}

pub(crate) async fn endpoints(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let query = EndpointQuery { watch: true, services: settings.list(SERVICE.flag), ..EndpointQuery::default() };
    settings.finish()?;
    let updates = way.registry().await?.find_endpoints(query, endless()).await?;
    let lines = |(update, _): (EndpointUpdate, Files)| vec![Line { kind: kind(update.deleted), object: update.endpoint }];
    follow(updates, &context, lines, |endpoint| endpoint_row(endpoint).to_vec()).await
}

pub(crate) async fn connections(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let services: Vec<ServiceName> = settings.list(SERVICE.flag);
    settings.finish()?;
    let events = way.manager().await?.monitor(selector(&services), endless()).await?;
    let lines = |event: ConnectionEvent| event.connections.into_values().map(|object| Line { kind: event.kind, object }).collect();
    follow(events, &context, lines, |connection: &Connection| connection_row(connection).to_vec()).await
}

/// A watch has no deadline.
fn endless() -> Caller {
    Caller::default()
}

fn kind(deleted: bool) -> EventKind {
    if deleted { EventKind::Delete } else { EventKind::Update }
}

async fn follow<U, T: Serialize>(
    mut updates: impl Stream<Item = Result<U>> + Unpin,
    context: &Context,
    lines: impl Fn(U) -> Vec<Line<T>>,
    row: impl Fn(&T) -> Vec<String>,
) -> Result<Exit> {
    loop {
        let update = tokio::select! {
            update = updates.next() => update.ok_or_else(|| ended("the watch"))??,
            () = context.shutdown.started() => return Ok(Exit::Ok),
        };
        for line in lines(update) {
            match context.output {
                Output::Json => table::say(&table::json_line(&line)?)?,
                Output::Text => table::say(&format!("{} {}", word(line.kind), row(&line.object).join("  ")))?,
            }
        }
    }
}

fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::InitialStateTransfer => "=",
        EventKind::Update => "+",
        EventKind::Delete => "-",
    }
}
