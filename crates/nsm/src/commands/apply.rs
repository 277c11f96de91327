//! `nsm apply`: services and endpoints from YAML files into the registry.

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
use nsm_api::{Error, Files, Kind, RegistryApi, Result};
use nsm_registry::manifest::{Documents, MAX_MANIFEST_BYTES};
use serde::Serialize;
use std::{io::Read, time::SystemTime};

const FILE: Opt = Opt::new("file", "", "", Shape::File, "YAML files, - is standard input").short('f').many();
pub(crate) const OPTIONS: &[Opt] = &[FILE, REGISTRY_URL, CONNECT_TO, REQUEST_TIMEOUT, WORKLOAD_API];

/// What was registered.
#[derive(Serialize)]
struct Applied {
    kind: &'static str,
    name: String,
    /// When the record ends unless it is registered again.
    #[serde(skip)]
    ends: Option<SystemTime>,
}

impl Applied {
    fn sentence(&self) -> String {
        let ends = match mesh::relative(self.ends, SystemTime::now()) {
            empty if empty.is_empty() => empty,
            ends => format!("; the record ends {ends} unless it is registered again"),
        };
        format!("{} {} registered{ends}", self.kind, self.name)
    }
}

pub(crate) async fn run(mut settings: Settings, context: Context) -> Result<Exit> {
    let way = Way::read(&mut settings);
    let files = settings.words(FILE.flag);
    if files.is_empty() {
        settings.mistake("no file is named, name one with -f FILE");
    }
    settings.finish()?;
    let documents = read(&files)?;
    for warning in &documents.warnings {
        eprintln!("nsm: warning: {warning}");
    }
    if !documents.others.is_empty() {
        eprintln!("nsm: warning: {} documents are no network service and no endpoint and were left alone", documents.others.len());
    }
    let applied = register(&*way.registry().await?, documents, &way).await?;
    match context.output {
        Output::Json => table::say(&table::json(&applied)?)?,
        Output::Text => table::say(&applied.iter().map(Applied::sentence).collect::<Vec<_>>().join("\n"))?,
    }
    Ok(Exit::Ok)
}

/// Reads all files before anything is registered: a mistake in the last changes nothing.
fn read(files: &[String]) -> Result<Documents> {
    let mut documents = Documents::default();
    for file in files {
        documents.extend(Documents::read(file, &text(file)?)?);
    }
    if documents.services.is_empty() && documents.endpoints.is_empty() {
        return Err(Error::invalid(
            files.join(", "),
            "no network service and no endpoint is in there",
            "add a document of kind NetworkService",
        ));
    }
    Ok(documents)
}

fn text(file: &str) -> Result<String> {
    let read = |from: &mut dyn Read| {
        let mut text = String::new();
        // One byte beyond the limit is enough for the manifest reader to refuse.
        from.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_string(&mut text).map(|_| text)
    };
    let text = if file == "-" { read(&mut std::io::stdin()) } else { std::fs::File::open(file).and_then(|mut file| read(&mut file)) };
    text.map_err(|problem| Error::invalid(format!("file {file}"), format!("it cannot be read: {problem}"), "check its path and its rights"))
}

/// Registers everything; what fails is told, and does not keep the rest from being registered.
async fn register(registry: &dyn RegistryApi, documents: Documents, way: &Way) -> Result<Vec<Applied>> {
    let (mut applied, mut failed) = (Vec::new(), Vec::new());
    for service in documents.services {
        let name = service.name.to_string();
        match registry.register_service(service, way.caller()).await {
            Ok(stored) => applied.push(Applied { kind: "NetworkService", name: stored.name.to_string(), ends: None }),
            Err(error) => failed.push((format!("NetworkService {name}"), error)),
        }
    }
    for endpoint in documents.endpoints {
        let name = endpoint.name.to_string();
        match registry.register_endpoint(endpoint, Files::default(), way.caller()).await {
            Ok(stored) => {
                applied.push(Applied { kind: "NetworkServiceEndpoint", name: stored.name.to_string(), ends: stored.expiration_time })
            }
            Err(error) => failed.push((format!("NetworkServiceEndpoint {name}"), error)),
        }
    }
    match failed.as_slice() {
        [] => Ok(applied),
        [(_, only)] => Err(only.clone()),
        [(_, first), ..] => Err(several(first.kind, &failed, applied.len())),
    }
}

fn several(kind: Kind, failed: &[(String, Error)], applied: usize) -> Error {
    let sentences: Vec<_> = failed.iter().map(|(what, error)| format!("{what}: {error}")).collect();
    let object = format!("{} documents", failed.len());
    Error::new(
        kind,
        object,
        format!("they were refused, {applied} were registered:\n  {}", sentences.join("\n  ")),
        "correct them and apply again",
    )
}
