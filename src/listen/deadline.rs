//! How long a call may take.
//!
//! tonic ends a late call with CANCELLED, which clients read as "I gave up". This layer says
//! DEADLINE_EXCEEDED, and applies a deadline that the client named to the whole of a stream.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::after;
use super::refusal::Refusal;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Ends calls that take longer than the server allows or the client wants to wait.
///
/// The server's limit covers a call until the head of its response, so it does not end a stream
/// that lives on. `grpc-timeout` covers the whole call, as the client means it.
///
/// The gRPC specification does not say what to do with a malformed `grpc-timeout`. Ignoring it
/// would run a call for which the client will not wait, so it is INVALID_ARGUMENT. The
/// specification wants the value positive; zero is what some clients send for a deadline that has
/// passed, and gets DEADLINE_EXCEEDED.
///
/// Who was asked to wait for something says so by [`MoreTime`], which each request has with it: then the
/// server's limit is later by as much. What the client wants stays.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    server: Duration,
}

impl Deadline {
    /// With the server's own limit.
    pub fn new(server: Duration) -> Self {
        Self { server }
    }
}

/// In the extensions of a request: how much longer than the server's limit it may take.
#[derive(Clone, Debug, Default)]
pub struct MoreTime(Arc<OnceLock<Duration>>);

impl MoreTime {
    /// Lets the call take longer by this. Only the first time counts.
    pub fn allow(&self, more: Duration) {
        _ = self.0.set(more);
    }
}

impl Default for Deadline {
    /// 10 s.
    fn default() -> Self {
        Self::new(Duration::from_secs(10))
    }
}

impl<S> Layer<S> for Deadline {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner, server: self.server }
    }
}

/// What [`Deadline`] makes of a service.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
    server: Duration,
}

impl<S, Q, B> Service<Request<Q>> for DeadlineService<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<DeadlineBody<B>>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let client = match client_timeout(request.headers()) {
            Ok(Some(Duration::ZERO)) => Err(Refusal::TooLate),
            other => other,
        };
        let client = match client {
            Ok(client) => client,
            Err(refusal) => return DeadlineFuture { state: State::Refused { refusal } },
        };
        let stream = client.map(|client| Box::pin(sleep_until(after(client))));
        let (server, latest) = (after(self.server), client.map(after));
        let head = sleep_until(latest.map_or(server, |latest| latest.min(server)));
        let more = MoreTime::default();
        request.extensions_mut().insert(more.clone());
        let call = self.inner.call(request);
        let more = Some((server, more));
        DeadlineFuture { state: State::Running { call, head, more, latest, stream } }
    }
}

pin_project! {
    /// A call under a deadline.
    pub struct DeadlineFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        // Answered without asking the service.
        Refused { refusal: Refusal },
        // Until the head of the response.
        Running {
            #[pin]
            call: F,
            #[pin]
            head: Sleep,
            // The server's limit, until it was looked at whether that is later.
            more: Option<(Instant, MoreTime)>,
            // The client's.
            latest: Option<Instant>,
            stream: Option<Pin<Box<Sleep>>>,
        },
    }
}

impl<F, B, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<DeadlineBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let refusal = match self.project().state.project() {
            StateProjection::Refused { refusal } => *refusal,
            StateProjection::Running { call, mut head, more, latest, stream } => {
                if let Poll::Ready(answer) = call.poll(cx) {
                    let deadline = stream.take();
                    let limit = |inner| DeadlineBody { inner, deadline, ended: false };
                    return Poll::Ready(answer.map(|response| response.map(limit)));
                }
                ready!(head.as_mut().poll(cx));
                let allowed = more.take().and_then(|(server, more)| Some(server + *more.0.get()?));
                if let Some(allowed) = allowed {
                    head.as_mut().reset(latest.map_or(allowed, |latest| latest.min(allowed)));
                    ready!(head.poll(cx));
                }
                Refusal::TooLate
            }
        };
        let whole = |inner| DeadlineBody { inner, deadline: None, ended: false };
        Poll::Ready(Ok(refusal.response::<B>().map(whole)))
    }
}

pin_project! {
    /// A response's body that ends with DEADLINE_EXCEEDED when the client's deadline passes.
    #[derive(Debug)]
    pub struct DeadlineBody<B> {
        #[pin]
        inner: B,
        deadline: Option<Pin<Box<Sleep>>>,
        ended: bool,
    }
}

impl<B: Default> Default for DeadlineBody<B> {
    fn default() -> Self {
        Self { inner: B::default(), deadline: None, ended: false }
    }
}

impl<B: Body> Body for DeadlineBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        // The deadline comes first: a body that always has a frame ready must end too.
        if let Some(deadline) = this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            *this.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(Refusal::TooLate.trailers()))));
        }
        this.inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // With a deadline the rest may never come.
        if self.deadline.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// What the client is ready to wait, if it says so.
fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let mut values = headers.get_all(GRPC_TIMEOUT).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::BadTimeout);
    }
    parse(value.as_bytes()).ok_or(Refusal::BadTimeout).map(Some)
}

/// One to eight digits and a unit.
fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::StreamExt as _;
    use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
    use tokio::time::sleep;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    type AnyBody = UnsyncBoxBody<Bytes, Infallible>;

    fn request(timeout: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(timeout) = timeout {
            request.headers_mut().insert(GRPC_TIMEOUT, timeout.parse().expect("a value"));
        }
        request
    }

    /// Answers after `delay`, with a message each second for ever.
    async fn ticking(delay: Duration, request: Request<()>) -> Response<DeadlineBody<AnyBody>> {
        let service = service_fn(move |_: Request<()>| async move {
            sleep(delay).await;
            let ticks = futures_util::stream::repeat(()).then(|()| async {
                sleep(Duration::from_secs(1)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"tick")))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(ticks).boxed_unsync()))
        });
        let service = Deadline::new(Duration::from_secs(10)).layer(service);
        let Ok(response) = service.oneshot(request).await;
        response
    }

    fn status(headers: &HeaderMap) -> Option<&str> {
        headers.get("grpc-status").map(|status| status.to_str().expect("ASCII"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_of_the_two_ends_a_call_without_answer() {
        for (timeout, seconds) in [(None, 10), (Some("3S"), 3), (Some("1H"), 10), (Some("0n"), 0)] {
            let start = Instant::now();
            let response = ticking(Duration::from_secs(3600), request(timeout)).await;
            assert_eq!(status(response.headers()), Some("4"), "{timeout:?}");
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert!(response.headers().contains_key("grpc-status-details-bin"));
            assert_eq!(start.elapsed().as_secs(), seconds, "{timeout:?}");
            assert!(response.into_body().is_end_stream(), "trailers only");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_what_it_was_asked_to_has_as_much_more_time() {
        for (takes, timeout, ends, in_time) in [
            (29, None, 29, true),
            (41, None, 40, false),
            (29, Some("12S"), 12, false),
            (29, Some("3S"), 3, false),
            (29, Some("1H"), 29, true),
        ] {
            let service = service_fn(move |request: Request<()>| async move {
                let more = request.extensions().get::<MoreTime>().expect("it is there");
                more.allow(Duration::from_secs(30));
                sleep(Duration::from_secs(takes)).await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"answer"))))
            });
            let start = Instant::now();
            let service = Deadline::new(Duration::from_secs(10)).layer(service);
            let Ok(response) = service.oneshot(request(timeout)).await;
            let late = (!in_time).then_some("4");
            assert_eq!(status(response.headers()), late, "{takes} {timeout:?}");
            assert_eq!(start.elapsed().as_secs(), ends, "{takes} {timeout:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_clients_deadline_ends_a_stream() {
        let start = Instant::now();
        let response = ticking(Duration::ZERO, request(Some("5500m"))).await;
        let ended = response.into_body().collect().await.expect("no error");
        assert_eq!(ended.trailers().and_then(status), Some("4"));
        assert_eq!(ended.to_bytes().len(), 5 * "tick".len());
        assert_eq!(start.elapsed().as_millis(), 5500);

        let mut body = ticking(Duration::ZERO, request(None)).await.into_body();
        for _ in 0..60 {
            assert!(body.frame().await.expect("goes on").expect("no error").is_data());
        }
    }

    #[tokio::test]
    async fn a_malformed_timeout_is_refused() {
        for timeout in ["", "S", "1", "123456789S", "1s", "-1S", "+1S", "1.5S", "1S,2S", " 1S x"] {
            let response = ticking(Duration::ZERO, request(Some(timeout))).await;
            assert_eq!(status(response.headers()), Some("3"), "{timeout:?}");
        }
        let mut twice = request(Some("1S"));
        twice.headers_mut().append(GRPC_TIMEOUT, "2S".parse().expect("a value"));
        assert_eq!(status(ticking(Duration::ZERO, twice).await.headers()), Some("3"));
    }

    #[tokio::test]
    async fn a_call_in_time_passes_untouched() {
        let service = service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"answer"))))
        });
        let Ok(response) = Deadline::default().layer(service).oneshot(request(None)).await;
        assert_eq!(response.body().size_hint().exact(), Some(6));
        let body = response.into_body().collect().await.expect("no error");
        assert_eq!(body.to_bytes(), "answer");
    }

    #[test]
    fn reads_every_unit() {
        for (text, expected) in [
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("00000006n", Duration::from_nanos(6)),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expected));
        }
    }
}
