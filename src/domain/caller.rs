//! Who calls, and what a caller may do. Not how it proved itself.

use crate::domain::ids::{ClientId, SessionId, SubjectId};
use crate::domain::scope::Names;

/// Something a caller may do beyond what everybody may.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Right {
    /// Ask about tokens.
    Introspect = 1,
    /// Follow the stream of revocations.
    Watch = 2,
    /// Revoke.
    Revoke = 3,
    /// See sessions.
    Sessions = 4,
    /// Keep users, clients and keys, and make backups.
    Admin = 5,
    /// Make backups.
    Backup = 6,
}

impl Right {
    /// Every right, in the order of its number.
    pub const ALL: [Self; 6] =
        [Self::Introspect, Self::Watch, Self::Revoke, Self::Sessions, Self::Admin, Self::Backup];

    /// The right with this number, as it is stored and on the wire.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|right| *right as i32 == number)
    }

    /// The name that people type and read, `introspect`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Introspect => "introspect",
            Self::Watch => "watch",
            Self::Revoke => "revoke",
            Self::Sessions => "sessions",
            Self::Admin => "admin",
            Self::Backup => "backup",
        }
    }
}

impl std::str::FromStr for Right {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|right| right.name() == text).ok_or(())
    }
}

/// A right, perhaps limited. A limit that is set must match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// What the caller may do.
    pub right: Right,
    /// Only what is good for this audience.
    pub audience: Option<Box<str>>,
    /// Only what belongs to this client.
    pub client: Option<ClientId>,
    /// Only what belongs to this subject.
    pub subject: Option<SubjectId>,
}

impl Grant {
    /// The right without a limit.
    pub const fn unlimited(right: Right) -> Self {
        Self { right, audience: None, client: None, subject: None }
    }
}

/// What a call is about, as far as it is known. What is not known matches no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resource<'a> {
    /// The audiences that it is good for.
    pub audience: Option<&'a Names>,
    /// The client that it belongs to.
    pub client: Option<&'a ClientId>,
    /// The subject that it belongs to.
    pub subject: Option<&'a SubjectId>,
}

/// How a caller is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Identity {
    /// Nobody known.
    Anonymous,
    /// A certificate with these names.
    Certificate(Vec<Box<str>>),
    /// A client that proved itself.
    Client(ClientId),
    /// A user, by an access token that a client got for them.
    Subject {
        /// The user.
        subject: SubjectId,
        /// The client.
        client: ClientId,
        /// The session.
        session: Option<SessionId>,
    },
    /// avouch itself, when it makes its first credentials.
    System,
}

/// Who calls and what they were granted.
#[derive(Clone, Debug)]
pub struct Caller {
    /// How the caller is known.
    pub identity: Identity,
    /// What the caller may do beyond what everybody may.
    pub grants: Vec<Grant>,
}

impl Caller {
    /// A caller of whom nothing is known: it may do what everybody may.
    pub const fn anonymous() -> Self {
        Self { identity: Identity::Anonymous, grants: Vec::new() }
    }

    /// avouch itself: it may do everything.
    pub fn system() -> Self {
        let grants = Right::ALL.map(Grant::unlimited).into();
        Self { identity: Identity::System, grants }
    }

    /// Whether the caller has `right` over `resource`.
    pub fn may(&self, right: Right, resource: Resource<'_>) -> bool {
        self.grants.iter().filter(|grant| grant.right == right).any(|grant| {
            let audience = grant
                .audience
                .as_deref()
                .is_none_or(|limit| resource.audience.is_some_and(|own| own.contains(limit)));
            let client = grant.client.as_ref().is_none_or(|limit| resource.client == Some(limit));
            let subject =
                grant.subject.as_ref().is_none_or(|limit| resource.subject == Some(limit));
            audience && client && subject
        })
    }

    /// Whether the caller has `right` over anything at all. Decides before the resource is looked
    /// up, so that the answer does not tell whether it exists.
    pub fn has(&self, right: Right) -> bool {
        self.grants.iter().any(|grant| grant.right == right)
    }

    /// The client that calls, for itself or for a user.
    pub const fn client(&self) -> Option<&ClientId> {
        match &self.identity {
            Identity::Client(client) | Identity::Subject { client, .. } => Some(client),
            Identity::Anonymous | Identity::Certificate(_) | Identity::System => None,
        }
    }

    /// The user that calls.
    pub const fn subject(&self) -> Option<&SubjectId> {
        match &self.identity {
            Identity::Subject { subject, .. } => Some(subject),
            Identity::Anonymous
            | Identity::Certificate(_)
            | Identity::Client(_)
            | Identity::System => None,
        }
    }
}
