//! The labels: closed sets of words.

use std::fmt::Write as _;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

macro_rules! label {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word in the metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                encoder.write_str(self.as_str())
            }
        }
    };
}

pub(super) use label;

label! {
    /// A method of ours, or any other path that somebody called.
    #[expect(missing_docs, reason = "the protos document each method")]
    Method {
        AckRevocations = "AckRevocations",
        Authenticate = "Authenticate",
        ChangePassword = "ChangePassword",
        CreateClient = "CreateClient",
        CreateKey = "CreateKey",
        CreateUser = "CreateUser",
        DeleteClient = "DeleteClient",
        DeleteUser = "DeleteUser",
        DisableClient = "DisableClient",
        DisableUser = "DisableUser",
        EnableClient = "EnableClient",
        EnableUser = "EnableUser",
        GetClient = "GetClient",
        GetKey = "GetKey",
        GetKeySet = "GetKeySet",
        GetSession = "GetSession",
        GetUser = "GetUser",
        Introspect = "Introspect",
        ListClients = "ListClients",
        ListKeys = "ListKeys",
        ListRevocations = "ListRevocations",
        ListSessions = "ListSessions",
        ListUsers = "ListUsers",
        Refresh = "Refresh",
        Revoke = "Revoke",
        RevokeKey = "RevokeKey",
        RotateClientSecret = "RotateClientSecret",
        RotateKey = "RotateKey",
        SetUserPassword = "SetUserPassword",
        UpdateClient = "UpdateClient",
        UpdateUser = "UpdateUser",
        WatchRevocations = "WatchRevocations",
        Other = "other",
    }
}

impl Method {
    /// The method of a path, `/avouch.v1.IdentityService/Refresh`.
    pub fn from_path(path: &str) -> Self {
        let name = path.strip_prefix("/avouch.v1.").and_then(|rest| rest.split_once('/'));
        let known = name.and_then(|(_, name)| Self::ALL.into_iter().find(|m| m.as_str() == name));
        known.unwrap_or(Self::Other)
    }
}

label! {
    /// A gRPC status code.
    #[expect(missing_docs, reason = "the codes of gRPC")]
    Code {
        Ok = "OK",
        Cancelled = "CANCELLED",
        Unknown = "UNKNOWN",
        InvalidArgument = "INVALID_ARGUMENT",
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        NotFound = "NOT_FOUND",
        AlreadyExists = "ALREADY_EXISTS",
        PermissionDenied = "PERMISSION_DENIED",
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        FailedPrecondition = "FAILED_PRECONDITION",
        Aborted = "ABORTED",
        OutOfRange = "OUT_OF_RANGE",
        Unimplemented = "UNIMPLEMENTED",
        Internal = "INTERNAL",
        Unavailable = "UNAVAILABLE",
        DataLoss = "DATA_LOSS",
        Unauthenticated = "UNAUTHENTICATED",
    }
}

impl Code {
    /// The code with this number; UNKNOWN for any that gRPC does not have.
    pub fn from_number(number: i32) -> Self {
        let index = usize::try_from(number).ok();
        index.and_then(|index| Self::ALL.get(index).copied()).unwrap_or(Self::Unknown)
    }
}

label! {
    /// What became of a password to hash.
    HashOutcome {
        /// It was hashed.
        Done = "done",
        /// The queue was full or too slow.
        Shed = "shed",
        /// Its source had its share of the queue.
        ShedSource = "shed_source",
        /// Nobody waited for it any more.
        Abandoned = "abandoned",
        /// It could not be hashed.
        Failed = "failed",
    }
}

label! {
    /// How a refresh token was accepted.
    Rotation {
        /// It was the current one.
        Rotated = "rotated",
        /// It was the one before, inside the retry window: the same successor again.
        Retried = "retried",
    }
}

label! {
    /// Why, most likely, a spent refresh token was presented.
    ReuseCause {
        /// Two callers at once.
        Concurrent = "concurrent",
        /// A client that lost the answer and asked too late.
        LateRetry = "late_retry",
        /// Somebody has a copy.
        Replay = "replay",
        /// A client that it was not issued to.
        OtherClient = "other_client",
    }
}

label! {
    /// How much a revocation takes back.
    Level {
        /// One access token.
        Token = "token",
        /// One session.
        Session = "session",
        /// Everything of a subject.
        Subject = "subject",
        /// Everything of a client.
        Client = "client",
        /// Everything.
        Everything = "everything",
        /// Everything that a key signed.
        Key = "key",
    }
}

label! {
    /// What an introspection said.
    Verdict {
        /// The token is good.
        Active = "active",
        /// It is none of ours, or not in its time.
        Inactive = "inactive",
        /// It was revoked.
        Revoked = "revoked",
        /// The caller may not know.
        NotForCaller = "not_for_caller",
    }
}

label! {
    /// Where a signing key is in its life.
    KeyState {
        /// Published, not signing.
        Announced = "announced",
        /// It signs.
        Active = "active",
        /// Published, no longer signing.
        Retired = "retired",
        /// Taken back.
        Revoked = "revoked",
    }
}

macro_rules! label_set {
    ($($name:ident { $($field:ident: $kind:ty),+ })+) => {$(
        #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
        pub(super) struct $name {
            $(pub(super) $field: $kind,)+
        }
    )+};
}

pub(super) use label_set;

label_set! {
    RpcLabels { method: Method, code: Code }
    MethodLabels { method: Method }
    OutcomeLabels { outcome: HashOutcome }
    RotationLabels { kind: Rotation }
    CauseLabels { cause: ReuseCause }
    LevelLabels { level: Level }
    VerdictLabels { verdict: Verdict }
    KeyStateLabels { state: KeyState }
}
