//! What calls go over: one connection, many replicas, or either of them with a credential added.

use std::fmt;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::transport::Channel;
use tower::util::BoxCloneSyncService;
use tower_service::Service;

/// Any error, as tower passes them on.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Boxed = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;

/// What calls go over. Clones share it.
#[derive(Clone)]
pub struct Transport(Boxed);

impl Transport {
    /// Over this service: a [`Channel`], [`Replicas`](super::balance::Replicas), or one of them in a
    /// layer.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>>,
        S: Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(tower::ServiceExt::map_err(service, Into::into)))
    }
}

impl From<Channel> for Transport {
    fn from(channel: Channel) -> Self {
        Self::new(channel)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = <Boxed as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}
