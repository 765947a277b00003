//! The least that an ext_authz server can do: it reads nothing and says yes.

use std::convert::Infallible;
use std::future::Ready;
use std::path::Path;
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::Failure;

/// A message of which nothing is read.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Nothing {}

/// As much of `envoy.service.auth.v3.CheckResponse` as yes takes.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct CheckResponse {
    /// A google.rpc.Status; empty is OK.
    #[prost(message, optional, tag = "1")]
    status: Option<Nothing>,
    #[prost(message, optional, tag = "3")]
    ok_response: Option<Nothing>,
}

struct Check;

impl UnaryService<Nothing> for Check {
    type Response = CheckResponse;
    type Future = Ready<Result<Response<CheckResponse>, Status>>;

    fn call(&mut self, _: Request<Nothing>) -> Self::Future {
        let yes = CheckResponse { status: Some(Nothing {}), ok_response: Some(Nothing {}) };
        std::future::ready(Ok(Response::new(yes)))
    }
}

/// Answers whatever is called.
#[derive(Clone)]
struct Yes;

impl Service<http::Request<hyper::body::Incoming>> for Yes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<CheckResponse, Nothing>::default();
            Ok(Grpc::new(codec).unary(Check, request.map(Body::new)).await)
        })
    }
}

/// Serves it on a Unix socket until the process ends.
pub(crate) fn serve(path: &Path) -> Result<(), Failure> {
    let listener = UnixListener::bind(path)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = TowerToHyperService::new(Yes);
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    Ok(())
}
