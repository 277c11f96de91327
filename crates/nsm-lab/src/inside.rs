//! A lab for other work than its checks: measurements. Brought up from text, worked in, and taken away, whatever happens.
//!
//! Not here: what is measured.

use crate::{
    cli::{runtime, setting},
    plan::{Files, Role, Spec, TOOL, registry_url, unix},
    process::Process,
    progress::Progress,
    read::{LabFile, read},
    run::{Interrupt, Outside, changes, panic_text},
    world::World,
};
use futures::FutureExt;
use nsm_api::{Error, Kind, Result, Target};
use nsm_hop::kernel::Netns;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A running lab.
pub struct Inside {
    world: World,
    progress: Progress,
}

/// Brings up the lab that `text` describes, does `work` in it, and takes everything away: after success, an error, a
/// panic, or the user's wish to stop. Something left behind is an error. Without root everything happens in a user
/// namespace of its own. Call it while the process has one thread and no async runtime; `work` runs on that thread.
pub fn inside<T>(text: &str, work: impl AsyncFnOnce(&mut Inside) -> Result<T>) -> Result<T> {
    let (lab, services) = read(text).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Error::internal("the lab's document", format!("has mistakes: {}", lines.join(", ")))
    })?;
    let file = LabFile { path: PathBuf::new(), lab, services };
    let setting = setting(false)?;
    runtime()?.block_on(async {
        let mut interrupt = Interrupt::new()?;
        let (name, progress) = (file.lab.name.clone(), Progress::new(&file.lab.name));
        let before = Outside::look(&name);
        let mut inside = Inside { world: World::claim(file, setting)?, progress };
        let body = async {
            inside.world.up(&inside.progress).await?;
            work(&mut inside).await
        };
        let done = tokio::select! {
            done = AssertUnwindSafe(body).catch_unwind() => done.unwrap_or_else(|panic| Err(Error::internal("work in a lab", panic_text(panic.as_ref())))),
            () = interrupt.wait() => Err(Error::new(Kind::Unavailable, format!("lab {name:?}"), "was interrupted", "start it again")),
        };
        let Inside { world, progress } = inside;
        let left: Vec<String> = world.down(&progress).await.into_iter().chain(changes(before, Outside::look(&name))).collect();
        progress.done(done.is_ok() && left.is_empty(), if left.is_empty() { "nothing left behind" } else { "left something behind" });
        match (done, left.is_empty()) {
            (Ok(_), false) => Err(Error::internal(format!("lab {name:?}"), format!("left behind: {}", left.join(", ")))),
            (done, _) => done,
        }
    })
}

impl Inside {
    /// The world itself, for work of this crate.
    pub(crate) fn parts(&mut self) -> (&mut World, &Progress) {
        (&mut self.world, &self.progress)
    }
    /// Says what is being done now.
    pub fn step(&self, what: &str) {
        self.progress.step(what);
    }
    /// The namespace of a node or pod, or the `fabric` between the nodes.
    pub fn netns(&self, place: &str) -> Result<Netns> {
        Ok(self.world.places.get(&self.world.file.lab.namespace(place))?.netns.clone())
    }
    /// Where the manager of a node listens for this node's clients.
    pub fn manager(&self, node: &str) -> Target {
        Target::Unix(self.world.files.manager(node))
    }
    /// Where the registry listens; reached from inside the fabric.
    pub fn registry(&self) -> Result<Target> {
        Target::parse(&registry_url(&self.world.file.lab))
    }
    /// The SPIFFE Workload API socket that gives this process an identity in the lab.
    pub fn workload_api(&self) -> String {
        unix(&self.world.files.workload(TOOL))
    }
    /// The address by which the other nodes reach this one.
    pub fn address(&self, node: &str) -> Result<IpAddr> {
        self.world.underlay_address(node)
    }
    /// The id of a process of the lab.
    pub fn pid(&mut self, process: &str) -> Result<u32> {
        Ok(self.world.process(process)?.pid)
    }
    /// Starts this program with `args` in the namespace of `place` until it says that it serves, and ends it again.
    /// Answers how long it took to serve. In `args`, `{dir}` stands for a directory of its own.
    pub async fn time_start(&mut self, place: &str, args: &[&str]) -> Result<Duration> {
        let files: &Files = &self.world.files;
        let own = files.own(TOOL).display().to_string();
        std::fs::create_dir_all(&own).map_err(|error| Error::internal(format!("directory {own}"), error.to_string()))?;
        let env = BTreeMap::from([("SPIFFE_ENDPOINT_SOCKET".to_owned(), self.workload_api()), ("NSM_STATE_DIR".to_owned(), own.clone())]);
        let args = args.iter().map(|arg| arg.replace("{dir}", &own)).collect();
        let netns = self.world.file.lab.namespace(place);
        let spec = Spec {
            name: TOOL.to_owned(),
            role: Role::App,
            netns,
            program: None,
            args,
            env,
            resolv_conf: None,
            refused: false,
            later: false,
        };
        let begun = Instant::now();
        let mut process = Process::start(self.world.program(), &spec, files)?;
        let ready = process.ready().await;
        let took = begun.elapsed();
        let stopped = process.stop().await;
        ready?;
        let _ = std::fs::remove_dir_all(&own);
        stopped.map_or(Ok(took), |what| Err(Error::internal(format!("nsm {}", spec.args[0]), what)))
    }
}
