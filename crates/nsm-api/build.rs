//! Generates the messages from `proto/` without a protoc binary.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 5] = ["networkservice.proto", "connection.proto", "connectioncontext.proto", "registry.proto", "ipam.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.display());

    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_imports(true).open_files(FILES)?;
    let descriptors = out.join("descriptors.bin");
    let encoded = compiler.encode_file_descriptor_set();
    // Only when it differs: the file counts as an input of this very script.
    if fs::read(&descriptors).ok().as_deref() != Some(&encoded[..]) {
        fs::write(&descriptors, encoded)?;
    }

    buffa_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&FILES)
        .generate_views(false)
        .map_type(buffa_build::MapRepr::BTreeMap)
        .include_file("messages.rs")
        .compile()
}
