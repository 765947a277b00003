//! Keeping users.

use super::AdminError;
use crate::domain::caller::{Caller, Identity};
use crate::domain::event::{Cause, Entry, Initiator, Reason};
use crate::domain::ids::{Epoch, SubjectId};
use crate::domain::scope::Names;
use crate::domain::secret::SecretText;
use crate::domain::session::Device;
use crate::domain::user::User;
use crate::domain::username::Username;
use crate::precis;
use crate::service::Service;
use crate::service::authenticate::{AuthenticateError, Source, account_key, hash_error};
use crate::service::clients::ClientProof;
use crate::service::journal::Origin;
use crate::service::traced::commit;
use crate::store::{Changed, UserChange};

/// A user to create.
#[derive(Debug)]
pub struct NewUser {
    /// The name as it was typed.
    pub username: String,
    /// The name to show.
    pub display_name: Box<str>,
    /// The password as it was typed; none creates a user who cannot log in by password.
    pub password: Option<SecretText>,
    /// The scopes that the user may be granted.
    pub scope: Names,
}

/// What to change of a user.
#[derive(Debug, Default)]
pub struct UserUpdate {
    /// The name as it was typed.
    pub username: Option<String>,
    /// The name to show.
    pub display_name: Option<Box<str>>,
    /// The scopes.
    pub scope: Option<Names>,
}

/// The present and the new password of whoever calls.
#[derive(Debug)]
pub struct PasswordChange<'a> {
    /// The client, which must be first-party.
    pub client: ClientProof<'a>,
    /// The name as it was typed.
    pub username: String,
    /// The present password.
    pub password: SecretText,
    /// The new one.
    pub new_password: SecretText,
    /// The end user's device.
    pub device: Device,
}

impl Service {
    fn check_password(&self, password: &SecretText, username: &Username) -> Result<(), AdminError> {
        self.passwords.check(password, Some(username)).map_err(AdminError::Password)
    }

    async fn hash_password(
        &self,
        password: SecretText,
        source: u64,
    ) -> Result<SecretText, AdminError> {
        let hash = self.hasher.hash(source, password).await.map_err(hash_error)?;
        Ok(hash.to_phc())
    }

    /// Creates a user.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_user(
        &self,
        caller: &Caller,
        new: NewUser,
        origin: &Origin,
    ) -> Result<User, AdminError> {
        self.begin_change(caller, "create_user", origin).await?;
        let username = precis::username(&new.username).map_err(AdminError::Username)?;
        let password_hash = match new.password {
            None => None,
            Some(password) => {
                self.check_password(&password, &username)?;
                Some(self.hash_password(password, 0).await?)
            }
        };
        let now = self.now();
        let subject = format!("usr_{}", self.entropy.token_id())
            .parse()
            .map_err(|_| AdminError::Internal("a new subject is no subject"))?;
        let user = User {
            subject,
            username: username.as_str().into(),
            display_name: new.display_name,
            password_changed_at: password_hash.is_some().then_some(now),
            password_hash,
            scope: new.scope,
            disabled: false,
            created_at: now,
        };
        if !commit("create_user", self.store.create_user(user.clone(), now)).await? {
            return Err(AdminError::Taken);
        }
        self.administered("user_created", caller, Some(&user.subject), None, None, origin);
        Ok(user)
    }

    /// A user by subject.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn user(
        &self,
        caller: &Caller,
        subject: &SubjectId,
        origin: &Origin,
    ) -> Result<User, AdminError> {
        self.may_administer(caller, "get_user", origin)?;
        self.store.find_user(subject).await?.ok_or(AdminError::NotFound)
    }

    /// A user by name.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn user_by_name(
        &self,
        caller: &Caller,
        username: &str,
        origin: &Origin,
    ) -> Result<User, AdminError> {
        self.may_administer(caller, "get_user", origin)?;
        let username = precis::username(username).map_err(AdminError::Username)?;
        self.store.find_user_by_name(username.as_str()).await?.ok_or(AdminError::NotFound)
    }

    /// Users in the order of their subjects, each with the epoch of the subject.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn list_users(
        &self,
        caller: &Caller,
        after: Option<&SubjectId>,
        limit: usize,
        origin: &Origin,
    ) -> Result<Vec<(User, Epoch)>, AdminError> {
        self.may_administer(caller, "list_users", origin)?;
        Ok(self.store.users(after, limit).await?)
    }

    /// Changes a user. A change of the scopes revokes what was issued.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn update_user(
        &self,
        caller: &Caller,
        subject: SubjectId,
        update: UserUpdate,
        origin: &Origin,
    ) -> Result<(User, Option<Entry>), AdminError> {
        self.begin_change(caller, "update_user", origin).await?;
        let username = match update.username {
            None => None,
            Some(name) => {
                Some(precis::username(&name).map_err(AdminError::Username)?.as_str().into())
            }
        };
        let change = UserChange {
            username,
            display_name: update.display_name,
            scope: update.scope,
            ..UserChange::default()
        };
        let cause = Cause { reason: Reason::ClaimsChanged, initiator: Initiator::Admin };
        self.change_user(caller, subject, change, Some(cause), "user_updated", origin).await
    }

    /// Sets a password, revokes what was issued and lifts the throttle on the account.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_password(
        &self,
        caller: &Caller,
        subject: SubjectId,
        password: SecretText,
        origin: &Origin,
    ) -> Result<(User, Option<Entry>), AdminError> {
        self.begin_change(caller, "set_password", origin).await?;
        let user = self.store.find_user(&subject).await?.ok_or(AdminError::NotFound)?;
        let hash = self.new_password(&user, password, 0).await?;
        let change = UserChange { password_hash: Some(hash), ..UserChange::default() };
        let cause = Cause { reason: Reason::CredentialChanged, initiator: Initiator::Admin };
        let changed =
            self.change_user(caller, subject, change, Some(cause), "password_set", origin).await?;
        commit(
            "clear_attempts",
            self.store.clear_attempts(account_key(&user.username), None, self.now()),
        )
        .await?;
        Ok(changed)
    }

    async fn new_password(
        &self,
        user: &User,
        password: SecretText,
        source: u64,
    ) -> Result<SecretText, AdminError> {
        let username = Username::from_canonical(&user.username)
            .map_err(|_| AdminError::Internal("a stored user name is no user name"))?;
        self.check_password(&password, &username)?;
        self.hash_password(password, source).await
    }

    /// Changes the password of whoever knows the present one, and revokes what was issued.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn change_password(
        &self,
        change: PasswordChange<'_>,
        origin: &Origin,
    ) -> Result<Option<Entry>, AdminError> {
        let now = self.now();
        let client = self.prove_client(&change.client, origin, now).await?;
        if !client.first_party {
            return Err(AdminError::Credential(AuthenticateError::NotFirstParty));
        }
        let source = Source::of(&change.device, origin);
        let present = change.password;
        let proved =
            self.prove_user(&client, &change.username, present, &source, origin, now).await?;
        let (user, epochs, account) = proved;
        // It was no failed guess, whatever the rules say of the new password.
        commit("clear_attempts", self.store.clear_attempts(account, Some(source.key), now)).await?;
        let hash =
            self.new_password(&user, change.new_password, u64::from_be_bytes(source.key)).await?;
        let caller = Caller {
            identity: Identity::Subject {
                subject: user.subject.clone(),
                client: client.id.clone(),
                session: None,
            },
            grants: Vec::new(),
        };
        let wanted = UserChange {
            password_hash: Some(hash),
            if_epoch: Some(epochs.subject),
            ..UserChange::default()
        };
        let cause = Cause { reason: Reason::CredentialChanged, initiator: Initiator::User };
        let (_, entry) = self
            .change_user(&caller, user.subject, wanted, Some(cause), "password_changed", origin)
            .await?;
        Ok(entry)
    }

    /// Disables a user, which revokes what was issued, or enables one again.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_user_disabled(
        &self,
        caller: &Caller,
        subject: SubjectId,
        disabled: bool,
        origin: &Origin,
    ) -> Result<(User, Option<Entry>), AdminError> {
        let action = if disabled { "user_disabled" } else { "user_enabled" };
        self.begin_change(caller, action, origin).await?;
        let change = UserChange { disabled: Some(disabled), ..UserChange::default() };
        let cause = Cause { reason: Reason::AccountDisabled, initiator: Initiator::Admin };
        let cause = disabled.then_some(cause);
        self.change_user(caller, subject, change, cause, action, origin).await
    }

    async fn change_user(
        &self,
        caller: &Caller,
        subject: SubjectId,
        change: UserChange,
        cause: Option<Cause>,
        action: &'static str,
        origin: &Origin,
    ) -> Result<(User, Option<Entry>), AdminError> {
        let now = self.now();
        match commit("change_user", self.store.change_user(subject, change, cause, now)).await? {
            Changed::Unknown => Err(AdminError::NotFound),
            Changed::NameTaken => Err(AdminError::Taken),
            Changed::Stale => Err(AdminError::Credential(AuthenticateError::Refused)),
            Changed::Done(user, entry) => {
                let subject = Some(&user.subject);
                self.administered(action, caller, subject, None, entry.as_ref(), origin);
                Ok((user, entry))
            }
        }
    }

    /// Deletes a user and revokes what was issued. An unknown user is no error.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn delete_user(
        &self,
        caller: &Caller,
        subject: SubjectId,
        origin: &Origin,
    ) -> Result<Option<Entry>, AdminError> {
        self.begin_change(caller, "delete_user", origin).await?;
        let cause = Cause { reason: Reason::AccountDeleted, initiator: Initiator::Admin };
        let revoked =
            commit("delete_user", self.store.delete_user(subject.clone(), cause, self.now()))
                .await?;
        let entry = revoked.entry().cloned();
        self.administered("user_deleted", caller, Some(&subject), None, entry.as_ref(), origin);
        Ok(entry)
    }
}
