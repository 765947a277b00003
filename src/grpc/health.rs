//! `grpc.health.v1`: what is served now, by name. Everything starts NOT_SERVING.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::pb::v1::{
    admin_service_server, identity_service_server, revocation_service_server,
    session_service_server,
};

/// The name under which a client asks for the server as a whole.
const WHOLE: &str = "";

const CALLS: [&str; 4] = [
    WHOLE,
    identity_service_server::SERVICE_NAME,
    session_service_server::SERVICE_NAME,
    admin_service_server::SERVICE_NAME,
];

/// Says what is served.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// A reporter that says NOT_SERVING for every name, and the service that tells.
    pub async fn new() -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self(reporter);
        health.not_serving().await;
        (health, server)
    }

    async fn set(&self, name: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status(name, status).await;
    }

    /// Calls are answered from now on.
    pub async fn serving(&self) {
        for name in CALLS {
            self.set(name, true).await;
        }
    }

    /// Nothing is served any more.
    pub async fn not_serving(&self) {
        for name in CALLS {
            self.set(name, false).await;
        }
        self.revocations(false).await;
    }

    /// Whether the stream of revocations is fresh.
    pub async fn revocations(&self, fresh: bool) {
        self.set(revocation_service_server::SERVICE_NAME, fresh).await;
    }
}
