//! Many replicas behind one name: finds them, keeps a connection to each, and spreads the calls. It
//! knows HTTP and the code UNAVAILABLE, not what is called.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower_service::Service;

use super::retry::{RETRY_PUSHBACK, jittered};
use super::transport::{BoxError, Transport};
use crate::domain::entropy::Entropy;

mod replica;
mod resolve;
mod target;

pub use resolve::{Resolve, SystemResolver};
pub use target::{Target, TargetError};

use replica::{Call, Look, Replica};

/// The longest that finding the addresses may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// How often the addresses are looked up.
#[derive(Clone, Copy, Debug)]
pub struct BalanceSettings {
    /// In any case, a fifth more or less.
    pub resolve_every: Duration,
    /// At the most, when replicas fail, are unavailable or close their connections.
    pub resolve_at_most_every: Duration,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            resolve_every: Duration::from_secs(30),
            resolve_at_most_every: Duration::from_secs(1),
        }
    }
}

/// The replicas behind one name, as one thing to call: a tower service for any generated client, and
/// a [`Transport`]. Clones share the connections; they close when the last one is dropped.
///
/// Each call goes to the one of two random replicas that has fewer calls in flight. A replica that
/// cannot be reached is left out; one that said UNAVAILABLE, or let a call wait in vain, is passed over
/// for a while if there are others: then the answer has the `grpc-retry-pushback-ms` 0. When an address is no longer behind the name, its calls in flight
/// go on, and no others go there. When the name cannot be looked up, the replicas stay as they are.
#[derive(Clone)]
pub struct Replicas {
    shared: Arc<Shared>,
    _running: Arc<DropGuard>,
}

/// What the tasks and the calls have in common.
struct Shared {
    target: Target,
    settings: BalanceSettings,
    entropy: Arc<dyn Entropy>,
    replicas: ArcSwap<Vec<Arc<Replica>>>,
    /// Counts what may let a waiting call go on.
    changes: watch::Sender<u64>,
    endpoints: watch::Sender<Arc<[Endpoint]>>,
    again: Notify,
    /// Why the name could not be looked up; none before the first answer, then empty.
    resolution: Mutex<Option<String>>,
    running: CancellationToken,
}

impl Replicas {
    /// Finds the replicas of `target`, and connects. Needs a tokio runtime.
    pub fn start(
        target: Target,
        resolver: Arc<dyn Resolve>,
        settings: BalanceSettings,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let running = CancellationToken::new();
        let shared = Arc::new(Shared {
            target,
            settings,
            entropy,
            replicas: ArcSwap::default(),
            changes: watch::Sender::new(0),
            endpoints: watch::Sender::new(Arc::new([])),
            again: Notify::new(),
            resolution: Mutex::new(None),
            running: running.clone(),
        });
        let task = Arc::clone(&shared).follow(resolver);
        tokio::spawn(running.clone().run_until_cancelled_owned(task));
        Self { shared, _running: Arc::new(running.drop_guard()) }
    }

    /// The replicas as endpoints, for whoever keeps connections of its own, such as
    /// [`Watch`](super::watch::Watch): empty until the name has been looked up, then a new list whenever
    /// the addresses change.
    pub fn endpoints(&self) -> watch::Receiver<Arc<[Endpoint]>> {
        self.shared.endpoints.subscribe()
    }

    /// Looks the addresses up soon: a connection that somebody else made to one of them failed.
    pub fn resolve_again(&self) {
        self.shared.resolve_again();
    }
}

impl From<Replicas> for Transport {
    fn from(replicas: Replicas) -> Self {
        Self::new(replicas)
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let replicas = self.shared.replicas.load();
        let addresses: Vec<SocketAddr> = replicas.iter().map(|it| it.address).collect();
        f.debug_struct("Replicas").field("addresses", &addresses).finish_non_exhaustive()
    }
}

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn resolve_again(&self) {
        self.again.notify_one();
    }

    /// Looks the addresses up, now and again.
    async fn follow(self: Arc<Self>, resolver: Arc<dyn Resolve>) {
        loop {
            let began = Instant::now();
            let (host, port) = (self.target.host(), self.target.port());
            let found = timeout(RESOLVE_DEADLINE, resolver.resolve(host, port)).await;
            let problem = match found {
                Ok(Ok(addresses)) if !addresses.is_empty() => self.take(addresses),
                Ok(Ok(_)) => format!("{host} has no addresses"),
                Ok(Err(error)) => format!("{host} cannot be looked up: {error}"),
                Err(_) => format!("{host} cannot be looked up: it took too long"),
            };
            // Without any replica, the next look is due soon.
            if !problem.is_empty() && self.replicas.load().is_empty() {
                self.resolve_again();
            }
            self.resolved(problem);
            self.changed();
            let every = jittered(self.settings.resolve_every, &*self.entropy);
            tokio::select! {
                () = sleep_until(began + every) => {}
                () = self.again.notified() => {
                    sleep_until(began + self.settings.resolve_at_most_every).await;
                }
            }
        }
    }

    /// Keeps what came of a look-up, and says so when it is not what came of the last one.
    fn resolved(&self, problem: String) {
        let mut last = self.resolution.lock().unwrap_or_else(PoisonError::into_inner);
        if !problem.is_empty() && last.as_ref() != Some(&problem) {
            tracing::warn!(problem, "the replicas of avouch stay as they are");
        }
        *last = Some(problem);
    }

    /// Lets these addresses be the replicas. Gives what is wrong with them.
    fn take(self: &Arc<Self>, addresses: Vec<SocketAddr>) -> String {
        let addresses: BTreeSet<SocketAddr> = addresses.into_iter().collect();
        let old = self.replicas.load();
        let mut new = Vec::with_capacity(addresses.len());
        for address in &addresses {
            if let Some(known) = old.iter().find(|it| it.address == *address) {
                new.push(Arc::clone(known));
                continue;
            }
            let endpoint = match self.target.endpoint(*address) {
                Ok(endpoint) => endpoint,
                Err(error) => return format!("{address} cannot be used: {error}"),
            };
            let stop = self.running.child_token();
            new.push(Arc::new(Replica::new(*address, endpoint, stop)));
        }
        let is_new = |it: &&Arc<Replica>| !old.iter().any(|known| known.address == it.address);
        for replica in new.iter().filter(is_new) {
            tokio::spawn(Arc::clone(replica).keep_up(Arc::clone(self)));
        }
        let gone: Vec<_> = old.iter().filter(|it| !addresses.contains(&it.address)).collect();
        let changed = !gone.is_empty() || new.len() != old.len();
        let endpoints: Arc<[Endpoint]> = new.iter().map(|it| it.endpoint.clone()).collect();
        self.replicas.store(Arc::new(new));
        for replica in gone {
            replica.stop.cancel();
        }
        if changed {
            self.endpoints.send_replace(endpoints);
        }
        String::new()
    }

    /// A replica for a call. Waits while one may still come up; fails when none can be reached.
    async fn pick(&self) -> Result<(Call, Channel), Status> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            match self.try_pick() {
                Some(picked) => return picked,
                None => {
                    if changes.changed().await.is_err() {
                        return Err(unreachable("the replicas are no longer followed"));
                    }
                }
            }
        }
    }

    fn try_pick(&self) -> Option<Result<(Call, Channel), Status>> {
        let now = Instant::now();
        let replicas = self.replicas.load();
        let (mut good, mut poor, mut connecting, mut why) = (vec![], vec![], false, String::new());
        for replica in replicas.iter() {
            match replica.look(now) {
                Look::Ready { channel, in_flight, passed_over: false } => {
                    good.push((replica, channel, in_flight));
                }
                Look::Ready { channel, in_flight, passed_over: true } => {
                    poor.push((replica, channel, in_flight));
                }
                Look::Connecting => connecting = true,
                Look::Failed(reason) => why = format!("{}: {reason}", replica.address),
            }
        }
        let mut candidates = if good.is_empty() { poor } else { good };
        if candidates.is_empty() {
            if connecting {
                return None;
            }
            if why.is_empty() {
                let resolution = self.resolution.lock().unwrap_or_else(PoisonError::into_inner);
                why = resolution.clone()?;
            }
            self.resolve_again();
            return Some(Err(unreachable(&why)));
        }
        // The power of two choices: of two at random, the one with less to do.
        let first = self.random(candidates.len());
        let (replica, channel, in_flight) = candidates.swap_remove(first);
        if candidates.is_empty() {
            return Some(Ok((replica.begin(), channel)));
        }
        let second = self.random(candidates.len());
        let other = candidates.swap_remove(second);
        let (replica, channel) =
            if other.2 < in_flight { (other.0, other.1) } else { (replica, channel) };
        Some(Ok((replica.begin(), channel)))
    }

    /// Whether a replica is there that is not passed over.
    fn has_another(&self) -> bool {
        let now = Instant::now();
        let good =
            |it: &Arc<Replica>| matches!(it.look(now), Look::Ready { passed_over: false, .. });
        self.replicas.load().iter().any(good)
    }

    fn random(&self, below: usize) -> usize {
        usize::try_from(u32::from_be_bytes(self.entropy.bytes())).unwrap_or(0) % below
    }
}

fn unreachable(why: &str) -> Status {
    Status::unavailable(format!("no replica can be reached: {why}"))
}

impl Service<http::Request<Body>> for Replicas {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let (call, channel) = shared.pick().await?;
            let mut answer = tower::ServiceExt::oneshot(channel, request).await;
            // An answer that is only a status has it in its head.
            let code = |it: &http::Response<Body>| it.headers().get("grpc-status").cloned();
            let unavailable = match &answer {
                Ok(response) => code(response)
                    .is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::Unavailable),
                Err(_) => true,
            };
            call.end(!unavailable);
            if unavailable {
                shared.resolve_again();
            }
            if let Ok(response) = &mut answer
                && unavailable
                && shared.has_another()
            {
                // How long to leave this replica alone is no reason to wait for another one.
                let headers = response.headers_mut();
                headers.entry(RETRY_PUSHBACK).or_insert(HeaderValue::from_static("0"));
            }
            answer.map_err(Into::into)
        })
    }
}
