//! The only place that makes a `Status`. Peers get constant texts; what they depend on stands in
//! the details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::feed::WatchError;
use crate::store::StoreError;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "avouch";

fn with(code: Code, message: &str, reason: &str, retry_after: Option<Duration>) -> Status {
    with_metadata(code, message, reason, retry_after, HashMap::new())
}

fn with_metadata(
    code: Code,
    message: &str,
    reason: &str,
    retry_after: Option<Duration>,
    metadata: HashMap<String, String>,
) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, message, details)
}

/// A field of the request is not what it must be. The text never carries its value.
pub fn bad_field(field: &str, description: &str) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(field, description);
    let metadata = HashMap::from([("field".to_owned(), field.to_owned())]);
    details.set_error_info("INVALID_FIELD", DOMAIN, metadata);
    Status::with_error_details(Code::InvalidArgument, format!("{field} {description}"), details)
}

/// The caller may not do this.
pub fn permission_denied() -> Status {
    with(Code::PermissionDenied, "permission denied", "PERMISSION_DENIED", None)
}

/// Why a watch did not begin, or ended.
pub fn watch(error: &WatchError) -> Status {
    const SOON: Option<Duration> = Some(Duration::from_millis(250));
    const LATER: Option<Duration> = Some(Duration::from_secs(2));
    match error {
        WatchError::Draining => with(Code::Unavailable, "the server is draining", "DRAINING", SOON),
        WatchError::Behind { head } => with_metadata(
            Code::Unavailable,
            "this replica has not seen the cursor yet",
            "REPLICA_BEHIND",
            SOON,
            HashMap::from([("head".to_owned(), head.to_string())]),
        ),
        WatchError::OtherLog => {
            with(Code::FailedPrecondition, "the cursor belongs to another log", "OTHER_LOG", None)
        }
        WatchError::Busy { per_caller, limit } => with_metadata(
            Code::ResourceExhausted,
            "too many watchers",
            if *per_caller { "TOO_MANY_WATCHERS_OF_CALLER" } else { "TOO_MANY_WATCHERS" },
            LATER,
            HashMap::from([("limit".to_owned(), limit.to_string())]),
        ),
        WatchError::Slow { through } => with_metadata(
            Code::ResourceExhausted,
            "the watcher does not read fast enough; resume from the last cursor it applied",
            "SLOW_WATCHER",
            LATER,
            HashMap::from([("through".to_owned(), through.to_string())]),
        ),
        WatchError::CredentialEnded => with(
            Code::Unauthenticated,
            "the credential of the stream is no longer good",
            "CREDENTIAL_ENDED",
            None,
        ),
        WatchError::Store(error) => store(error),
    }
}

/// Why the store did not do what it was asked. The text of the error is for the log of this process.
pub fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) => with(
            Code::Unavailable,
            "the store is unavailable",
            "STORE_UNAVAILABLE",
            Some(Duration::from_secs(1)),
        ),
        StoreError::Corrupt(_) | StoreError::Internal(_) => {
            tracing::error!(%error, "internal error");
            with(Code::Internal, "internal error", "INTERNAL", None)
        }
    }
}
