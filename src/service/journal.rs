//! What the service tells about itself: security events for the audit log and the counters. The
//! receiver knows files and metrics; the service knows neither.

use std::net::IpAddr;
use std::pin::Pin;

use crate::domain::clock::Timestamp;
use crate::domain::event::{Entry, Reason};
use crate::domain::ids::{ClientId, KeyId, SessionId, SubjectId};
use crate::domain::session::ReuseKind;
use crate::domain::view::RevokedBy;

/// Which request an event belongs to.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The id of the request, made by the transport.
    pub request_id: Box<str>,
    /// Where the connection comes from.
    pub peer: Option<IpAddr>,
    /// The certificate names of the connection, verified.
    pub certificate_names: Vec<Box<str>>,
}

/// Why a credential was not accepted. It goes to the audit log and to no answer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Failure {
    UnknownClient,
    WrongClientSecret,
    ClientDisabled,
    UnknownUser,
    WrongPassword,
    NoPassword,
    UserDisabled,
    StaleCredential,
    NotARefreshToken,
    UnknownSession,
    ForgedToken,
    SessionExpired,
    SessionRevoked,
    Reused(ReuseKind),
}

impl Failure {
    /// The name in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownClient => "unknown_client",
            Self::WrongClientSecret => "wrong_client_secret",
            Self::ClientDisabled => "client_disabled",
            Self::UnknownUser => "unknown_user",
            Self::WrongPassword => "wrong_password",
            Self::NoPassword => "no_password",
            Self::UserDisabled => "user_disabled",
            Self::StaleCredential => "stale_credential",
            Self::NotARefreshToken => "not_a_refresh_token",
            Self::UnknownSession => "unknown_session",
            Self::ForgedToken => "forged_token",
            Self::SessionExpired => "session_expired",
            Self::SessionRevoked => "session_revoked",
            Self::Reused(kind) => kind.name(),
        }
    }
}

/// Something that an auditor wants to know.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A subject proved itself.
    LoginSucceeded {
        /// Who.
        subject: SubjectId,
        /// By which client.
        client: ClientId,
        /// The session that was opened, if one was.
        session: Option<SessionId>,
        /// The session that had to go for it.
        evicted: Option<SessionId>,
    },
    /// A credential was not accepted.
    LoginFailed {
        /// Who, if that is known.
        subject: Option<SubjectId>,
        /// By which client, if that is known.
        client: Option<ClientId>,
        /// Where the end user is, as told.
        source: Option<Box<str>>,
        /// Why.
        failure: Failure,
    },
    /// An attempt was turned away before the credential was looked at.
    Throttled {
        /// By which client.
        client: ClientId,
        /// Where the end user is, as told.
        source: Option<Box<str>>,
        /// What was exceeded, `attempts` or `hash_queue`.
        what: &'static str,
    },
    /// A session was refreshed.
    Refreshed {
        /// Who.
        subject: SubjectId,
        /// By which client.
        client: ClientId,
        /// Which session.
        session: SessionId,
        /// Whether it was a retry that got the same successor again.
        retry: bool,
    },
    /// A refresh token was not accepted.
    RefreshFailed {
        /// Who, if that is known.
        subject: Option<SubjectId>,
        /// By which client, if that is known.
        client: Option<ClientId>,
        /// Which session, if that is known.
        session: Option<SessionId>,
        /// Why.
        failure: Failure,
        /// Whether the session was revoked for it.
        revoked: bool,
    },
    /// Something was revoked.
    Revoked {
        /// The event.
        entry: Entry,
    },
    /// A caller wanted more than it may.
    Denied {
        /// Who, as far as it is known.
        caller: Box<str>,
        /// What it wanted.
        what: &'static str,
    },
    /// A token was asked about.
    Introspected {
        /// The answer.
        verdict: Verdict,
    },
    /// An administrator is about to change something. Nothing is changed unless this is recorded.
    Attempted {
        /// What will be done, `create_user` and the like.
        what: &'static str,
        /// By whom, as far as it is known.
        caller: Box<str>,
    },
    /// A user, a client or a key was changed.
    Administered {
        /// What was done, `user_created` and the like.
        action: &'static str,
        /// By whom, as far as it is known.
        caller: Box<str>,
        /// To which user.
        subject: Option<SubjectId>,
        /// To which client.
        client: Option<ClientId>,
        /// To which key.
        key: Option<KeyId>,
        /// Why, if tokens were revoked for it.
        reason: Option<Reason>,
    },
}

/// What Introspect found, for counters.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// The token is good.
    Active,
    /// It is no token of ours or not good any more.
    Inactive,
    /// It would be good, but it was revoked.
    Revoked(RevokedBy),
    /// The caller may not know.
    NotForCaller,
}

impl Verdict {
    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Revoked(_) => "revoked",
            Self::NotForCaller => "not_for_caller",
        }
    }
}

/// What was to be recorded was not. What depends on it must not happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it cannot be recorded")]
pub struct Unrecorded;

/// A record on its way to where it lasts.
pub type Recording<'a> = Pin<Box<dyn Future<Output = Result<(), Unrecorded>> + Send + 'a>>;

/// Is told what happened.
pub trait Journal: Send + Sync + 'static {
    /// This happened. It must be quick, and what cannot be recorded is counted and lost.
    fn record(&self, at: Timestamp, origin: &Origin, happening: Happening);

    /// This is about to happen, if it can be recorded: what comes back is over when it is, or when
    /// it cannot be.
    fn record_surely<'a>(
        &'a self,
        at: Timestamp,
        origin: &'a Origin,
        happening: Happening,
    ) -> Recording<'a> {
        self.record(at, origin, happening);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A journal that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn record(&self, _at: Timestamp, _origin: &Origin, _happening: Happening) {}
}
