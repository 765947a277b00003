//! Why an operation gave nothing: one enum for each.

use tonic::Code;

use crate::client::retry::{Failed, Failure};

/// Writes an enum of errors with its reading of a failed call: the codes that the proto names, and
/// what may come of any call.
macro_rules! errors {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $pattern:pat, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* #[error($text)] $variant(Failure),)*
            /// No replica could be reached, or the one that was cannot serve. A later try may help.
            #[error("unavailable: {0}")]
            Unavailable(Failure),
            /// There was no answer in time.
            #[error("there was no answer in time")]
            Deadline,
            /// What no avouch of this version answers.
            #[error("unexpected answer: {0}")]
            Unexpected(Failure),
        }

        impl From<Failed> for $name {
            fn from(failed: Failed) -> Self {
                let failure = match failed {
                    Failed::Deadline => return Self::Deadline,
                    Failed::Said(failure) => failure,
                };
                match failure.code {
                    $($pattern => Self::$variant(failure),)*
                    Code::Unavailable => Self::Unavailable(failure),
                    _ => Self::Unexpected(failure),
                }
            }
        }
    };
}

errors! {
    /// Why Authenticate gave no tokens.
    AuthenticateError {
        /// The client or the credential was not accepted.
        Refused = Code::Unauthenticated, "not accepted: {0}";
        /// The client may not use this grant, or have this scope or audience.
        Denied = Code::PermissionDenied, "not allowed: {0}";
        /// A field of the request is wrong.
        Invalid = Code::InvalidArgument, "wrong request: {0}";
        /// Too many attempts, or no room to hash, for longer than the deadline.
        Exhausted = Code::ResourceExhausted, "too much at once: {0}";
    }
}

errors! {
    /// Why Refresh gave no tokens.
    RefreshError {
        /// The client or the refresh token was not accepted. The session is over: only a new login
        /// helps.
        Refused = Code::Unauthenticated, "not accepted: {0}";
        /// A scope or an audience that the session does not hold. The token is not spent.
        Denied = Code::PermissionDenied, "not allowed: {0}";
        /// A field of the request is wrong.
        Invalid = Code::InvalidArgument, "wrong request: {0}";
    }
}

errors! {
    /// Why Revoke took nothing back.
    RevokeError {
        /// The caller is not known.
        Refused = Code::Unauthenticated, "not accepted: {0}";
        /// The caller may not revoke this.
        Denied = Code::PermissionDenied, "not allowed: {0}";
        /// A field of the request is wrong.
        Invalid = Code::InvalidArgument, "wrong request: {0}";
    }
}

errors! {
    /// Why Introspect gave no answer. A bad token has one, and so has one that the caller may not see.
    IntrospectError {
        /// The caller is not known.
        Refused = Code::Unauthenticated, "not accepted: {0}";
        /// A field of the request is wrong.
        Invalid = Code::InvalidArgument, "wrong request: {0}";
        /// The cursor belongs to another log: the store was restored or replaced.
        OtherLog = Code::FailedPrecondition, "other log: {0}";
    }
}

errors! {
    /// Why GetKeySet gave no keys.
    KeySetError {}
}

errors! {
    /// Why no sessions were shown.
    SessionsError {
        /// The caller is not known.
        Refused = Code::Unauthenticated, "not accepted: {0}";
        /// The caller may not see them.
        Denied = Code::PermissionDenied, "not allowed: {0}";
        /// A field of the request is wrong.
        Invalid = Code::InvalidArgument, "wrong request: {0}";
        /// There is no such session.
        NotFound = Code::NotFound, "not found: {0}";
    }
}
