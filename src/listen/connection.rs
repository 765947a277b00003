//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tower_service::Service;

use super::admission::Place;
use super::after;
use super::body::{OutputWatch, RequestBody, ResponseBody};
use super::io::{FirstBytes, StallGuard};
use super::peer::{PeerCertificate, PeerInfo};
use super::settings::{ListenSettings, Protocol};
use super::socket::Stream;
use super::stats::ListenStats;
use super::tls::Tls;

/// What all connections of a listener share.
pub(super) struct Shared {
    pub(super) settings: ListenSettings,
    pub(super) builder: auto::Builder<TokioExecutor>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) stats: Arc<ListenStats>,
}

/// What is particular to one.
pub(super) struct Arrival {
    pub(super) id: u64,
    pub(super) address: std::net::SocketAddr,
    /// How old it may become, jitter included.
    pub(super) max_age: Duration,
    pub(super) place: Place,
    /// Cancelled when the listener drains.
    pub(super) draining: CancellationToken,
}

/// hyper, with every knob set.
pub(super) fn builder(settings: &ListenSettings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.first_bytes_timeout)
        .max_buf_size((settings.max_header_list_size as usize).max(8 * 1024));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_local_error_reset_streams(settings.max_local_error_reset_streams)
        .max_pending_accept_reset_streams(settings.max_pending_accept_reset_streams)
        .max_header_list_size(settings.max_header_list_size)
        .initial_stream_window_size(settings.initial_stream_window_size)
        .initial_connection_window_size(settings.initial_connection_window_size)
        .max_send_buf_size(settings.max_send_buf_size)
        .keep_alive_interval(settings.http2_keepalive_interval)
        .keep_alive_timeout(settings.http2_keepalive_timeout);
    match settings.protocol {
        Protocol::Auto => builder,
        Protocol::Http1 => builder.http1_only(),
        Protocol::Http2 => builder.http2_only(),
    }
}

/// Serves one connection to its end. The place under the caps is held until then.
pub(super) async fn run<S, B>(shared: Arc<Shared>, arrival: Arrival, stream: Stream, service: S)
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (settings, stats) = (&shared.settings, &shared.stats);
    let stream = StallGuard::new(stream, settings.write_stall_timeout, Arc::clone(stats));
    let Some(tls) = &shared.tls else {
        let peer = peer(&arrival, None);
        return serve(&shared, arrival, peer, stream, service).await;
    };
    let handshake =
        timeout(settings.handshake_timeout, TlsAcceptor::from(tls.current()).accept(stream));
    let stream = tokio::select! {
        // Who has not finished the handshake has no call to finish.
        () = arrival.draining.cancelled() => return,
        outcome = handshake => match outcome.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(stream) => stream,
            Err(error) => return handshake_failed(stats, &arrival, &error),
        },
    };
    let chain = stream.get_ref().1.peer_certificates().map(<[CertificateDer<'_>]>::to_vec);
    let certificate = match chain.map(PeerCertificate::parse).transpose() {
        Ok(certificate) => certificate,
        Err(error) => return handshake_failed(stats, &arrival, &io::Error::other(error)),
    };
    let peer = peer(&arrival, certificate);
    serve(&shared, arrival, peer, stream, service).await;
}

fn handshake_failed(stats: &ListenStats, arrival: &Arrival, error: &io::Error) {
    stats.handshake_failures.add();
    tracing::debug!(peer = %arrival.address, %error, "TLS handshake failed");
}

fn peer(arrival: &Arrival, certificate: Option<PeerCertificate>) -> Arc<PeerInfo> {
    Arc::new(PeerInfo {
        connection_id: arrival.id,
        address: arrival.address,
        certificate,
        going: arrival.draining.child_token(),
        close: CancellationToken::new(),
        kept_open: AtomicUsize::new(0),
    })
}

/// Speaks HTTP until the peer leaves, the connection grows too old, or somebody closes it.
async fn serve<T, S, B>(
    shared: &Shared,
    arrival: Arrival,
    peer: Arc<PeerInfo>,
    stream: T,
    service: S,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (settings, stats) = (&shared.settings, &shared.stats);
    let (stream, first_bytes) = FirstBytes::new(stream);
    let output = OutputWatch::new();
    let calls = Calls {
        body_timeout: settings.request_body_timeout,
        output: Arc::clone(&output),
        peer: Arc::clone(&peer),
        service,
    };
    let mut http = pin!(shared.builder.serve_connection(TokioIo::new(stream), calls));
    let mut first_bytes_due = pin!(sleep_until(after(settings.first_bytes_timeout)));
    let mut waits_for_first_bytes = true;
    // Asks the connection to go when it is old, and closes it when the grace is over. A drain has
    // its own deadline, which the listener keeps.
    let mut age_due = pin!(sleep_until(after(arrival.max_age)));
    let grace = settings.max_connection_age_grace;
    let mut kept_open_until: Option<Instant> = None;
    let mut asked_to_go = false;
    let every = (settings.write_stall_timeout / 4).max(Duration::from_millis(10));
    let mut looks = interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        tokio::select! {
            outcome = http.as_mut() => {
                if let Err(error) = outcome {
                    tracing::debug!(peer = %peer.address, %error, "connection failed");
                }
                break;
            }
            () = peer.close.cancelled() => {
                tracing::debug!(peer = %peer.address, "connection closed by us");
                break;
            }
            () = peer.going.cancelled(), if !asked_to_go => {
                asked_to_go = true;
                if !seen(&first_bytes) {
                    break;
                }
                http.as_mut().graceful_shutdown();
            }
            () = first_bytes_due.as_mut(), if waits_for_first_bytes => {
                waits_for_first_bytes = false;
                if !seen(&first_bytes) {
                    stats.first_bytes_timeouts.add();
                    tracing::debug!(peer = %peer.address, "no whole preface or head in time");
                    break;
                }
            }
            () = age_due.as_mut() => {
                if let Some(until) = kept_open_until {
                    if !peer.is_kept_open() || Instant::now() >= until {
                        tracing::debug!(peer = %peer.address, "connection outlived its grace");
                        break;
                    }
                    // hyper ends the connection with its last answer; this is for those that stay.
                    let next_look = after(grace.max(Duration::from_millis(100)));
                    age_due.as_mut().reset(next_look.min(until));
                    continue;
                }
                kept_open_until = Some(after(grace.saturating_add(settings.max_kept_open)));
                stats.aged.add();
                age_due.as_mut().reset(after(grace));
                peer.going.cancel();
            }
            _ = looks.tick() => {
                if output.longest_wait() >= settings.write_stall_timeout {
                    stats.stalled.add();
                    tracing::debug!(peer = %peer.address, "the peer gives no room for output");
                    break;
                }
            }
        }
    }
    // Whoever still works for this connection learns that nobody listens.
    peer.going.cancel();
    peer.close.cancel();
    drop(arrival.place);
}

fn seen(first_bytes: &AtomicBool) -> bool {
    first_bytes.load(Ordering::Acquire)
}

/// The service as hyper calls it: each request gets to know its peer, each body its limits.
struct Calls<S> {
    body_timeout: Duration,
    output: Arc<OutputWatch>,
    peer: Arc<PeerInfo>,
    service: S,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let deadline = after(self.body_timeout);
        let mut request = request.map(|body| RequestBody::new(body, deadline));
        request.extensions_mut().insert(Arc::clone(&self.peer));
        let output = Arc::clone(&self.output);
        let answer = self.service.clone().oneshot(request);
        Box::pin(async move { Ok(answer.await?.map(|body| ResponseBody::new(body, output))) })
    }
}
