//! Generates the gRPC services over our codec, and the messages of the health service.

use std::{env, error::Error, fs, path::PathBuf};
use tonic_build::manual::{Builder, Method, Service};

const CONNECTION: &str = "::nsm_api::proto::connection::Connection";
const EMPTY: &str = "::buffa_types::google::protobuf::Empty";

fn main() -> Result<(), Box<dyn Error>> {
    Builder::new().build_transport(false).compile(&services());
    health_messages()
}

fn services() -> Vec<Service> {
    let service = |package, name, methods: Vec<Method>| {
        methods.into_iter().fold(Service::builder().package(package).name(name), |service, method| service.method(method)).build()
    };
    vec![
        service(
            "networkservice",
            "NetworkService",
            vec![
                unary("Request", "::nsm_api::proto::networkservice::NetworkServiceRequest", CONNECTION),
                unary("Close", CONNECTION, EMPTY),
            ],
        ),
        service(
            "connection",
            "MonitorConnection",
            vec![stream(
                "MonitorConnections",
                "::nsm_api::proto::connection::MonitorScopeSelector",
                "::nsm_api::proto::connection::ConnectionEvent",
            )],
        ),
        service("registry", "NetworkServiceRegistry", registry("NetworkService")),
        service("registry", "NetworkServiceEndpointRegistry", registry("NetworkServiceEndpoint")),
        service(
            "ipam",
            "IPAM",
            vec![both("ManagePrefixes", "::nsm_api::proto::ipam::PrefixRequest", "::nsm_api::proto::ipam::PrefixResponse")],
        ),
        service(
            "grpc.health.v1",
            "Health",
            vec![
                unary("Check", "crate::rpc::HealthCheckRequest", "crate::rpc::HealthCheckResponse"),
                stream("Watch", "crate::rpc::HealthCheckRequest", "crate::rpc::HealthCheckResponse"),
            ],
        ),
    ]
}

/// The three methods that both registries have, over `object`.
fn registry(object: &str) -> Vec<Method> {
    let message = |suffix: &str| format!("::nsm_api::proto::registry::{object}{suffix}");
    vec![
        unary("Register", &message(""), &message("")),
        stream("Find", &message("Query"), &message("Response")),
        unary("Unregister", &message(""), EMPTY),
    ]
}

fn unary(route: &str, input: &str, output: &str) -> Method {
    method(route, input, output).build()
}

fn stream(route: &str, input: &str, output: &str) -> Method {
    method(route, input, output).server_streaming().build()
}

fn both(route: &str, input: &str, output: &str) -> Method {
    method(route, input, output).client_streaming().server_streaming().build()
}

fn method(route: &str, input: &str, output: &str) -> tonic_build::manual::MethodBuilder {
    let mut name = String::new();
    for letter in route.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    Method::builder().name(name).route_name(route).input_type(input).output_type(output).codec_path("crate::codec::BuffaCodec")
}

fn health_messages() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let protos = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", protos.display());
    println!("cargo::rerun-if-changed=build.rs");

    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_imports(true).open_files(["health.proto"])?;
    let descriptors = out.join("descriptors.bin");
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    buffa_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&["health.proto"])
        .generate_views(false)
        .include_file("messages.rs")
        .compile()
}
