//! A panic in one call ends that call, not its neighbours.

use std::any::Any;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{CatchUnwind, FutureExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::refusal::Refusal;
use super::stats::ListenStats;

/// Turns a panic into INTERNAL for a gRPC call, into 500 for any other, and counts it.
///
/// What the handler held is dropped, so a poisoned lock is the handler's to expect. The panic's
/// text goes to the panic hook alone: it may hold anything, and the peer learns nothing from it.
#[derive(Clone, Debug)]
pub struct CatchPanic {
    stats: Arc<ListenStats>,
}

impl CatchPanic {
    /// Counts in `stats`.
    pub fn new(stats: Arc<ListenStats>) -> Self {
        Self { stats }
    }
}

impl<S> Layer<S> for CatchPanic {
    type Service = CatchPanicService<S>;

    fn layer(&self, inner: S) -> CatchPanicService<S> {
        CatchPanicService { inner, stats: Arc::clone(&self.stats) }
    }
}

/// What [`CatchPanic`] makes of a service.
#[derive(Clone, Debug)]
pub struct CatchPanicService<S> {
    inner: S,
    stats: Arc<ListenStats>,
}

impl<S, Q, B> Service<Request<Q>> for CatchPanicService<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<CatchPanicBody<B>>;
    type Error = S::Error;
    type Future = CatchPanicFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let grpc = is_grpc(request.headers());
        let inner = &mut self.inner;
        // A handler may panic before it returns a future.
        let call = std::panic::catch_unwind(AssertUnwindSafe(|| inner.call(request)));
        CatchPanicFuture {
            call: call.ok().map(|call| AssertUnwindSafe(call).catch_unwind()),
            grpc,
            stats: Arc::clone(&self.stats),
        }
    }
}

pin_project! {
    /// A call whose panic is caught.
    pub struct CatchPanicFuture<F> {
        // `None` if the call panicked before there was a future.
        #[pin]
        call: Option<CatchUnwind<AssertUnwindSafe<F>>>,
        grpc: bool,
        stats: Arc<ListenStats>,
    }
}

impl<F, B, E> Future for CatchPanicFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<CatchPanicBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.call.as_pin_mut() {
            Some(call) => std::task::ready!(call.poll(cx)),
            None => Err(Box::new(()) as Box<dyn Any + Send>),
        };
        let grpc = *this.grpc;
        let stats = Arc::clone(this.stats);
        let answer = answer.unwrap_or_else(|_| {
            report(&stats);
            Ok(if grpc { Refusal::Panic.response() } else { server_error() })
        });
        let guard = |inner| CatchPanicBody { inner, grpc, ended: false, stats };
        Poll::Ready(answer.map(|response| response.map(guard)))
    }
}

pin_project! {
    /// A response's body whose panic ends a gRPC stream with INTERNAL, and cuts any other short.
    #[derive(Debug)]
    pub struct CatchPanicBody<B> {
        #[pin]
        inner: B,
        grpc: bool,
        ended: bool,
        stats: Arc<ListenStats>,
    }
}

impl<B> Body for CatchPanicBody<B>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        let inner = this.inner;
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.poll_frame(cx))) {
            Ok(outcome) => outcome.map_err(Into::into),
            Err(_) => {
                *this.ended = true;
                report(this.stats);
                Poll::Ready(Some(if *this.grpc {
                    Ok(Frame::trailers(Refusal::Panic.trailers()))
                } else {
                    Err("internal error".into())
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn report(stats: &ListenStats) {
    stats.handler_panics.add();
    tracing::error!("a handler panicked; its call failed");
}

fn server_error<B: Default>() -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
