//! The model of `nsm-registry` over both engines that last.

use crate::{common::*, etcd::Cluster, medium::FaultDisk};
use async_trait::async_trait;
use nsm_registry::{
    Engine, WallClock,
    testing::model::{self, Subject},
};
use nsm_store::{DurableEngine, EtcdEngine, EtcdOptions};
use std::{cell::Cell, sync::Arc};

struct Durable {
    disk: FaultDisk,
    clock: TestClock,
    chance: Seeded,
    engine: Option<Arc<DurableEngine>>,
}

#[async_trait]
impl Subject for Durable {
    async fn engine(&mut self) -> Arc<dyn Engine> {
        let opened = Arc::new(open(&self.disk, self.clock).await.unwrap());
        self.engine = Some(opened.clone());
        opened
    }
    async fn end(&mut self, crash: bool) {
        let Some(engine) = self.engine.take() else { return };
        if crash {
            self.disk.restart(&mut self.chance);
        }
        Arc::into_inner(engine).expect("the registry was the only other user").close().await;
    }
    fn wall(&self) -> Option<WallClock> {
        Some(self.clock.wall())
    }
}

struct Etcd(EtcdOptions);

#[async_trait]
impl Subject for Etcd {
    async fn engine(&mut self) -> Arc<dyn Engine> {
        Arc::new(EtcdEngine::new(&self.0).unwrap())
    }
    async fn end(&mut self, _: bool) {}
    fn wall(&self) -> Option<WallClock> {
        None
    }
}

/// A-07, M-16, M-19, M-20; reliability I6, I7, A14, and C2 between any two calls.
#[test]
fn durable_behaves_like_the_model() {
    let subject = || Durable { disk: FaultDisk::default(), clock: TestClock::new(), chance: Seeded(7), engine: None };
    model::sequences(2000, |steps| model::paused(subject, steps));
}

/// The same over a real cluster of one member; every sequence under keys of its own.
#[test]
fn etcd_behaves_like_the_model() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::start(1));
    let case = Cell::new(0);
    model::sequences(60, |steps| {
        case.set(case.get() + 1);
        let options = EtcdOptions { prefix: format!("/case{}/", case.get()), ..cluster.options() };
        runtime.block_on(model::live(Etcd(options), steps));
    });
}
