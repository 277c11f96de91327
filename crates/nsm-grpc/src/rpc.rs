//! The generated services and the messages of the health service. What they mean is in `handlers` and `dial`.
#![allow(missing_docs, unused_qualifications, unreachable_pub, rustdoc::all, clippy::all, clippy::pedantic)]

mod health {
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}
pub(crate) use health::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

macro_rules! service {
    ($module:ident, $file:literal) => {
        pub(crate) mod $module {
            include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
        }
    };
}
service!(network_service, "networkservice.NetworkService");
service!(monitor_connection, "connection.MonitorConnection");
service!(service_registry, "registry.NetworkServiceRegistry");
service!(endpoint_registry, "registry.NetworkServiceEndpointRegistry");
service!(ipam, "ipam.IPAM");
service!(health_service, "grpc.health.v1.Health");
