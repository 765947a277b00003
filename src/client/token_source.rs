//! Keeps an access token good: gets one, renews it ahead of its end, with one renewal at a time
//! whoever asks. It knows nothing of sockets and of who uses the token.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::HeaderValue;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::metadata::MetadataValue;

use super::identity::{AuthenticateError, Failure, Identity, Login, RefreshError, Tokens};
use super::retry::{doubled, fraction, jittered};
use super::watch::Authorization;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::entropy::Entropy;
use crate::domain::secret::SecretText;

/// The part of a lifetime after which a token is renewed: drawn anew for each, so that those who
/// started together do not renew together.
const RENEW_AFTER: (f64, f64) = (0.75, 0.85);
/// A token this close to its end is not handed out: it would not live until it is checked. Of short
/// lifetimes, the twentieth part.
const MARGIN: Duration = Duration::from_secs(5);
/// The wait after a renewal that failed, doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The waits between tries of a refresh whose answer may be lost, doubled each time.
const LOST_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long a refresh is tried again at once: shorter than the retry window that avouch has unless it
/// is configured otherwise.
const RETRY_WINDOW: Duration = Duration::from_secs(8);
/// The longest that [`TokenSource::keep_fresh`] sleeps, as clocks may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why the successor of a refresh token could not be kept.
pub type KeepError = Box<dyn std::error::Error + Send + Sync>;

/// Keeps the successor of a refresh token where the next start of the program finds it.
#[async_trait]
pub trait KeepSuccessor: Send + Sync + 'static {
    /// Keeps these tokens in the place of those before them, durably: once this returns, a crash must
    /// not bring an older refresh token back, as using that again ends the session. Until it
    /// returns, the tokens are not used. It is called again, with the same tokens, after an error.
    ///
    /// A crash before it returns costs the session, unless the next start comes inside the retry
    /// window, 10 s as avouch is by default.
    async fn keep(&self, tokens: &Tokens) -> Result<(), KeepError>;
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Authenticate gave none. It is tried again, after a while.
    #[error(transparent)]
    Authenticate(#[from] AuthenticateError),
    /// Refresh gave none. It is tried again, after a while.
    #[error(transparent)]
    Refresh(#[from] RefreshError),
    /// The successor could not be kept. That is tried again, after a while.
    #[error("the new refresh token could not be kept: {0}")]
    Keep(Arc<str>),
    /// avouch did not accept the refresh token. Nothing is tried any more, until
    /// [`TokenSource::restart`].
    #[error("the session is over: {0}")]
    Ended(Failure),
    /// avouch gave something that is no token.
    #[error("what avouch gave is no token")]
    Malformed,
    /// There is no tokio runtime, or it is shutting down.
    #[error("there is no runtime to get a token in")]
    Stopped,
}

/// An access token that is good for a while. Clones share it.
#[derive(Clone, Debug)]
pub struct AccessToken(Arc<Held>);

#[derive(Debug)]
struct Held {
    token: SecretText,
    header: HeaderValue,
    /// From here on it is not handed out, by the local clock.
    good_until: Timestamp,
    renew_at: Timestamp,
}

impl AccessToken {
    /// The token itself. Each call is a place to check for leaks.
    pub fn expose(&self) -> &str {
        self.0.token.expose()
    }

    /// The token, still a secret.
    pub fn secret(&self) -> &SecretText {
        &self.0.token
    }

    /// `Bearer …`, marked as sensitive.
    pub fn header(&self) -> HeaderValue {
        self.0.header.clone()
    }

    /// Until when it can be used, by the local clock: a little shorter than it lives.
    pub fn good_until(&self) -> Timestamp {
        self.0.good_until
    }
}

/// Where a source gets its tokens.
enum Grant {
    /// The client for itself.
    Login(Login),
    /// A session.
    Session(Arc<dyn KeepSuccessor>),
}

type Outcome = Result<AccessToken, TokenError>;

/// What changes.
#[derive(Default)]
struct State {
    /// The current refresh token, kept.
    refresh_token: Option<SecretText>,
    /// Tokens that are not kept yet, and when they were asked for.
    unkept: Option<(Tokens, Timestamp)>,
    /// The renewal under way, and what comes of it.
    renewal: Option<watch::Receiver<Option<Outcome>>>,
    /// Renewals that failed since the last that did not.
    failures: u32,
    /// No renewal before this.
    not_before: Timestamp,
    last_error: Option<TokenError>,
    ended: bool,
    /// Counts restarts: what was begun before one has no say after it.
    session: u64,
}

struct Inner {
    identity: Identity,
    grant: Grant,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    held: ArcSwapOption<Held>,
    state: Mutex<State>,
}

/// A source of access tokens. Clones share it.
///
/// A token is renewed by whoever asks for one after about four fifths of its lifetime; while that goes
/// on, and when it fails, the old one is handed out as long as it is good. Renewals go on when the
/// caller that began one gives up.
#[derive(Clone)]
pub struct TokenSource(Arc<Inner>);

impl TokenSource {
    /// By client credentials, with what `login` asks for.
    pub fn client_credentials(
        identity: Identity,
        login: Login,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self::new(identity, Grant::Login(login), State::default(), clock, entropy)
    }

    /// By the refresh token of a session. `keeper` has kept that token already, and gets each
    /// successor before it is used.
    ///
    /// One process alone may use a session: of two that refresh with the same token, the slower one
    /// looks like a thief.
    pub fn session(
        identity: Identity,
        refresh_token: SecretText,
        keeper: Arc<dyn KeepSuccessor>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let state = State { refresh_token: Some(refresh_token), ..State::default() };
        Self::new(identity, Grant::Session(keeper), state, clock, entropy)
    }

    fn new(
        identity: Identity,
        grant: Grant,
        state: State,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let (held, state) = (ArcSwapOption::empty(), Mutex::new(state));
        Self(Arc::new(Inner { identity, grant, clock, entropy, held, state }))
    }

    /// A token that is good now. Waits only when there is none; after a failure it says so at once,
    /// without asking avouch, until it is time to try again.
    pub async fn token(&self) -> Result<AccessToken, TokenError> {
        let mut renewal = match self.0.at(self.0.clock.now()) {
            At::Good(token) => return Ok(token),
            At::Failed(error) => return Err(error),
            At::Underway(renewal) => renewal,
        };
        match renewal.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(TokenError::Stopped),
        }
    }

    /// A token that is good now, if there is one already. When it is time, or there is none, a renewal
    /// begins.
    pub fn current(&self) -> Option<AccessToken> {
        match self.0.at(self.0.clock.now()) {
            At::Good(token) => Some(token),
            At::Failed(_) | At::Underway(_) => None,
        }
    }

    /// For [`WatchSettings`](super::watch::WatchSettings): what [`TokenSource::current`] has. Let
    /// [`TokenSource::token`] succeed first, and [`TokenSource::keep_fresh`] run beside the watch.
    pub fn authorization(&self) -> Authorization {
        let source = self.clone();
        Arc::new(move || {
            let header = source.current()?.header();
            let mut value = MetadataValue::try_from(header.as_bytes()).ok()?;
            value.set_sensitive(true);
            Some(value)
        })
    }

    /// Renews when it is time though nobody asks, so that nobody has to wait. Returns when the session
    /// is over.
    pub async fn keep_fresh(&self) -> TokenError {
        loop {
            if let Err(error @ (TokenError::Ended(_) | TokenError::Stopped)) = self.token().await {
                return error;
            }
            // The token may be good, and its successor on the way.
            let renewal = self.0.state().renewal.clone();
            if let Some(mut renewal) = renewal {
                let _ = renewal.wait_for(Option::is_some).await;
            }
            let due = self.0.due().since(self.0.clock.now());
            sleep(due.clamp(Duration::from_millis(10), LONGEST_SLEEP)).await;
        }
    }

    /// Hands the token that there is out no more: the server has refused it, because it was revoked, say.
    /// Whoever asks next begins a renewal.
    pub fn forget(&self) {
        self.0.held.store(None);
    }

    /// For [`WatchSettings`](super::watch::WatchSettings): [`TokenSource::forget`], with the renewal begun at
    /// once, and not with the next try to follow, which would be refused, too.
    pub fn refused(&self) -> Arc<dyn Fn() + Send + Sync> {
        let source = self.clone();
        Arc::new(move || {
            source.forget();
            drop(source.current());
        })
    }

    /// Goes on with the tokens of a new login, that the keeper has kept.
    pub fn restart(&self, tokens: &Tokens) {
        let asked_at = self.0.clock.now();
        let held = self.0.hold(tokens, asked_at).ok();
        let mut state = self.0.state();
        let session = state.session + 1;
        let refresh_token = tokens.refresh_token.clone();
        *state = State { refresh_token, session, ..State::default() };
        self.0.held.store(held.map(|it| it.0));
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("identity", &self.0.identity)
            .field("held", &self.0.held.load())
            .finish_non_exhaustive()
    }
}

/// What there is for who asks.
enum At {
    Good(AccessToken),
    Failed(TokenError),
    Underway(watch::Receiver<Option<Outcome>>),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is at `now`. Begins a renewal when it is time.
    fn at(self: &Arc<Self>, now: Timestamp) -> At {
        if let Some(held) = self.held.load_full().filter(|it| now < it.renew_at) {
            return At::Good(AccessToken(held));
        }
        let mut state = self.state();
        // Somebody may have renewed it meanwhile.
        let good = self.held.load_full().filter(|it| now < it.good_until).map(AccessToken);
        if let Some(token) = good.as_ref().filter(|it| now < it.0.renew_at) {
            return At::Good(token.clone());
        }
        let renewal = self.renewal(&mut state, now);
        match (good, renewal) {
            (Some(token), _) => At::Good(token),
            (None, Ok(renewal)) => At::Underway(renewal),
            (None, Err(error)) => At::Failed(error),
        }
    }

    /// The renewal under way; a new one if it is time for one.
    fn renewal(
        self: &Arc<Self>,
        state: &mut State,
        now: Timestamp,
    ) -> Result<watch::Receiver<Option<Outcome>>, TokenError> {
        // A renewal without a sender and a result was ended with its runtime.
        if let Some(renewal) = state.renewal.as_ref().filter(|it| it.has_changed().is_ok()) {
            return Ok(renewal.clone());
        }
        if state.ended || now < state.not_before {
            return Err(state.last_error.clone().unwrap_or(TokenError::Stopped));
        }
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| TokenError::Stopped)?;
        let (sender, renewal) = watch::channel(None);
        state.renewal = Some(renewal.clone());
        let (inner, session) = (Arc::clone(self), state.session);
        // A task of its own: the successor must not be lost because one caller stops waiting.
        runtime.spawn(async move {
            let outcome = inner.renew(session).await;
            inner.finish(session, &outcome);
            sender.send_replace(Some(outcome));
        });
        Ok(renewal)
    }

    async fn renew(&self, session: u64) -> Outcome {
        match &self.grant {
            Grant::Login(login) => {
                let asked_at = self.clock.now();
                let tokens = self.identity.authenticate(login.clone()).await?;
                self.hold(&tokens, asked_at)
            }
            Grant::Session(keeper) => {
                let unkept = self.state().unkept.clone();
                if let Some((tokens, asked_at)) = unkept {
                    let token = self.keep(session, &**keeper, tokens, asked_at).await?;
                    if self.clock.now() < token.0.renew_at {
                        return Ok(token);
                    }
                }
                let asked_at = self.clock.now();
                let tokens = self.refresh().await?;
                {
                    let mut state = self.state();
                    if state.session == session {
                        state.unkept = Some((tokens.clone(), asked_at));
                    }
                }
                self.keep(session, &**keeper, tokens, asked_at).await
            }
        }
    }

    /// Refreshes. An answer that is lost is asked for again at once: after the retry window, the token
    /// that was sent counts as stolen.
    async fn refresh(&self) -> Result<Tokens, TokenError> {
        let Some(token) = self.state().refresh_token.clone() else {
            return Err(TokenError::Malformed);
        };
        let began = Instant::now();
        let mut tries = 0;
        loop {
            let error = match self.identity.refresh(token.clone()).await {
                Ok(tokens) => return Ok(tokens),
                Err(RefreshError::Refused(failure)) => return Err(TokenError::Ended(failure)),
                Err(error) => error,
            };
            let lost = match &error {
                RefreshError::Deadline
                | RefreshError::Unavailable(_)
                | RefreshError::Unexpected(_) => true,
                RefreshError::Refused(_) | RefreshError::Denied(_) | RefreshError::Invalid(_) => {
                    false
                }
            };
            let wait = jittered(doubled(LOST_BACKOFF.0, LOST_BACKOFF.1, tries), &*self.entropy);
            if !lost || began.elapsed() + wait >= RETRY_WINDOW {
                return Err(error.into());
            }
            tries += 1;
            sleep(wait).await;
        }
    }

    /// Keeps tokens, and only then makes them those that are used.
    async fn keep(
        &self,
        session: u64,
        keeper: &dyn KeepSuccessor,
        tokens: Tokens,
        asked_at: Timestamp,
    ) -> Outcome {
        let kept = keeper.keep(&tokens).await;
        kept.map_err(|error| TokenError::Keep(error.to_string().into()))?;
        let mut state = self.state();
        if state.session == session {
            state.refresh_token = tokens.refresh_token.clone();
            state.unkept = None;
        }
        drop(state);
        self.hold(&tokens, asked_at)
    }

    /// A token as it is handed out. Its lifetime counts from before it was asked for, by the local
    /// clock: the two clocks need not agree.
    fn hold(&self, tokens: &Tokens, asked_at: Timestamp) -> Outcome {
        let value = format!("Bearer {}", tokens.access_token.expose());
        let mut header = HeaderValue::try_from(value).map_err(|_| TokenError::Malformed)?;
        header.set_sensitive(true);
        let lifetime = tokens.expires_in;
        let part = RENEW_AFTER.0 + (RENEW_AFTER.1 - RENEW_AFTER.0) * fraction(&*self.entropy);
        Ok(AccessToken(Arc::new(Held {
            token: tokens.access_token.clone(),
            header,
            good_until: asked_at.after(lifetime.saturating_sub(MARGIN.min(lifetime / 20))),
            renew_at: asked_at.after(lifetime.mul_f64(part)),
        })))
    }

    fn finish(&self, session: u64, outcome: &Outcome) {
        let now = self.clock.now();
        let mut state = self.state();
        if state.session != session {
            return;
        }
        state.renewal = None;
        match outcome {
            Ok(token) => {
                state.failures = 0;
                state.not_before = Timestamp::default();
                state.last_error = None;
                self.held.store(Some(Arc::clone(&token.0)));
            }
            Err(error) => {
                let wait = doubled(BACKOFF.0, BACKOFF.1, state.failures);
                let wait = jittered(wait, &*self.entropy).max(asked_to_wait(error));
                state.failures = state.failures.saturating_add(1);
                state.not_before = now.after(wait);
                state.last_error = Some(error.clone());
                if matches!(error, TokenError::Ended(_)) {
                    state.ended = true;
                    self.held.store(None);
                }
            }
        }
    }

    /// When there is something to do next.
    fn due(&self) -> Timestamp {
        let renew_at = self.held.load().as_ref().map(|it| it.renew_at).unwrap_or_default();
        renew_at.max(self.state().not_before)
    }
}

/// How long the server asked to wait.
fn asked_to_wait(error: &TokenError) -> Duration {
    match error {
        TokenError::Authenticate(
            AuthenticateError::Exhausted(failure) | AuthenticateError::Unavailable(failure),
        )
        | TokenError::Refresh(RefreshError::Unavailable(failure)) => {
            failure.retry_after.unwrap_or_default()
        }
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Channel;

    use super::*;
    use crate::client::identity::ClientCredential;
    use crate::domain::clock::ManualClock;
    use crate::domain::entropy::SeededEntropy;

    #[tokio::test]
    async fn renewals_are_spread_over_a_tenth_of_the_lifetime() {
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
        let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        let credential = ClientCredential::public("app");
        let identity = Identity::new(channel, credential, Arc::clone(&entropy));
        let now = Timestamp::from_secs(1_000);
        let clock = Arc::new(ManualClock::new(now));
        let login = Login::client_credentials();
        let source = TokenSource::client_credentials(identity, login, clock, entropy);
        let set = crate::pb::v1::TokenSet { expires_in_seconds: 300, ..Default::default() };
        let times: Vec<_> = (0..200)
            .map(|_| source.0.hold(&set.clone().into(), now).expect("held").0.renew_at)
            .map(|at| at.since(now).as_secs())
            .collect();
        assert!(times.iter().all(|it| (225..=255).contains(it)), "{times:?}");
        for tenth in 0..10 {
            let range = 225 + 3 * tenth..228 + 3 * tenth;
            assert!(times.iter().any(|it| range.contains(it)), "none in {range:?}");
        }
    }
}
