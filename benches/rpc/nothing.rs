//! The RPC that does nothing: takes bytes, gives bytes. Everything else is measured against it.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use avouch::pb::MessageCodec;
use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower_service::Service;

const NAME: &str = "avouch.bench.NothingService";
const PATH: &str = "/avouch.bench.NothingService/Do";

/// What is asked, and how long the answer shall be.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ask {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) payload: Bytes,
    #[prost(uint32, tag = "2")]
    pub(crate) answer_bytes: u32,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Answer {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) payload: Bytes,
}

impl Ask {
    /// A request of so many bytes whose answer has so many bytes, give or take two.
    pub(crate) fn sized((request, answer): (usize, usize)) -> Self {
        let payload = |bytes: usize| bytes.saturating_sub(3);
        let answer_bytes = u32::try_from(payload(answer)).unwrap_or(u32::MAX);
        Self { payload: vec![7; payload(request).saturating_sub(3)].into(), answer_bytes }
    }
}

/// Serves it.
#[derive(Clone)]
struct Nothing;

impl NamedService for Nothing {
    const NAME: &'static str = NAME;
}

struct Do;

impl UnaryService<Ask> for Do {
    type Response = Answer;
    type Future = std::future::Ready<Result<Response<Answer>, Status>>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        static BYTES: LazyLock<Bytes> = LazyLock::new(|| vec![7; 64 * 1024].into());
        let asked = usize::try_from(request.get_ref().answer_bytes).unwrap_or(usize::MAX);
        let payload = BYTES.slice(..asked.min(BYTES.len()));
        std::future::ready(Ok(Response::new(Answer { payload })))
    }
}

impl Service<http::Request<Body>> for Nothing {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = MessageCodec::<Answer, Ask>::default();
            Ok(Grpc::new(codec).unary(Do, request).await)
        })
    }
}

/// The routes with it.
pub(crate) fn add(routes: Routes) -> Routes {
    routes.add_service(Nothing)
}

/// Calls it.
pub(crate) async fn call(channel: &Channel, ask: Ask) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = MessageCodec::<Ask, Answer>::default();
    let path = http::uri::PathAndQuery::from_static(PATH);
    grpc.unary(Request::new(ask), path, codec).await.map(|_| ())
}
