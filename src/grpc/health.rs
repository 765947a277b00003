//! `grpc.health.v1`: what is served now, by name. Everything starts NOT_SERVING.

use std::pin::Pin;

use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthCalls, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
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
pub struct Health {
    reporter: HealthReporter,
    /// Whether the streams end once they have said what there is to say.
    ending: watch::Sender<bool>,
}

impl Health {
    /// A reporter that says NOT_SERVING for every name, and the service that tells.
    pub async fn new() -> (Self, HealthServer<Calls>) {
        let reporter = HealthReporter::new();
        let inner = HealthService::from_health_reporter(reporter.clone());
        let health = Self { reporter, ending: watch::Sender::new(false) };
        health.not_serving().await;
        let server = HealthServer::new(Calls { inner, ending: health.ending.subscribe() });
        (health, server)
    }

    async fn set(&self, name: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }

    /// Calls are answered from now on.
    pub async fn serving(&self) {
        self.calls(true).await;
    }

    /// Whether calls can be answered.
    pub async fn calls(&self, serving: bool) {
        for name in CALLS {
            self.set(name, serving).await;
        }
    }

    /// Ends the streams, which would hold the connections of a drain until its deadline. What was
    /// said before, they say first.
    pub fn end_streams(&self) {
        self.ending.send_replace(true);
    }

    /// Nothing is served any more, or not for long: says so, on streams that stay open.
    pub async fn not_serving(&self) {
        self.calls(false).await;
        self.revocations(false).await;
    }

    /// Whether the stream of revocations is fresh.
    pub async fn revocations(&self, fresh: bool) {
        self.set(revocation_service_server::SERVICE_NAME, fresh).await;
    }
}

/// Answers Check and Watch.
pub struct Calls {
    inner: HealthService,
    ending: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl HealthCalls for Calls {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let statuses = self.inner.watch(request).await?.into_inner();
        let ending = self.ending.clone();
        let told = stream::unfold((statuses, ending), |(mut statuses, mut ending)| async move {
            tokio::select! {
                // What was said before the end is said first.
                biased;
                status = statuses.next() => status.map(|status| (status, (statuses, ending))),
                () = ended(&mut ending) => None,
            }
        });
        Ok(Response::new(Box::pin(told)))
    }
}

async fn ended(ending: &mut watch::Receiver<bool>) {
    // The other end is dropped with the server, which is an end as well.
    let _ = ending.wait_for(|ending| *ending).await;
}
