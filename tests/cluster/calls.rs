//! Calls that write themselves down.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revoke_request::Target;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::cast::{App, Cast, PASSWORD};
use crate::dice::Dice;
use crate::history::{
    Answer, Asked, Call, Issued, Micros, Recorder, Session, Shown, Subject, Token,
};
use crate::net::Node;
use crate::replica::PORT;

/// How long a caller waits. It knows nothing of the call then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// An endpoint that notices when its replica is gone.
pub(crate) fn endpoint(replica: usize) -> Endpoint {
    let address = Node::Replica(replica).address();
    Endpoint::from_shared(format!("http://{address}:{PORT}"))
        .expect("a URL")
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

/// What one login or refresh gave, in words.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) session: Session,
    pub(crate) session_id: String,
    pub(crate) refresh: String,
    pub(crate) access: String,
}

/// An access token that somebody may ask about, and the cursor of its revocation, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) session: Session,
    pub(crate) access: String,
    pub(crate) cursor: Option<u64>,
}

/// How many tokens of a kind are remembered.
const REMEMBERED: usize = 300;

/// The last tokens that were issued, and the last that were taken back.
#[derive(Default)]
pub(crate) struct Pool {
    live: Mutex<VecDeque<Known>>,
    dead: Mutex<VecDeque<Known>>,
    /// The newest of each session, and the app that it is for.
    latest: Mutex<HashMap<Session, (Tokens, App)>>,
}

fn remember(ring: &Mutex<VecDeque<Known>>, known: Known) {
    let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
    if ring.len() == REMEMBERED {
        ring.pop_front();
    }
    ring.push_back(known);
}

impl Pool {
    pub(crate) fn issued(&self, tokens: &Tokens, app: &App) {
        let known = Known { session: tokens.session, access: tokens.access.clone(), cursor: None };
        remember(&self.live, known);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(tokens.session, (tokens.clone(), app.clone()));
    }

    pub(crate) fn taken(&self, session: Session, access: &str, cursor: Option<u64>) {
        remember(&self.dead, Known { session, access: access.to_owned(), cursor });
    }

    /// One of them, most often one that was taken back.
    pub(crate) fn any(&self, dice: &Dice) -> Option<Known> {
        let ring = if dice.chance(60) { &self.dead } else { &self.live };
        let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        // The newest are the most telling.
        let among = if dice.chance(50) { ring.len().min(20) } else { ring.len() };
        ring.get(ring.len().checked_sub(1 + dice.below(among))?).cloned()
    }

    /// The newest tokens of every session there was.
    pub(crate) fn latest(&self) -> Vec<(Tokens, App)> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.values().cloned().collect()
    }
}

/// What everybody shares.
pub(crate) struct Shared {
    pub(crate) recorder: Recorder,
    pub(crate) pool: Pool,
    pub(crate) cast: Cast,
    /// The log that all cursors are of.
    pub(crate) log_id: Mutex<String>,
    /// How many replicas there are.
    pub(crate) replicas: usize,
    pub(crate) stop: CancellationToken,
}

/// One who calls, over connections of its own.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) name: &'static str,
    pub(crate) shared: Arc<Shared>,
    channels: Vec<Channel>,
}

/// Whether avouch itself has said it, and not the connection to it.
fn said_by_avouch(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.domain == "avouch")
}

/// Whether the call did not leave this machine: nothing came of it, and nothing will.
fn was_not_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What an error says of a call.
pub(crate) fn reading(status: &Status) -> Answer {
    match status.code() {
        Code::Unauthenticated => Answer::Refused,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::ResourceExhausted => Answer::Unknown,
        // So tonic calls it when a connection breaks.
        Code::Internal | Code::Unknown if !said_by_avouch(status) => Answer::Unknown,
        code => Answer::Strange(format!("{code:?}: {}", status.message())),
    }
}

/// The moment in the time of the history.
fn moment(recorder: &Recorder, at: Option<&prost_types::Timestamp>) -> Micros {
    let wall = avouch::domain::clock::SystemClock::default();
    let now = avouch::domain::clock::Clock::now(&wall).as_millis();
    let at = at.map_or(0, |at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000);
    let ahead = at - i64::try_from(now).expect("a date");
    let here = i64::try_from(recorder.now()).expect("a run is short");
    u64::try_from(here + ahead * 1000).unwrap_or(0)
}

/// A revocation as it is written down.
pub(crate) fn shown(recorder: &Recorder, it: &pb::Revocation) -> Shown {
    use pb::revocation::Target as It;
    let (about, epoch) = match &it.target {
        Some(It::Token(token)) => (format!("token {}", token.token_id), 0),
        Some(It::Session(session)) => (format!("session {}", session.session_id), 0),
        Some(It::Subject(subject)) => (format!("subject {}", subject.subject), subject.epoch),
        Some(It::Client(client)) => (format!("client {}", client.client_id), client.epoch),
        Some(It::Everything(everything)) => ("everything".to_owned(), everything.epoch),
        Some(It::Key(key)) => (format!("key {}", key.kid), 0),
        None => ("nothing".to_owned(), 0),
    };
    let ends = moment(recorder, it.expire_time.as_ref());
    Shown { revision: it.revision, about, epoch, ends }
}

impl Caller {
    pub(crate) fn new(name: &'static str, shared: &Arc<Shared>) -> Self {
        let channels = (0..shared.replicas).map(|n| endpoint(n).connect_lazy()).collect();
        Self { name, shared: Arc::clone(shared), channels }
    }

    /// Any replica.
    pub(crate) fn any(&self, dice: &Dice) -> usize {
        dice.below(self.channels.len())
    }

    pub(crate) fn service(&self, replica: usize) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channels[replica].clone())
    }

    pub(crate) fn channel(&self, replica: usize) -> Channel {
        self.channels[replica].clone()
    }

    /// Makes a call and writes it down. `read` makes the answer of what came.
    async fn write_down<T>(
        &self,
        replica: usize,
        asked: Asked,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
        read: impl FnOnce(T) -> Answer,
    ) -> Answer {
        let invoked = self.shared.recorder.now();
        let answer = match timeout(DEADLINE, call).await {
            Err(_) => Answer::Unknown,
            Ok(Ok(answer)) => read(answer.into_inner()),
            Ok(Err(status)) if was_not_sent(&status) => return Answer::Unknown,
            Ok(Err(status)) => reading(&status),
        };
        // Whoever asks to revoke or to introspect is known.
        let answer = match (answer, asked) {
            (answer, Asked::Refresh { .. } | Asked::Login { .. }) => answer,
            (Answer::Refused, _) => Answer::Strange("UNAUTHENTICATED".to_owned()),
            (answer, _) => answer,
        };
        let returned = self.shared.recorder.now();
        let (caller, replica) = (self.name, Some(replica));
        let call = Call { caller, replica, asked, invoked, returned, answer: answer.clone() };
        self.shared.recorder.call(call);
        answer
    }

    fn issued(&self, set: Option<pb::TokenSet>, into: &mut Option<Tokens>) -> Answer {
        let Some(set) = set else { return Answer::Strange("no tokens".to_owned()) };
        let session = self.shared.recorder.session(&set.session_id);
        let issued = Issued {
            session,
            refresh: Token::of(&set.refresh_token),
            access: Token::of(&set.access_token),
            ends: moment(&self.shared.recorder, set.access_token_expire_time.as_ref()),
        };
        *into = Some(Tokens {
            session,
            session_id: set.session_id,
            refresh: set.refresh_token,
            access: set.access_token,
        });
        Answer::Issued(issued)
    }

    /// Logs a user in.
    pub(crate) async fn login(&self, replica: usize, user: usize, app: &App) -> Option<Tokens> {
        let grant = pb::PasswordGrant {
            username: self.shared.cast.users[user].0.clone(),
            password: PASSWORD.to_owned(),
        };
        let request = pb::AuthenticateRequest {
            client: Some(app.credentials.clone()),
            grant: Some(Grant::Password(grant)),
            ..Default::default()
        };
        let window = u64::try_from(app.window.as_micros()).expect("short");
        let subject = Subject(u32::try_from(user).expect("few users"));
        let asked = Asked::Login { subject, window };
        let mut service = self.service(replica);
        let mut tokens = None;
        let call = service.authenticate(request);
        self.write_down(replica, asked, call, |answer| self.issued(answer.tokens, &mut tokens))
            .await;
        if let Some(tokens) = &tokens {
            self.shared.pool.issued(tokens, app);
        }
        tokens
    }

    /// Presents a refresh token of a session.
    pub(crate) async fn refresh(
        &self,
        replica: usize,
        session: Session,
        token: &str,
        app: &App,
    ) -> (Answer, Option<Tokens>) {
        let request = pb::RefreshRequest {
            client: Some(app.credentials.clone()),
            refresh_token: token.to_owned(),
            ..Default::default()
        };
        let asked = Asked::Refresh { session, token: Token::of(token) };
        let mut service = self.service(replica);
        let mut tokens = None;
        let call = service.refresh(request);
        let read = |answer: pb::RefreshResponse| self.issued(answer.tokens, &mut tokens);
        let answer = self.write_down(replica, asked, call, read).await;
        if let Some(tokens) = &tokens {
            self.shared.pool.issued(tokens, app);
        }
        (answer, tokens)
    }

    /// Takes something back, as the administrator.
    pub(crate) async fn revoke(&self, replica: usize, asked: Asked, target: Target) -> Answer {
        self.revoke_and_wait(replica, asked, target, None).await
    }

    /// The same, and waits for all watchers, if it is said for how long.
    pub(crate) async fn revoke_and_wait(
        &self,
        replica: usize,
        asked: Asked,
        target: Target,
        wait: Option<Duration>,
    ) -> Answer {
        let request = pb::RevokeRequest {
            wait: wait.and_then(|wait| prost_types::Duration::try_from(wait).ok()),
            client: Some(self.shared.cast.admin.clone()),
            target: Some(target),
            ..Default::default()
        };
        let mut service = self.service(replica);
        let call = service.revoke(request);
        let shared = Arc::clone(&self.shared);
        let read = |answer: pb::RevokeResponse| match answer.cursor {
            None => Answer::Strange("no cursor".to_owned()),
            Some(cursor) => {
                *shared.log_id.lock().unwrap_or_else(PoisonError::into_inner) = cursor.log_id;
                let event = answer.revoked.map(|it| shown(&shared.recorder, &it));
                let applied = answer.wait_result.map(|it| it.complete);
                Answer::Revoked { cursor: cursor.revision, event, applied }
            }
        };
        self.write_down(replica, asked, call, read).await
    }

    /// Takes back the session of these tokens.
    pub(crate) async fn revoke_session(&self, replica: usize, tokens: &Tokens) -> Answer {
        let target = Target::SessionId(tokens.session_id.clone());
        let answer = self.revoke(replica, Asked::RevokeSession(tokens.session), target).await;
        if let Answer::Revoked { cursor, .. } = answer {
            self.shared.pool.taken(tokens.session, &tokens.access, Some(cursor));
        }
        answer
    }

    /// Asks about an access token, in a state at least as new as a cursor if there is one.
    pub(crate) async fn introspect(
        &self,
        replica: usize,
        session: Session,
        access: &str,
        at_least: Option<u64>,
    ) -> Answer {
        let log_id = self.shared.log_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = pb::IntrospectRequest {
            client: Some(self.shared.cast.admin.clone()),
            token: access.to_owned(),
            at_least: at_least.map(|revision| pb::Cursor { log_id, revision }),
            ..Default::default()
        };
        let asked = Asked::Introspect { session, token: Token::of(access), at_least };
        let mut service = self.service(replica);
        let call = service.introspect(request);
        self.write_down(replica, asked, call, |answer| Answer::Active(answer.active)).await
    }
}
