//! What may go wrong for somebody who types, in words that help.

use std::fmt;
use std::path::PathBuf;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::offline::OfflineError;
use crate::config::{ConfigErrors, SecretFileError};

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    #[error("{0} cannot be written: {1}")]
    File(PathBuf, #[source] std::io::Error),
    #[error("{0}")]
    Secret(#[from] SecretFileError),
    #[error("{0}")]
    Rpc(Box<Explained>),
    #[error("{0}")]
    Offline(#[from] OfflineError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Usage(_) => 2,
            Self::Offline(error) => error.exit_code(),
            Self::File(..) | Self::Other(_) | Self::Output(_) | Self::Rpc(_) | Self::Secret(_) => 1,
        }
    }

    /// The status, if a server answered with one.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Self::Rpc(explained) => Some(explained.0.code()),
            _ => None,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(Explained(status)))
    }
}

/// A status with what its details say.
#[derive(Debug)]
pub(super) struct Explained(Status);

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.0;
        let what = match status.code() {
            Code::Unauthenticated => "the server did not accept the credential",
            Code::PermissionDenied => "the caller may not do that",
            Code::NotFound => "there is no such thing",
            Code::AlreadyExists => "it exists already",
            Code::InvalidArgument => "the server refused the request",
            Code::FailedPrecondition => "that cannot be done now",
            Code::ResourceExhausted => "the server has no room for this call now",
            Code::Unavailable => "the server cannot be reached or cannot answer now",
            Code::Cancelled | Code::DeadlineExceeded => "the server took too long",
            Code::Unimplemented => "the server does not know this call",
            Code::Aborted
            | Code::DataLoss
            | Code::Internal
            | Code::Ok
            | Code::OutOfRange
            | Code::Unknown => "the call failed",
        };
        let details = status.get_error_details();
        write!(f, "{what}: {}", crate::cli::table::printable(status.message()))?;
        if let Some(info) = details.error_info() {
            write!(f, " [{}]", crate::cli::table::printable(&info.reason))?;
        }
        for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
            let field = crate::cli::table::printable(&violation.field);
            let text = crate::cli::table::printable(&violation.description);
            write!(f, "\n  {field}: {text}")?;
        }
        if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
            write!(f, "\n  try again in {:.1} s", delay.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn says_what_the_details_say() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("FIELD_INVALID", "avouch", std::collections::HashMap::new())
            .add_bad_request_violation("username", "must not be empty")
            .set_retry_info(Some(Duration::from_millis(1_500)));
        let status = Status::with_error_details(Code::InvalidArgument, "bad\u{1b} field", details);
        assert_eq!(
            Failure::from(status).to_string(),
            "the server refused the request: bad\u{fffd} field [FIELD_INVALID]\n  username: must not \
             be empty\n  try again in 1.5 s"
        );
    }
}
