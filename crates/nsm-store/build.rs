//! Generates the client of etcd's API from `proto/` without a protoc binary.

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", protos.display());
    let descriptors = protox::compile(["etcd.proto"], [&protos])?;
    Ok(tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?)
}
