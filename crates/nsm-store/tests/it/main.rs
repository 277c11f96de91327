//! Both engines as a registry uses them: the model, restarts, faults of the disk, faults of the cluster, histories.

#![allow(clippy::unwrap_used)] // a test fails by it

mod common;
mod conform;
mod crash;
mod durable;
mod etcd;
mod history;
mod medium;
mod model;
mod partition;

use nsm_sim::linear;
