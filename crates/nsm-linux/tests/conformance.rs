//! The real kernel passes the suite that the fake one passes. Needs root or a user namespace of its own.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

mod common;

use common::Real;
use nsm_hop::testing::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_kernel_conforms() {
    let (world, kernel) = Real::new();
    let before = world.node.snapshot().unwrap();
    conformance(&kernel, &world).await;
    assert_eq!(world.node.snapshot().unwrap(), before);
}
