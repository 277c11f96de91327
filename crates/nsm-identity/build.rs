//! Generates the Workload API from `proto/` without a protoc binary.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.join("workload.proto").display());
    let descriptors = protox::compile(["workload.proto"], [&protos])?;
    Ok(tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?)
}
