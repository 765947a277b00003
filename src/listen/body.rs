//! Bodies that know how long they may take.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::refusal::Refusal;

/// A request's body, which fails if it has not arrived whole by its deadline. Our calls have one
/// short request message, so a body that drips in is a peer that wants to hold a place.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    deadline: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, deadline: Instant) -> Self {
        Self { inner, deadline, timer: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        // Most bodies are there with the head, and never need the timer.
        let deadline = self.deadline;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Box::new(BodyTimeout::default())))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A request's body did not arrive in time. tonic finds the status in its source, and answers
/// DEADLINE_EXCEEDED.
#[derive(Debug)]
pub struct BodyTimeout {
    status: tonic::Status,
}

impl Default for BodyTimeout {
    fn default() -> Self {
        Self { status: Refusal::SlowBody.status() }
    }
}

impl fmt::Display for BodyTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's body did not arrive in time")
    }
}

impl Error for BodyTimeout {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.status)
    }
}

/// The responses of one connection that hold output which the peer gives no room for.
///
/// hyper polls a body again only when the frame before has found room in the flow-control windows
/// and in the send buffer, so a body that gave a frame and is not polled again waits for the peer.
/// No timer within the body could fire, because nobody polls it: the connection looks from outside.
#[derive(Debug)]
pub(super) struct OutputWatch {
    start: Instant,
    bodies: Mutex<Bodies>,
}

#[derive(Debug, Default)]
struct Bodies {
    next: u64,
    /// For each open body since when it waits, in milliseconds since `start` plus one; 0 if not.
    waiting_since: HashMap<u64, Arc<AtomicU64>>,
}

impl OutputWatch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), bodies: Mutex::default() })
    }

    /// How long the longest wait has lasted.
    pub(super) fn longest_wait(&self) -> Duration {
        let now = self.now();
        let bodies = self.lock();
        let waits =
            bodies.waiting_since.values().filter_map(|since| match since.load(Ordering::Relaxed) {
                0 => None,
                since => Some(now.saturating_sub(since)),
            });
        Duration::from_millis(waits.max().unwrap_or(0))
    }

    /// Never 0, which says that nothing waits.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).map_or(u64::MAX, |ms| ms.saturating_add(1))
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One body's entry in the watch; gone when dropped.
#[derive(Debug)]
struct Watched {
    watch: Arc<OutputWatch>,
    id: u64,
    waiting_since: Arc<AtomicU64>,
}

impl Watched {
    fn new(watch: Arc<OutputWatch>) -> Self {
        let waiting_since = Arc::new(AtomicU64::new(0));
        let mut bodies = watch.lock();
        let id = bodies.next;
        bodies.next += 1;
        bodies.waiting_since.insert(id, Arc::clone(&waiting_since));
        drop(bodies);
        Self { watch, id, waiting_since }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.lock().waiting_since.remove(&self.id);
    }
}

pin_project! {
    /// A response's body that tells the watch when it waits for the peer.
    pub(super) struct ResponseBody<B> {
        #[pin]
        inner: B,
        watched: Watched,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn new(inner: B, watch: Arc<OutputWatch>) -> Self {
        Self { inner, watched: Watched::new(watch) }
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let outcome = this.inner.poll_frame(cx);
        let since = if outcome.is_ready() { this.watched.watch.now() } else { 0 };
        this.watched.waiting_since.store(since, Ordering::Relaxed);
        outcome
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
