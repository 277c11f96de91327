//! What a registry costs: Register, Find, changes to many watchers, memory, restart; the durable engine beside the
//! engine that keeps nothing.
//!
//! Asked in the process, without the network: the edge costs the same for every engine, and `bench setup` has it.

mod choice;
mod plot;

use crate::{
    cli::RegistryArgs,
    row::{Holds, Row},
    stats::{median, ms, percentile},
};
use futures::{StreamExt, stream};
use nsm_api::{
    Caller, EndpointName, EndpointQuery, EndpointUpdates, Error, Files, Kind, Labels, NetworkServiceEndpoint, RegistryApi, Result,
    ServiceName,
};
use nsm_registry::{Engine, MemoryEngine, Registry};
use nsm_store::DurableEngine;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Endpoints of each service.
const PER_SERVICE: usize = 100;
/// Registrations under way at the same time while the registry is filled.
const AT_ONCE: usize = 64;
/// Calls of each kind that are timed.
const SAMPLES: usize = 500;
/// Changes that all watchers are told.
const CHANGES: usize = 20;
/// Nothing ends while it is measured.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Figures of one engine with so many endpoints.
struct Figures {
    fill_per_s: f64,
    register: Vec<f64>,
    by_name: Vec<f64>,
    by_service: Vec<f64>,
    by_labels: Vec<f64>,
    endpoint_kib: f64,
    /// For each number of watchers.
    watched: Vec<Watched>,
}

/// Figures with so many watchers.
struct Watched {
    watchers: usize,
    fan_out: Vec<f64>,
    watcher_kib: f64,
}

pub(crate) fn run(args: &RegistryArgs) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Error::new(Kind::Kernel, "threads", error.to_string(), "allow this user more threads"))?;
    runtime.block_on(async {
        let mut rows = Vec::new();
        for endpoints in &args.endpoints {
            rows.extend(compare(*endpoints, &args.watchers).await?);
        }
        rows.extend(choice::rows(args.nodes).await?);
        if let Some(file) = &args.plot {
            let refused = |error: std::io::Error| Error::new(Kind::Kernel, format!("file {file:?}"), error.to_string(), "name another");
            std::fs::write(file, plot::svg(&rows)).map_err(refused)?;
        }
        Ok(rows)
    })
}

async fn compare(endpoints: usize, watchers: &[usize]) -> Result<Vec<Row>> {
    let directory = Scratch::new()?;
    let engine = Arc::new(DurableEngine::open(&directory.0).await?);
    let durable = figures(engine.clone(), endpoints, watchers).await?;
    if let Some(engine) = Arc::into_inner(engine) {
        engine.close().await;
    }
    let start = Instant::now();
    let engine = DurableEngine::open(&directory.0).await?;
    let restart = start.elapsed();
    let found = engine.endpoints().find(&EndpointQuery::default()).await?.len();
    engine.close().await;
    let memory = figures(Arc::new(MemoryEngine::new()), endpoints, watchers).await?;
    let mut rows = rows(endpoints, &durable, &memory);
    rows.push(Row::alone(format!("{endpoints} endpoints: restart to serving"), "ms", ms(restart)));
    rows.push(Row::alone(format!("{endpoints} endpoints: lost in the restart"), "endpoints", endpoints as f64 - found as f64));
    Ok(rows)
}

/// A row of a figure in milliseconds, with the limit it must keep.
type Timed = (&'static str, fn(&Figures) -> &Vec<f64>, Option<f64>);

fn rows(endpoints: usize, durable: &Figures, memory: &Figures) -> Vec<Row> {
    let title = |what: &str| format!("{endpoints} endpoints: {what}");
    let beside =
        |what: &str, unit, ours: f64, theirs: f64| Row::alone(title(what), unit, ours).beside("memory engine", theirs, Holds::Always);
    let timed: [Timed; 4] = [
        ("Register, one at a time", |figures| &figures.register, Some(10.0)),
        ("Find by name", |figures| &figures.by_name, Some(5.0)),
        ("Find by service, 100 hits", |figures| &figures.by_service, Some(20.0)),
        ("Find by labels, one hit", |figures| &figures.by_labels, None),
    ];
    let mut rows = vec![beside(&format!("Register, {AT_ONCE} at once"), "1/s", durable.fill_per_s, memory.fill_per_s)];
    for (what, of, bar) in timed {
        rows.push(beside(&format!("{what} p50"), "ms", median(of(durable)), median(of(memory))));
        let p99 = Row::alone(title(&format!("{what} p99")), "ms", percentile(of(durable), 0.99));
        rows.push(match bar {
            Some(bar) => p99.at_most(bar),
            None => p99.beside("memory engine", percentile(of(memory), 0.99), Holds::Always),
        });
    }
    rows.push(Row::alone(title("memory, each"), "KiB", durable.endpoint_kib).at_most(2.0));
    for (durable, memory) in durable.watched.iter().zip(&memory.watched) {
        let told = format!("a change told to {} watchers", durable.watchers);
        rows.push(beside(&format!("{told} p50"), "ms", median(&durable.fan_out), median(&memory.fan_out)));
        rows.push(Row::alone(title(&format!("{told} p99")), "ms", percentile(&durable.fan_out, 0.99)).at_most(1000.0));
        let each = format!("memory, each of {} watchers", durable.watchers);
        rows.push(Row::alone(title(&each), "KiB", durable.watcher_kib).at_most(64.0));
    }
    rows
}

/// Registers these endpoints.
async fn fill(registry: &Registry, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut filling = stream::iter(numbers.map(|number| register(registry, endpoint(number)))).buffer_unordered(AT_ONCE);
    while let Some(registered) = filling.next().await {
        registered?;
    }
    Ok(())
}

async fn figures(engine: Arc<dyn Engine>, endpoints: usize, watchers: &[usize]) -> Result<Figures> {
    let registry = Registry::new(engine, Arc::new(SystemTime::now)).with_expire_period(LIFE);
    let start = Instant::now();
    // The first tenth fills what is there once, such as the cache of the database.
    let first = endpoints / 10;
    fill(&registry, 0..first).await?;
    let begun = resident_kib()?;
    fill(&registry, first..endpoints).await?;
    let (fill_per_s, full) = (endpoints as f64 / start.elapsed().as_secs_f64(), resident_kib()?);
    let pick = |sample: usize| sample * 7919 % endpoints;
    let mut figures = Figures {
        fill_per_s,
        register: Vec::new(),
        by_name: Vec::new(),
        by_service: Vec::new(),
        by_labels: Vec::new(),
        endpoint_kib: (full - begun) / (endpoints - first) as f64,
        watched: Vec::new(),
    };
    for sample in (0..SAMPLES).map(pick) {
        let start = Instant::now();
        register(&registry, endpoint(sample)).await?;
        figures.register.push(ms(start.elapsed()));
        let [name, service, labels] = queries(sample);
        figures.by_name.push(find(&registry, name, 1).await?);
        figures.by_service.push(find(&registry, service, PER_SERVICE.min(endpoints)).await?);
        figures.by_labels.push(find(&registry, labels, 1).await?);
    }
    for watchers in watchers {
        figures.watched.push(watched(&registry, *watchers).await?);
    }
    Ok(figures)
}

async fn watched(registry: &Registry, watchers: usize) -> Result<Watched> {
    let before = resident_kib()?;
    let mut watching = watch(registry, watchers).await?;
    let mut watched = Watched { watchers, fan_out: Vec::new(), watcher_kib: (resident_kib()? - before) / watchers as f64 };
    for _ in 0..CHANGES {
        watched.fan_out.push(tell(registry, &mut watching).await?);
    }
    Ok(watched)
}

fn service(number: usize) -> ServiceName {
    ServiceName::new(format!("service-{}", number / PER_SERVICE)).expect("a name of letters and digits")
}

fn labels(number: usize) -> Labels {
    [("app", "bench".to_owned()), ("nodeName", format!("node-{}", number % PER_SERVICE))].map(|(key, value)| (key.to_owned(), value)).into()
}

fn endpoint(number: usize) -> NetworkServiceEndpoint {
    let name = EndpointName::new(format!("endpoint-{number}")).expect("a name of letters and digits");
    let mut endpoint = NetworkServiceEndpoint::new(name, vec![service(number)], "tcp://10.0.0.1:5001");
    endpoint.network_service_labels = [(service(number), labels(number))].into();
    endpoint.path_ids = vec!["spiffe://bench/endpoint".to_owned(), "spiffe://bench/manager".to_owned()];
    endpoint
}

async fn register(registry: &Registry, endpoint: NetworkServiceEndpoint) -> Result<()> {
    registry.register_endpoint(endpoint, Files::default(), Caller::default()).await.map(drop)
}

/// By name, by service, by labels.
fn queries(number: usize) -> [EndpointQuery; 3] {
    let none = EndpointQuery::default;
    [
        EndpointQuery { name: Some(endpoint(number).name), ..none() },
        EndpointQuery { services: vec![service(number)], ..none() },
        EndpointQuery { labels: [(service(number), labels(number))].into(), ..none() },
    ]
}

/// Milliseconds until all answers are read.
async fn find(registry: &Registry, query: EndpointQuery, hits: usize) -> Result<f64> {
    let start = Instant::now();
    let found = registry.find_endpoints(query, Caller::default()).await?.count().await;
    let took = ms(start.elapsed());
    if found != hits {
        return Err(Error::internal("bench registry", format!("{found} endpoints were found instead of {hits}")));
    }
    Ok(took)
}

/// Watchers of one service; each has read what is there.
async fn watch(registry: &Registry, watchers: usize) -> Result<Vec<EndpointUpdates>> {
    let query = EndpointQuery { watch: true, url: "changed".to_owned(), services: vec![service(0)], ..EndpointQuery::default() };
    let mut watching = Vec::new();
    for _ in 0..watchers {
        watching.push(registry.find_endpoints(query.clone(), Caller::default()).await?);
    }
    Ok(watching)
}

/// Milliseconds from a Register until every watcher has read it.
async fn tell(registry: &Registry, watching: &mut [EndpointUpdates]) -> Result<f64> {
    let changed = NetworkServiceEndpoint { url: "changed".to_owned(), ..endpoint(0) };
    let start = Instant::now();
    register(registry, changed).await?;
    for watcher in watching {
        watcher.next().await;
    }
    Ok(ms(start.elapsed()))
}

/// Memory of this process.
fn resident_kib() -> Result<f64> {
    let unread = |reason: String| Error::new(Kind::Kernel, "/proc/self/status", reason, "mount /proc");
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| unread(error.to_string()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().map_err(|_| unread("does not tell VmRSS".to_owned()))
}

/// A directory for the time of the measurement.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("nsm-bench-registry-{}", std::process::id()));
        let made = std::fs::create_dir(&path);
        made.map_err(|error| Error::new(Kind::Kernel, format!("directory {path:?}"), error.to_string(), "set TMPDIR to a disk with room"))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I7, T-13: small, and whole: nothing is lost in a restart, a choice is made, the picture has a line for each figure.
    #[test]
    fn a_small_run_has_every_row() {
        let plot = std::env::temp_dir().join(format!("nsm-bench-plot-{}.svg", std::process::id()));
        let args = RegistryArgs { json: true, endpoints: vec![100, 200], watchers: vec![10, 20], nodes: 20, plot: Some(plot.clone()) };
        let rows = run(&args).unwrap();
        let picture = std::fs::read_to_string(&plot).unwrap();
        std::fs::remove_file(&plot).unwrap();
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row {name:?}"));
        assert_eq!(row("200 endpoints: lost in the restart").ours, 0.0);
        assert!(row("100 endpoints: a change told to 20 watchers p99").ours > 0.0);
        assert!(row("20 nodes: a forwarder's choice p50").peer_value.is_some_and(|few| few > 0.0));
        assert!(picture.contains("restart to serving") && picture.contains("<polyline"));
    }
}
