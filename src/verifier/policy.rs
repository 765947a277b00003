//! What to do when the view of revocations is too old to tell.

use std::fmt;
use std::str::FromStr;

/// What to answer for a token that nothing known revokes, when the view is older than the limit. What
/// is known to be revoked is refused in every mode.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Policy {
    /// Unavailable: the token is not known to be bad, so the client should try again, not log in again.
    Closed,
    /// Ask the server about the token, and be unavailable if it does not answer.
    #[default]
    Introspect,
    /// Accept it until it expires, and count that.
    Open,
}

/// The text names no policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be one of: closed, introspect, open")]
pub struct UnknownPolicy;

impl Policy {
    /// The name in configuration and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Introspect => "introspect",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        [Self::Closed, Self::Introspect, Self::Open]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or(UnknownPolicy)
    }
}
