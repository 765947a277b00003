//! Checks access tokens where they are used: signature and claims once, revocation each time, without
//! a call per request.
//!
//! A [`Verifier`] follows the stream of revocations. What it knows to be revoked it refuses in every
//! mode. When it cannot prove that it knows the rest, because nothing fresh has come for longer than the
//! limit, its [`Policy`] decides.
//!
//! Time is the server's: when the newest frame was sent, plus what has passed here since. The wall clock
//! of this machine is not asked once a frame has come.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::client::watch::{Fresh, SharedView, Watch, WatchEvent, WatchSettings, changed, moment};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::event::MAX_ACCESS_LIFETIME;
use crate::domain::ids::Cursor;
use crate::domain::view::{RevokedBy, Standing};
use crate::jwt::{MAX_LEEWAY, Rules, TokenError};
use crate::pb::v1;
use crate::verified::VerifiedTokens;

mod ask;
mod bearer;
mod connect;
mod guard;
mod keys;
mod policy;
mod requirement;
mod stats;

pub use ask::{Ask, AskError, AskServer};
pub use bearer::{BearerError, bearer};
pub use connect::ConnectError;
use guard::Guards;
pub use guard::{Ended, Guard};
use keys::{Keys, keeps_all, read_keys};
pub use policy::{Policy, UnknownPolicy};
pub use requirement::{Requirement, Unmet};
use stats::Counters;
pub use stats::VerifierStats;

pub use crate::verified::VerifiedToken;

/// How long an answer of the server about a token is as good as asking again.
const ANSWER_HOLDS: Duration = Duration::from_secs(1);
/// How often the keys are asked for, however many tokens name unknown ones.
const KEYS_EVERY: Duration = Duration::from_secs(1);
/// How many questions are open at once; more tokens than that are answered as if nobody answered.
const MAX_QUESTIONS: usize = 256;

/// How to verify.
#[derive(Clone)]
pub struct VerifierSettings {
    /// The issuer of the tokens: `iss`, exactly.
    pub issuer: Box<str>,
    /// How far clocks may be apart; at most 5 s.
    pub leeway: Duration,
    /// How old the view may be before `policy` decides.
    pub max_staleness: Duration,
    /// What to do then.
    pub policy: Policy,
    /// How many tokens to remember, at about 1 KiB each.
    pub remembered: usize,
    /// Which revocations to follow, and where.
    pub watch: WatchSettings,
}

impl VerifierSettings {
    /// Tokens of `issuer`, with the revocations that `watch` follows: at most 5 s stale, then ask the
    /// server.
    pub fn new(issuer: impl Into<Box<str>>, watch: WatchSettings) -> Self {
        Self {
            issuer: issuer.into(),
            leeway: MAX_LEEWAY,
            max_staleness: Duration::from_secs(5),
            policy: Policy::default(),
            remembered: 16_384,
            watch,
        }
    }
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It is none of the issuer's, or not in its time.
    #[error("the token is not valid")]
    Invalid(TokenError),
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked(RevokedBy),
    /// The server was asked, and said that it is not good.
    #[error("the token is not active")]
    Inactive,
    /// What is known here is too old to tell, and nobody answered.
    #[error("revocations are not known up to now")]
    Stale,
    /// The set of revocations is not complete yet.
    #[error("revocations are not known yet")]
    NotReady,
}

impl Refusal {
    /// Whether the token may well be good: UNAVAILABLE or 503, never UNAUTHENTICATED or 401.
    pub const fn is_unavailable(self) -> bool {
        matches!(self, Self::Stale | Self::NotReady)
    }

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Revoked(_) => "revoked",
            Self::Inactive => "inactive",
            Self::Stale => "stale",
            Self::NotReady => "not_ready",
        }
    }
}

/// What is known here about a token, without asking anybody.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is good.
    Good(Arc<VerifiedToken>),
    /// It is not, or nothing can be said.
    Refused(Refusal),
    /// Nothing revokes it as far as is known, which is not far enough: the view is older than the limit.
    Stale(Arc<VerifiedToken>),
    /// The view left out something that might revoke it, for lack of room.
    Unsure(Arc<VerifiedToken>),
}

/// How a verifier is doing.
#[derive(Clone, Debug)]
pub struct VerifierStatus {
    /// Whether a complete set has come. From then on it stays in force.
    pub synced: bool,
    /// Whether the stream is there.
    pub connected: bool,
    /// Everything up to here is in force.
    pub cursor: Option<Cursor>,
    /// How long ago the moment was up to which all revocations are known.
    pub age: Option<Duration>,
    /// How long the newest revocation took from its commit until it was in force here.
    pub lag: Option<Duration>,
    /// How many revocations are held.
    pub entries: usize,
    /// What they take, in bytes.
    pub bytes: usize,
    /// Whether some were left out, for lack of room.
    pub partial: bool,
    /// How many keys are known.
    pub keys: usize,
    /// How many streams and answers wait for the end of their token.
    pub guarded: usize,
    /// Why the stream was lost the last time.
    pub lost: Option<String>,
}

struct Inner {
    settings: VerifierSettings,
    clock: Arc<dyn Clock>,
    ask: Option<Arc<dyn Ask>>,
    tokens: VerifiedTokens,
    keys: ArcSwap<Keys>,
    view: SharedView,
    fresh: ArcSwapOption<Fresh>,
    guards: Arc<Guards>,
    counters: Counters,
    synced: watch::Sender<bool>,
    connected: AtomicBool,
    /// In milliseconds; the greatest number for none yet.
    lag: AtomicU64,
    lost: Mutex<Option<String>>,
    questions: Semaphore,
    keys_asked: tokio::sync::Mutex<Option<Instant>>,
    /// Tasks that end with it.
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// Checks access tokens. Cheap to clone: all clones are one verifier.
#[derive(Clone)]
pub struct Verifier(Arc<Inner>);

impl Verifier {
    /// Begins to follow. `clock` stands in until the server's is known, `entropy` spreads retries, and
    /// `ask` answers where the policy says to ask; without it, nobody answers. Must be called in a tokio
    /// runtime.
    pub fn start(
        settings: VerifierSettings,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        ask: Option<Arc<dyn Ask>>,
    ) -> Self {
        let rules = Rules::new(settings.issuer.clone(), MAX_ACCESS_LIFETIME);
        let watch = Watch::new(settings.watch.clone(), entropy);
        let inner = Arc::new(Inner {
            tokens: VerifiedTokens::new(rules.with_leeway(settings.leeway), settings.remembered),
            settings,
            clock,
            ask,
            keys: ArcSwap::default(),
            view: watch.view(),
            fresh: ArcSwapOption::empty(),
            guards: Arc::default(),
            counters: Counters::default(),
            synced: watch::Sender::new(false),
            connected: AtomicBool::new(false),
            lag: AtomicU64::new(u64::MAX),
            lost: Mutex::default(),
            questions: Semaphore::new(MAX_QUESTIONS),
            keys_asked: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        });
        let following = tokio::spawn(follow(watch, Arc::downgrade(&inner))).abort_handle();
        let verifier = Self(inner);
        verifier.keep(following);
        verifier
    }

    /// Lets a task end with the last clone.
    fn keep(&self, task: AbortHandle) {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// What a token is worth now. Answers at once while the view is fresh; asks the server when the
    /// policy says so.
    ///
    /// # Errors
    /// When it is not accepted; [`Refusal::is_unavailable`] tells a bad token from bad luck.
    pub async fn verify(&self, token: &str) -> Result<Arc<VerifiedToken>, Refusal> {
        let settings = &self.0.settings;
        self.verify_with(token, settings.policy, settings.max_staleness).await
    }

    /// As [`Verifier::verify`], with the policy and the limit of one route.
    ///
    /// # Errors
    /// As for [`Verifier::verify`].
    pub async fn verify_with(
        &self,
        token: &str,
        policy: Policy,
        max_staleness: Duration,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        let result = self.0.verify(token, policy, max_staleness).await;
        self.0.counters.count(&result);
        result
    }

    /// What is known here about a token, without waiting and without a policy.
    pub fn check(&self, token: &str) -> Verdict {
        self.0.check(token, self.0.settings.max_staleness)
    }

    /// Waits for the end of a token: a stream that it opened must end then.
    pub fn guard(&self, token: &VerifiedToken) -> Guard {
        let now = Instant::now();
        let left = self.0.tokens.refused_from(token).since(self.0.time(now));
        let guard = self.0.guards.register(token.marks, now + left);
        guard.check(&self.0.view.load())
    }

    /// Waits until the set of revocations is complete.
    pub async fn synced(&self) {
        // The sender lives as long as self does.
        let mut synced = self.0.synced.subscribe();
        let _synced = synced.wait_for(|synced| *synced).await;
    }

    /// How it is doing.
    pub fn status(&self) -> VerifierStatus {
        let inner = &self.0;
        let fresh = inner.fresh.load();
        let view = inner.view.load();
        let now = inner.time(Instant::now());
        let lag = inner.lag.load(Ordering::Relaxed);
        VerifierStatus {
            synced: *inner.synced.borrow(),
            connected: inner.connected.load(Ordering::Relaxed),
            cursor: fresh.as_ref().map(|fresh| fresh.through),
            age: fresh.as_ref().map(|fresh| now.since(fresh.as_of)),
            lag: (lag != u64::MAX).then(|| Duration::from_millis(lag)),
            entries: view.len(),
            bytes: view.bytes(),
            partial: view.is_partial(),
            keys: inner.keys.load().len(),
            guarded: inner.guards.len(),
            lost: inner.lost.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// What it has answered so far.
    pub fn stats(&self) -> VerifierStats {
        self.0.counters.read()
    }
}

impl Inner {
    /// The server's clock, or this machine's as long as that is not known.
    fn time(&self, now: Instant) -> Timestamp {
        let fresh = self.fresh.load();
        fresh.as_ref().map_or_else(|| self.clock.now(), |fresh| fresh.server_time(now))
    }

    fn check(&self, token: &str, max_staleness: Duration) -> Verdict {
        let fresh = self.fresh.load();
        let Some(fresh) = &*fresh else { return Verdict::Refused(Refusal::NotReady) };
        let now = fresh.server_time(Instant::now());
        let verified = match self.tokens.verify(token, &**self.keys.load(), now) {
            Ok(verified) => verified,
            Err(error) => return Verdict::Refused(Refusal::Invalid(error)),
        };
        let standing = self.view.load().standing(&verified.marks);
        // A token that was made after the stream was lost was good when it was made.
        let proven = fresh.as_of.max(verified.claims.issued_at);
        match standing {
            Standing::Revoked(by) => Verdict::Refused(Refusal::Revoked(by)),
            Standing::Unsure => Verdict::Unsure(verified),
            Standing::Clear if now.since(proven) > max_staleness => Verdict::Stale(verified),
            Standing::Clear => Verdict::Good(verified),
        }
    }

    async fn verify(
        &self,
        token: &str,
        policy: Policy,
        max_staleness: Duration,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        let mut verdict = self.check(token, max_staleness);
        if matches!(verdict, Verdict::Refused(Refusal::Invalid(TokenError::UnknownKey))) {
            verdict = self.check_with_new_keys(token, max_staleness).await;
        }
        let (verified, policy) = match verdict {
            Verdict::Good(verified) => return Ok(verified),
            Verdict::Refused(refusal) => return Err(refusal),
            // That the server knows more is certain here, however fresh the view is.
            Verdict::Unsure(verified) if policy == Policy::Closed => (verified, Policy::Introspect),
            Verdict::Unsure(verified) | Verdict::Stale(verified) => (verified, policy),
        };
        match policy {
            Policy::Closed => Err(Refusal::Stale),
            Policy::Introspect => self.ask(token, verified).await,
            Policy::Open => {
                self.counters.opened();
                Ok(verified)
            }
        }
    }

    /// A key that the stream has not brought: it may be on its way, or the stream may be down. Asks for
    /// the keys, seldom, and looks again.
    async fn check_with_new_keys(&self, token: &str, max_staleness: Duration) -> Verdict {
        if let Some(ask) = &self.ask {
            let mut asked = self.keys_asked.lock().await;
            let recently = asked.is_some_and(|at| at.elapsed() < KEYS_EVERY);
            if !recently {
                *asked = Some(Instant::now());
                match ask.keys().await {
                    Ok(keys) => self.add_keys(&keys),
                    Err(error) => tracing::warn!(%error, "the keys could not be fetched"),
                }
            }
        }
        match self.check(token, max_staleness) {
            Verdict::Refused(Refusal::Invalid(TokenError::UnknownKey))
                if self.age().is_none_or(|age| age > max_staleness) =>
            {
                Verdict::Refused(Refusal::Stale)
            }
            verdict => verdict,
        }
    }

    fn age(&self) -> Option<Duration> {
        let fresh = self.fresh.load();
        fresh.as_ref().map(|fresh| fresh.server_time(Instant::now()).since(fresh.as_of))
    }

    async fn ask(
        &self,
        token: &str,
        verified: Arc<VerifiedToken>,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        let answered =
            |active, verified| if active { Ok(verified) } else { Err(Refusal::Inactive) };
        let now = self.time(Instant::now());
        if let Some(active) = verified.noted(now.before(ANSWER_HOLDS)) {
            return answered(active, verified);
        }
        let Some(ask) = &self.ask else { return Err(Refusal::Stale) };
        let Ok(_question) = self.questions.try_acquire() else { return Err(Refusal::Stale) };
        self.counters.asked();
        match ask.is_active(token).await {
            Ok(active) => {
                verified.note(active, now);
                answered(active, verified)
            }
            Err(error) => {
                tracing::debug!(%error, "a token could not be asked about");
                Err(Refusal::Stale)
            }
        }
    }

    /// The keys as the stream says: they replace what was known.
    fn set_keys(&self, keys: &[v1::JsonWebKey]) {
        let new = Arc::new(read_keys(keys));
        let old = self.keys.swap(Arc::clone(&new));
        if !keeps_all(&old, &new) {
            self.tokens.forget();
        }
    }

    /// Keys that were asked for. The stream may have said something newer meanwhile, so they add to what
    /// is known and take nothing away.
    fn add_keys(&self, keys: &[v1::JsonWebKey]) {
        let read = read_keys(keys);
        self.keys.rcu(|known| {
            let mut all = read.clone();
            all.extend(known.iter().map(|(id, key)| (id.clone(), key.clone())));
            all
        });
    }

    /// Takes in what happened; the view has it already.
    fn take(&self, event: WatchEvent, fresh: Option<Fresh>) {
        match event {
            WatchEvent::Connected { resumed, .. } => {
                tracing::debug!(resumed, "following revocations");
                self.connected.store(true, Ordering::Relaxed);
            }
            WatchEvent::KeySet(keys) => self.set_keys(&keys.keys),
            WatchEvent::Synced(_) => {
                self.renew(fresh);
                self.guards.check_all(&self.view.load());
                self.synced.send_replace(true);
            }
            WatchEvent::Batch(revocations, _) => {
                self.guards.changed(&self.view.load(), revocations.iter().map(changed));
                self.renew(fresh);
                let newest = revocations.last().and_then(|it| it.event_time.as_ref());
                if let Some(committed) = newest.and_then(moment) {
                    let lag = self.time(Instant::now()).since(committed);
                    let millis = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
                    self.lag.store(millis, Ordering::Relaxed);
                }
            }
            WatchEvent::Heartbeat(_) => self.renew(fresh),
            WatchEvent::Reset => tracing::info!("the log is another one; fetching the whole set"),
            WatchEvent::Disconnected { lost, retry_in } => {
                tracing::warn!(?lost, ?retry_in, "the stream of revocations is lost");
                self.lose(format!("{lost:?}"));
            }
            WatchEvent::Refused(code, message) => {
                tracing::error!(?code, %message, "the server does not let us follow revocations");
                self.lose(format!("{code:?}: {message}"));
            }
        }
    }

    fn renew(&self, fresh: Option<Fresh>) {
        if let Some(fresh) = fresh {
            self.fresh.store(Some(Arc::new(fresh)));
        }
    }

    fn lose(&self, why: String) {
        self.connected.store(false, Ordering::Relaxed);
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Follows as long as the verifier is there.
async fn follow(mut watch: Watch, verifier: Weak<Inner>) {
    loop {
        let event = watch.next().await;
        let Some(verifier) = verifier.upgrade() else { return };
        verifier.take(event, watch.fresh());
    }
}

#[cfg(test)]
mod tests;
