//! One count, one log line and, where traces are on, one span for each call: method, code, latency, request id. Never payloads.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry_sdk::trace::SdkTracer;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::trace::CallSpan;
use crate::metrics::{Code, Method, Metrics};
use crate::trace;

/// The id of a request: in the log, in the audit log, and in the response header `x-request-id`.
#[derive(Clone, Debug)]
pub struct RequestId(pub Box<str>);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Observes every call of a service.
#[derive(Clone)]
pub struct Observe {
    metrics: Arc<Metrics>,
    ids: Arc<Ids>,
    tracer: Option<SdkTracer>,
}

/// Ids that are unique in this process and, by their random start, beyond it.
struct Ids {
    process: u32,
    next: AtomicU64,
}

impl Observe {
    /// Counts in `metrics`. `process` is a random number that tells the ids of this process from
    /// those of others.
    pub fn new(metrics: Arc<Metrics>, process: u32) -> Self {
        let ids = Arc::new(Ids { process, next: AtomicU64::new(1) });
        Self { metrics, ids, tracer: None }
    }

    /// With a span for each call, if there is where to send it.
    pub fn tracing(self, tracer: Option<SdkTracer>) -> Self {
        Self { tracer, ..self }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

/// What [`Observe`] makes of a service.
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S, Q, B> Service<Request<Q>> for Observed<S>
where
    S: Service<Request<Q>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<ObservedBody<B>>;
    type Error = Infallible;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let ids = &self.observe.ids;
        let id = format!("{:08x}-{:x}", ids.process, ids.next.fetch_add(1, Ordering::Relaxed));
        let method = Method::from_path(request.uri().path());
        request.extensions_mut().insert(RequestId(id.as_str().into()));
        self.observe.metrics.rpc_began(method);
        let tracer = self.observe.tracer.as_ref();
        let span = tracer.map(|it| CallSpan::begin(it, request.headers(), method, &id));
        let traced = tracer.zip(span.as_ref()).and_then(|(tracer, span)| span.call(tracer));
        let call = Call {
            metrics: Arc::clone(&self.observe.metrics),
            method,
            started: Instant::now(),
            head: None,
            id,
            span,
            ended: false,
        };
        ObservedFuture { inner: self.inner.call(request), call: Some(call), traced }
    }
}

/// One call. Whoever drops it before it has ended has cancelled it.
struct Call {
    metrics: Arc<Metrics>,
    method: Method,
    started: Instant,
    head: Option<Duration>,
    id: String,
    span: Option<CallSpan>,
    ended: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if self.ended {
            return;
        }
        self.ended = true;
        let whole = self.started.elapsed();
        if let Some(span) = &mut self.span {
            span.end(code);
        }
        self.metrics.rpc(self.method, code, self.head.unwrap_or(whole));
        let (method, code_text) = (self.method.as_str(), code.as_str());
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::warn!(method, code = code_text, request_id = %self.id, latency = ?whole, "rpc");
            }
            _ => {
                tracing::debug!(method, code = code_text, request_id = %self.id, latency = ?whole, "rpc");
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The code that headers or trailers say, if they say one.
fn code(headers: &HeaderMap) -> Option<Code> {
    let number = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    Some(Code::from_number(number))
}

pin_project! {
    /// What a call through [`Observe`] waits for.
    pub struct ObservedFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        traced: Option<trace::Call>,
    }
}

impl<F, B> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<ObservedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.traced {
            Some(traced) => traced.run(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        let Poll::Ready(Ok(mut response)) = polled else { return Poll::Pending };
        let mut call = this.call.take();
        if let Some(call) = &mut call {
            call.head = Some(call.started.elapsed());
            if let Ok(id) = HeaderValue::from_str(&call.id) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            // A call that failed before its first message says so in the head.
            if let Some(code) = code(response.headers()) {
                call.end(code);
            }
        }
        Poll::Ready(Ok(response.map(|inner| ObservedBody { inner, call })))
    }
}

pin_project! {
    /// The body of an observed answer. The call ends with its trailers.
    pub struct ObservedBody<B> {
        #[pin]
        inner: B,
        call: Option<Call>,
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let polled = this.inner.poll_frame(cx);
        if let Some(call) = this.call {
            match &polled {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.end(code(trailers).unwrap_or(Code::Unknown));
                    }
                }
                Poll::Ready(Some(Err(_))) => call.end(Code::Internal),
                Poll::Ready(None) => call.end(Code::Unknown),
                Poll::Pending => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
