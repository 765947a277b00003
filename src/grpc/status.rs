//! Every error as a `Status`: the one place that makes one, and the one place that decides what a
//! peer may read. Messages are constant; what happened goes to the log.

#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::convert::Invalid;
use crate::domain::client::LifetimeError;
use crate::feed::WatchError;
use crate::service::Excess;
use crate::service::admin::AdminError;
use crate::service::authenticate::AuthenticateError;
use crate::service::backup::BackupError;
use crate::service::introspect::IntrospectError;
use crate::service::refresh::RefreshError;
use crate::service::revoke::RevokeError;
use crate::service::sessions::SessionsError;
use crate::store::StoreError;
use crate::store::backup::CaptureError;

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "avouch";

/// How long to wait before trying a replica again that cannot serve.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(500);

fn build(
    code: Code,
    reason: &str,
    message: &str,
    extend: impl FnOnce(&mut ErrorDetails),
) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    extend(&mut details);
    Status::with_error_details(code, message, details)
}

fn plain(code: Code, reason: &str, message: &str) -> Status {
    build(code, reason, message, |_| {})
}

fn retry(code: Code, reason: &str, message: &str, after: Duration) -> Status {
    build(code, reason, message, |details| {
        details.set_retry_info(Some(after));
    })
}

/// A field of the request is not what it must be. The text never carries its value.
pub fn field(name: &str, problem: &str) -> Status {
    Invalid::one(name, problem).into()
}

/// A credential was not accepted. One answer for every reason (invariant 9).
pub fn credential_refused() -> Status {
    plain(Code::Unauthenticated, "CREDENTIAL_NOT_ACCEPTED", "credential not accepted")
}

/// The caller did not show who it is, or what it showed is not good.
pub fn caller_unknown() -> Status {
    plain(Code::Unauthenticated, "CALLER_NOT_AUTHENTICATED", "caller not authenticated")
}

/// The caller may not do this.
pub fn denied() -> Status {
    plain(Code::PermissionDenied, "PERMISSION_DENIED", "the caller may not do this")
}

/// There is no such thing.
pub fn not_found() -> Status {
    plain(Code::NotFound, "NOT_FOUND", "not found")
}

/// A node agent has the live set and no log.
pub fn no_log() -> Status {
    plain(Code::Unimplemented, "NO_LOG", "a node agent keeps no log: ask the server itself")
}

/// The server is on its way out or its store is.
pub fn unavailable(reason: &str) -> Status {
    retry(Code::Unavailable, reason, "unavailable, try again", UNAVAILABLE_RETRY)
}

/// Why a watch did not begin, or ended; or why a wait for a revision was in vain.
pub fn watch(error: WatchError) -> Status {
    match error {
        WatchError::NotReady => unavailable("NOT_READY"),
        WatchError::Draining => unavailable("DRAINING"),
        WatchError::Behind { head } => {
            build(Code::Unavailable, "REPLICA_BEHIND", "this replica is behind", |details| {
                let metadata = HashMap::from([("head".to_owned(), head.to_string())]);
                details.set_error_info("REPLICA_BEHIND", DOMAIN, metadata);
                details.set_retry_info(Some(UNAVAILABLE_RETRY));
            })
        }
        WatchError::CutOff => unavailable("REPLICA_CUT_OFF"),
        WatchError::OtherLog => plain(
            Code::FailedPrecondition,
            "OTHER_LOG",
            "the cursor belongs to another log: the store was restored or replaced",
        ),
        WatchError::Busy { per_caller, limit: _ } => exhausted(
            if per_caller { "TOO_MANY_WATCHERS_OF_CALLER" } else { "TOO_MANY_WATCHERS" },
            "too many watchers",
            Duration::from_secs(2),
        ),
        WatchError::Slow { through } => {
            build(Code::ResourceExhausted, "SLOW_WATCHER", "the watcher does not read", |details| {
                let metadata = HashMap::from([("through".to_owned(), through.to_string())]);
                details.set_error_info("SLOW_WATCHER", DOMAIN, metadata);
                details.set_retry_info(Some(Duration::from_secs(2)));
            })
        }
        WatchError::CredentialEnded => plain(
            Code::Unauthenticated,
            "CREDENTIAL_ENDED",
            "the credential of the stream is no longer good",
        ),
        WatchError::Store(error) => store(error),
    }
}

/// Too much was asked for.
pub fn exhausted(reason: &str, message: &str, after: Duration) -> Status {
    retry(Code::ResourceExhausted, reason, message, after)
}

/// Something that must not happen, and the log says what.
pub fn internal(what: &str) -> Status {
    tracing::error!(what, "internal error");
    plain(Code::Internal, "INTERNAL", "internal error")
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        build(Code::InvalidArgument, "INVALID_ARGUMENT", "invalid argument", |details| {
            for (name, problem) in invalid.fields() {
                details.add_bad_request_violation(name, problem);
            }
        })
    }
}

/// What the store did not do.
pub fn store(error: StoreError) -> Status {
    match error {
        StoreError::Unavailable(why) => {
            tracing::warn!(%why, "the store is unavailable");
            unavailable("STORE_UNAVAILABLE")
        }
        StoreError::Corrupt(what) => internal(&what),
        StoreError::Internal(what) => internal(what),
    }
}

fn excess(excess: Excess) -> Status {
    match excess {
        Excess::Scope => plain(
            Code::PermissionDenied,
            "SCOPE_NOT_ALLOWED",
            "a scope was asked for that may not be had",
        ),
        Excess::Audience => plain(
            Code::PermissionDenied,
            "AUDIENCE_NOT_ALLOWED",
            "an audience was asked for that may not be had",
        ),
    }
}

/// Why Authenticate gave no tokens.
pub fn authenticate(error: AuthenticateError) -> Status {
    match error {
        AuthenticateError::Refused => credential_refused(),
        AuthenticateError::NotFirstParty => plain(
            Code::PermissionDenied,
            "CLIENT_NOT_FIRST_PARTY",
            "the password grant is for first-party clients only (RFC 9700 section 2.4)",
        ),
        AuthenticateError::PublicClient => plain(
            Code::PermissionDenied,
            "CLIENT_NOT_CONFIDENTIAL",
            "a public client cannot authenticate as itself",
        ),
        AuthenticateError::Excess(which) => excess(which),
        AuthenticateError::Username(error) => {
            field("password.username", &format!("{error} (RFC 8265 UsernameCaseMapped)"))
        }
        AuthenticateError::Password(error) => {
            field("password.password", &format!("{error} (RFC 8265 OpaqueString)"))
        }
        AuthenticateError::Throttled(after) => {
            exhausted("TOO_MANY_ATTEMPTS", "too many attempts, try again later", after)
        }
        AuthenticateError::Busy(after) => busy(after),
        AuthenticateError::Store(error) => store(error),
        AuthenticateError::Internal(what) => internal(what),
    }
}

fn busy(after: Duration) -> Status {
    exhausted("HASH_QUEUE_FULL", "too many logins at once, try again", after)
}

/// Why Refresh gave no tokens.
pub fn refresh(error: RefreshError) -> Status {
    match error {
        RefreshError::Refused => credential_refused(),
        RefreshError::Excess(which) => excess(which),
        RefreshError::Store(error) => store(error),
        RefreshError::Internal(what) => internal(what),
    }
}

/// Why Revoke took nothing back.
pub fn revoke(error: RevokeError) -> Status {
    match error {
        RevokeError::Anonymous => caller_unknown(),
        RevokeError::Denied => denied(),
        RevokeError::Store(error) => store(error),
    }
}

/// Why Introspect gave no answer.
pub fn introspect(error: IntrospectError) -> Status {
    match error {
        IntrospectError::Anonymous => caller_unknown(),
        IntrospectError::Wait(error) => watch(error),
        IntrospectError::Store(error) => store(error),
    }
}

/// Why no session is shown.
pub fn sessions(error: SessionsError) -> Status {
    match error {
        SessionsError::Anonymous => caller_unknown(),
        SessionsError::Denied => denied(),
        SessionsError::NoSubject => field("subject", "must be set: the caller is no subject"),
        SessionsError::NotFound => not_found(),
        SessionsError::Store(error) => store(error),
    }
}

/// Why a user, a client or a key was not changed or not shown.
impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Anonymous => caller_unknown(),
            AdminError::Denied => denied(),
            AdminError::Credential(error) => authenticate(error),
            AdminError::NotFound => not_found(),
            AdminError::Taken => {
                plain(Code::AlreadyExists, "ALREADY_EXISTS", "the name or the id is taken")
            }
            AdminError::Username(error) => {
                field("username", &format!("{error} (RFC 8265 UsernameCaseMapped)"))
            }
            AdminError::Password(error) => field("password", &error.to_string()),
            AdminError::Lifetime(error) => {
                let name = match error {
                    LifetimeError::Access => "client.access_token_lifetime",
                    LifetimeError::Idle => "client.session_idle_lifetime",
                    LifetimeError::Absolute => "client.session_absolute_lifetime",
                    LifetimeError::RetryWindow => "client.retry_window",
                };
                field(name, &error.to_string())
            }
            AdminError::NoAudience => field("client.audiences", "must name at least one audience"),
            AdminError::PublicClient => plain(
                Code::FailedPrecondition,
                "CLIENT_NOT_CONFIDENTIAL",
                "a public client has no secret and no grants",
            ),
            AdminError::NothingAnnounced => plain(
                Code::FailedPrecondition,
                "NO_KEY_ANNOUNCED",
                "no key is announced; call CreateKey first",
            ),
            AdminError::Busy(after) => busy(after),
            AdminError::Unrecorded => retry(
                Code::Unavailable,
                "AUDIT_UNAVAILABLE",
                "the audit log cannot be written, so nothing was changed",
                UNAVAILABLE_RETRY,
            ),
            AdminError::Store(error) => store(error),
            AdminError::Internal(what) => internal(what),
        }
    }
}

/// Why there is no backup.
impl From<BackupError> for Status {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Admin(error) => error.into(),
            BackupError::Capture(CaptureError::Busy) => exhausted(
                "BACKUP_IN_PROGRESS",
                "another backup is being made",
                Duration::from_secs(5),
            ),
            BackupError::Capture(CaptureError::TooSlow) => plain(
                Code::Aborted,
                "BACKUP_TOO_SLOW",
                "the backup was read more slowly than the store was written to",
            ),
            BackupError::Capture(error @ CaptureError::Compacted) => {
                plain(Code::Aborted, "BACKUP_TOO_SLOW", &error.to_string())
            }
            BackupError::Capture(CaptureError::Unsupported) => {
                plain(Code::Unimplemented, "BACKUP_NOT_SUPPORTED", "this store cannot be backed up")
            }
            BackupError::Capture(CaptureError::Store(error)) => store(error),
            BackupError::Internal(what) => internal(what),
        }
    }
}
