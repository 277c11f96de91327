//! Endpoints of your own, in about thirty lines.
//!
//! An [`Endpoint`] has an identity, is registered, gives its clients addresses and routes, keeps its connections over
//! restarts, and obeys signals: everything that `nsm endpoint icmp-responder` has. What it adds is yours: work beside it (a
//! server in user space), or parts that look at every Request ([`Reserve`]). Every setting of that command can be given by its
//! variable, and wins over what the program says.
//!
//! Complete programs are `examples/echo.rs` (a service in user space) and `examples/kernel_endpoint.rs` (a network behind
//! the kernel of the pod).
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     nsm::sdk::Endpoint::new("gateway").service("intranet").addresses("10.1.0.0/24").route("172.31.0.0/16").run()
//! }
//! ```

use crate::{
    context::{Context, Output},
    exit::Exit,
    roles::endpoint::{Config, ICMP_RESPONDER, responder},
    settings::Settings,
    shutdown::{DRAIN_TIME, Shutdown},
    telemetry::{Format, Level, Telemetry},
};
use futures::future::BoxFuture;
use nsm_api::{Error, Payload, Result};
use nsm_hop::role::Reserve;
use std::{collections::BTreeMap, future::Future, process::ExitCode};

/// Work beside an endpoint, which ends with it.
type Work = Box<dyn FnOnce() -> BoxFuture<'static, Result<()>> + Send>;

/// An endpoint that is being put together.
#[derive(Default)]
pub struct Endpoint {
    variables: BTreeMap<&'static str, String>,
    parts: Vec<Box<dyn Reserve>>,
    work: Option<Work>,
}

impl Endpoint {
    /// One that is called so in paths and in the registry.
    pub fn new(name: &str) -> Endpoint {
        Endpoint::default().set("NSM_NAME", name)
    }

    fn set(mut self, variable: &'static str, value: impl Into<String>) -> Endpoint {
        self.variables.insert(variable, value.into());
        self
    }
    fn add(mut self, variable: &'static str, value: String) -> Endpoint {
        let all = self.variables.entry(variable).or_default();
        *all = if all.is_empty() { value } else { format!("{all},{value}") };
        self
    }

    /// It provides this service; several times for several.
    pub fn service(self, name: &str) -> Endpoint {
        self.add("NSM_SERVICE_NAMES", name.to_owned())
    }
    /// What the service carries, if it is registered by this endpoint: ETHERNET when unsaid.
    pub fn payload(self, payload: Payload) -> Endpoint {
        self.set("NSM_PAYLOAD", payload.as_str())
    }
    /// A label that it advertises.
    pub fn label(self, key: &str, value: &str) -> Endpoint {
        self.add("NSM_LABELS", format!("{key}:{value}"))
    }
    /// A prefix for the addresses of both ends, as `10.0.0.0/24`; one of each family for both.
    pub fn addresses(self, prefix: &str) -> Endpoint {
        self.add("NSM_CIDR_PREFIX", prefix.to_owned())
    }
    /// A network behind it, which clients learn as a route.
    pub fn route(self, prefix: &str) -> Endpoint {
        self.add("NSM_ROUTES", prefix.to_owned())
    }
    /// The manager of this node, as `unix:///run/nsm/manager.sock`.
    pub fn manager(self, target: &str) -> Endpoint {
        self.set("NSM_CONNECT_TO", target)
    }
    /// A part that looks at every Request: it may hold something for it, add to its context, or refuse it.
    pub fn with(mut self, part: impl Reserve + 'static) -> Endpoint {
        self.parts.push(Box::new(part));
        self
    }
    /// Work beside it, which begins before it is registered. When it ends, so does the endpoint.
    pub fn beside<F: Future<Output = Result<()>> + Send + 'static>(mut self, work: impl FnOnce() -> F + Send + 'static) -> Endpoint {
        self.work = Some(Box::new(|| Box::pin(work())));
        self
    }

    /// Serves until the shutdown of `context`.
    ///
    /// # Errors
    /// A setting that cannot be read, no identity, or the error with which the work beside it ended.
    pub async fn serve(mut self, context: Context) -> Result<()> {
        let given = self.variables.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
        let mut settings = Settings::new("endpoint", ICMP_RESPONDER).with_environment(given).with_environment(own_variables());
        let config = Config::read(&mut settings);
        let (mut parts, _) = responder(&mut settings)?;
        settings.finish()?;
        parts.reserve.append(&mut self.parts);
        let shutdown = context.shutdown.clone();
        let serving = config.serve(parts, context);
        let Some(work) = self.work else { return serving.await };
        let work = tokio::spawn(work());
        tokio::select! {
            ended = serving => ended,
            ended = work => {
                shutdown.start();
                ended.map_err(|panic| Error::internal("the work beside the endpoint", panic.to_string()))?
            }
        }
    }

    /// The whole program: log, runtime, signals; returns when it is told to stop or cannot go on.
    pub fn run(self) -> ExitCode {
        nsm_identity::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let done = runtime.map_err(|problem| Error::internal("the runtime", problem.to_string())).and_then(|runtime| {
            runtime.block_on(async {
                let level: Level = "INFO".parse().map_err(|problem: String| Error::internal("the log", problem))?;
                let _telemetry = Telemetry::start(level, Format::Text)?;
                let signals = |problem: std::io::Error| Error::internal("signals", problem.to_string());
                self.serve(Context::new(Shutdown::on_signals(DRAIN_TIME).map_err(signals)?, Output::Text)).await
            })
        });
        match done {
            Ok(()) => Exit::Ok.into(),
            Err(error) => {
                eprintln!("{error}");
                Exit::from(error.kind).into()
            }
        }
    }
}

/// Variables of this process that can be read.
fn own_variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
