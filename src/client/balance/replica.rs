//! One replica: its connection, kept up, and what is known of its health.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};

use super::Shared;
use crate::client::retry::{doubled, jittered};

/// The wait before connecting again, doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A connection that was lost sooner, after another one, counts as one that failed.
const SHORT_LIVED: Duration = Duration::from_secs(1);
/// The longest that a connection may take, its TLS and HTTP/2 handshakes included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a replica is passed over that said UNAVAILABLE or let a caller wait in vain, doubled
/// each time.
const PASSED_OVER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// Where a replica stands.
enum Phase {
    /// For the first time, or after a connection that held.
    Connecting,
    Ready(Channel),
    /// The last connection failed, for this reason.
    Failed(String),
}

struct Health {
    phase: Phase,
    passed_over_until: Option<Instant>,
    /// Calls in a row that it could not serve.
    failures: u32,
}

/// One replica.
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) endpoint: Endpoint,
    /// Ends with the replica.
    pub(super) stop: CancellationToken,
    in_flight: AtomicUsize,
    health: Mutex<Health>,
}

/// How a replica looks to who picks one.
pub(super) enum Look {
    Ready { channel: Channel, in_flight: usize, passed_over: bool },
    Connecting,
    Failed(String),
}

impl Replica {
    pub(super) fn new(address: SocketAddr, endpoint: Endpoint, stop: CancellationToken) -> Self {
        let health = Health { phase: Phase::Connecting, passed_over_until: None, failures: 0 };
        Self { address, endpoint, stop, in_flight: AtomicUsize::new(0), health: Mutex::new(health) }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self, now: Instant) -> Look {
        let health = self.health();
        match &health.phase {
            Phase::Connecting => Look::Connecting,
            Phase::Failed(why) => Look::Failed(why.clone()),
            Phase::Ready(channel) => Look::Ready {
                channel: channel.clone(),
                in_flight: self.in_flight.load(Ordering::Relaxed),
                passed_over: health.passed_over_until.is_some_and(|until| now < until),
            },
        }
    }

    fn enter(&self, phase: Phase, shared: &Shared) {
        self.health().phase = phase;
        shared.changed();
    }

    /// Connects, and connects again, until the replica is stopped.
    pub(super) async fn keep_up(self: Arc<Self>, shared: Arc<Shared>) {
        let stop = self.stop.clone();
        let forever = async {
            let mut failures = 0;
            loop {
                let gone = CancellationToken::new();
                match self.connect(&gone).await {
                    Ok(channel) => {
                        let since = Instant::now();
                        self.enter(Phase::Ready(channel), &shared);
                        gone.cancelled().await;
                        shared.resolve_again();
                        if since.elapsed() >= SHORT_LIVED {
                            failures = 0;
                        }
                        // The first time, calls wait for the next connection.
                        if failures == 0 {
                            failures = 1;
                            self.enter(Phase::Connecting, &shared);
                            continue;
                        }
                        self.enter(Phase::Failed("the connection was closed".into()), &shared);
                    }
                    Err(why) => {
                        self.enter(Phase::Failed(why), &shared);
                        shared.resolve_again();
                    }
                }
                sleep(jittered(doubled(BACKOFF.0, BACKOFF.1, failures), &*shared.entropy)).await;
                failures += 1;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = forever => {}
        }
        // Calls that have it already go on; it is for no others.
        self.enter(Phase::Failed("it is no replica any more".into()), &shared);
    }

    /// `gone` is cancelled when the connection has ended, or takes no more calls.
    async fn connect(&self, gone: &CancellationToken) -> Result<Channel, String> {
        let (address, gone, dialled) = (self.address, gone.clone(), AtomicBool::new(false));
        let connector = tower::service_fn(move |_| {
            // tonic dials by itself when the server has said that it takes no more calls over the
            // connection. That serves the calls that are here already; a channel of its own follows.
            if dialled.swap(true, Ordering::Relaxed) {
                gone.cancel();
            }
            let gone = gone.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                io::Result::Ok(TokioIo::new(Link { stream, _gone: gone.drop_guard() }))
            }
        });
        match timeout(CONNECT_DEADLINE, self.endpoint.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(deepest(&error)),
            Err(_) => Err("the connection took too long".into()),
        }
    }

    /// A call begins.
    pub(super) fn begin(self: &Arc<Self>) -> Call {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Call { replica: Arc::clone(self), ended: false }
    }
}

/// The text of the error beneath all others, which is the one that helps.
fn deepest(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), deepest)
}

/// A call in flight. Whoever drops it before it has ended has waited in vain.
pub(super) struct Call {
    replica: Arc<Replica>,
    ended: bool,
}

impl Call {
    /// The call has ended; `served` says whether the replica could serve it.
    pub(super) fn end(mut self, served: bool) {
        self.ended = true;
        if served {
            let mut health = self.replica.health();
            health.failures = 0;
            health.passed_over_until = None;
        } else {
            self.pass_over();
        }
    }

    fn pass_over(&self) {
        let mut health = self.replica.health();
        let time = doubled(PASSED_OVER.0, PASSED_OVER.1, health.failures);
        health.failures = health.failures.saturating_add(1);
        health.passed_over_until = Some(Instant::now() + time);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.replica.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.pass_over();
        }
    }
}

/// A connection that tells of its end.
struct Link {
    stream: TcpStream,
    _gone: DropGuard,
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
