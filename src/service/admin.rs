//! Keeping users, clients and keys: who may, and what is told of it. Every change that ends tokens
//! revokes them in the same commit.

use std::time::Duration;

use super::authenticate::AuthenticateError;
use super::journal::{Happening, Origin, Unrecorded};
use super::{Service, describe};
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::client::LifetimeError;
use crate::domain::event::Entry;
use crate::domain::ids::{ClientId, SubjectId};
use crate::domain::username::NameError;
use crate::password::PolicyError;
use crate::store::StoreError;

pub mod clients;
pub mod users;

/// Why a user or a client was not changed or not shown.
#[derive(Debug)]
pub enum AdminError {
    /// The caller is nobody known.
    Anonymous,
    /// The caller may not do that.
    Denied,
    /// The present credential was not accepted; as for Authenticate.
    Credential(AuthenticateError),
    /// There is no such user or client.
    NotFound,
    /// The name or the id is taken.
    Taken,
    /// The name is no user name.
    Username(NameError),
    /// The rules refuse the password.
    Password(PolicyError),
    /// A lifetime is out of its bounds.
    Lifetime(LifetimeError),
    /// A client needs at least one audience.
    NoAudience,
    /// Only a confidential client may have grants or a secret.
    PublicClient,
    /// No key is announced that could sign.
    NothingAnnounced,
    /// No room to hash.
    Busy(Duration),
    /// The audit log cannot be written, so nothing was changed.
    Unrecorded,
    /// The store did not answer.
    Store(StoreError),
    /// Something that must not happen.
    Internal(&'static str),
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AuthenticateError> for AdminError {
    fn from(error: AuthenticateError) -> Self {
        match error {
            AuthenticateError::Busy(delay) => Self::Busy(delay),
            AuthenticateError::Store(error) => Self::Store(error),
            AuthenticateError::Internal(what) => Self::Internal(what),
            AuthenticateError::Username(error) => Self::Username(error),
            other => Self::Credential(other),
        }
    }
}

impl Service {
    /// Whether the caller may keep users, clients and keys.
    ///
    /// # Errors
    /// When it may not.
    pub fn may_administer(
        &self,
        caller: &Caller,
        what: &'static str,
        origin: &Origin,
    ) -> Result<(), AdminError> {
        self.may_one_of(&[Right::Admin], caller, what, origin)
    }

    /// Whether the caller has one of these rights, without a limit.
    fn may_one_of(
        &self,
        rights: &[Right],
        caller: &Caller,
        what: &'static str,
        origin: &Origin,
    ) -> Result<(), AdminError> {
        if caller.identity == Identity::Anonymous {
            return Err(AdminError::Anonymous);
        }
        if rights.iter().any(|right| caller.may(*right, Resource::default())) {
            return Ok(());
        }
        let happening = Happening::Denied { caller: describe(caller), what };
        self.journal.record(self.now(), origin, happening);
        Err(AdminError::Denied)
    }

    /// Whether the caller may change users, clients and keys. That it tries is in the audit log when
    /// this returns: what an administrator does must not happen unrecorded. A revocation may, since
    /// it takes away and gives nothing.
    pub(super) async fn begin_change(
        &self,
        caller: &Caller,
        what: &'static str,
        origin: &Origin,
    ) -> Result<(), AdminError> {
        self.begin(&[Right::Admin], caller, what, origin).await
    }

    /// The same for what takes one of these rights.
    pub(super) async fn begin(
        &self,
        rights: &[Right],
        caller: &Caller,
        what: &'static str,
        origin: &Origin,
    ) -> Result<(), AdminError> {
        self.may_one_of(rights, caller, what, origin)?;
        let happening = Happening::Attempted { what, caller: describe(caller) };
        let recorded = self.journal.record_surely(self.now(), origin, happening).await;
        recorded.map_err(|Unrecorded| AdminError::Unrecorded)
    }

    fn administered(
        &self,
        action: &'static str,
        caller: &Caller,
        subject: Option<&SubjectId>,
        client: Option<&ClientId>,
        entry: Option<&Entry>,
        origin: &Origin,
    ) {
        let now = self.now();
        let happening = Happening::Administered {
            action,
            caller: describe(caller),
            subject: subject.cloned(),
            client: client.cloned(),
            key: None,
            reason: None,
        };
        self.journal.record(now, origin, happening);
        if let Some(entry) = entry {
            self.journal.record(now, origin, Happening::Revoked { entry: entry.clone() });
        }
    }
}
