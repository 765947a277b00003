//! The log: what was revoked, why, and until when anybody must remember it.

use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::ids::{ClientId, Epoch, KeyId, Revision, SessionId, SubjectId, TokenId};
use crate::domain::scope::Names;

/// How much longer than the last token it concerns an event is kept: Envoy accepts a token for 60 s
/// after its `exp`, and a clock may be off.
pub const SKEW: Duration = Duration::from_secs(60);

/// The longest that any access token may live.
pub const MAX_ACCESS_LIFETIME: Duration = Duration::from_secs(3600);

/// How long an event about a subject, a client, a key or everything is kept.
pub const RETENTION: Duration = MAX_ACCESS_LIFETIME.saturating_add(SKEW);

/// What a revocation is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// One access token.
    Token {
        /// Its `jti`.
        id: TokenId,
        /// Its `exp`.
        expires_at: Timestamp,
        /// The client that it was issued to.
        client: ClientId,
        /// Its subject.
        subject: SubjectId,
        /// The audiences that it is good for.
        audience: Names,
    },
    /// One session and all its tokens.
    Session {
        /// Its `sid`.
        id: SessionId,
        /// Its client.
        client: ClientId,
        /// Its subject.
        subject: SubjectId,
        /// The audiences that its tokens are good for.
        audience: Names,
    },
    /// Everything of a subject under a lower epoch.
    Subject {
        /// The subject.
        id: SubjectId,
        /// The epoch from now on.
        epoch: Epoch,
    },
    /// Everything of a client under a lower epoch.
    Client {
        /// The client.
        id: ClientId,
        /// The epoch from now on.
        epoch: Epoch,
    },
    /// Everything under a lower epoch.
    Everything {
        /// The epoch from now on.
        epoch: Epoch,
    },
    /// Everything that a key signed.
    Key {
        /// Its `kid`.
        id: KeyId,
    },
}

/// Why something was revoked; the values of CAEP 1.0 and RISC.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the proto's RevocationReason documents each value")]
pub enum Reason {
    Logout = 1,
    AdminAction = 2,
    CredentialChanged = 3,
    CredentialCompromised = 4,
    AccountDisabled = 5,
    AccountDeleted = 6,
    RefreshTokenReused = 7,
    PolicyViolation = 8,
    RiskDetected = 9,
    DeviceNonCompliant = 10,
    SessionSuperseded = 11,
    ClientDisabled = 12,
    KeyCompromised = 13,
    ClaimsChanged = 14,
    ExternalSignal = 15,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 15] = [
        Self::Logout,
        Self::AdminAction,
        Self::CredentialChanged,
        Self::CredentialCompromised,
        Self::AccountDisabled,
        Self::AccountDeleted,
        Self::RefreshTokenReused,
        Self::PolicyViolation,
        Self::RiskDetected,
        Self::DeviceNonCompliant,
        Self::SessionSuperseded,
        Self::ClientDisabled,
        Self::KeyCompromised,
        Self::ClaimsChanged,
        Self::ExternalSignal,
    ];

    /// The reason with this number, as it is stored and on the wire.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as i32 == number)
    }

    /// The name that people type and read, `logout`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::AdminAction => "admin_action",
            Self::CredentialChanged => "credential_changed",
            Self::CredentialCompromised => "credential_compromised",
            Self::AccountDisabled => "account_disabled",
            Self::AccountDeleted => "account_deleted",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::PolicyViolation => "policy_violation",
            Self::RiskDetected => "risk_detected",
            Self::DeviceNonCompliant => "device_non_compliant",
            Self::SessionSuperseded => "session_superseded",
            Self::ClientDisabled => "client_disabled",
            Self::KeyCompromised => "key_compromised",
            Self::ClaimsChanged => "claims_changed",
            Self::ExternalSignal => "external_signal",
        }
    }
}

/// Who began a revocation (CAEP 1.0 `initiating_entity`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the proto's InitiatingEntity documents each value")]
pub enum Initiator {
    Admin = 1,
    User = 2,
    Policy = 3,
    System = 4,
}

impl Initiator {
    /// The initiator with this number, as it is stored and on the wire.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::Admin, Self::User, Self::Policy, Self::System]
            .into_iter()
            .find(|initiator| *initiator as i32 == number)
    }

    /// The name that people type and read, `admin`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::User => "user",
            Self::Policy => "policy",
            Self::System => "system",
        }
    }
}

/// Why something is revoked and who began it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Cause {
    /// Why.
    pub reason: Reason,
    /// Who began it.
    pub initiator: Initiator,
}

/// One revocation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revocation {
    /// What is revoked.
    pub target: Target,
    /// Why, and who began it.
    pub cause: Cause,
    /// When it was committed.
    pub at: Timestamp,
    /// When the last token that it can concern has expired, plus [`SKEW`].
    pub expires_at: Timestamp,
}

/// What the log says happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Something was revoked. A revoked key is a change of the key set, too.
    Revocation(Revocation),
    /// The published keys or their states changed.
    KeySetChanged {
        /// When.
        at: Timestamp,
    },
}

impl Event {
    /// When the log may forget it.
    pub fn expires_at(&self) -> Timestamp {
        match self {
            Self::Revocation(revocation) => revocation.expires_at,
            Self::KeySetChanged { at } => at.after(RETENTION),
        }
    }
}

/// An event at its place in the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its place.
    pub revision: Revision,
    /// What happened.
    pub event: Event,
}
