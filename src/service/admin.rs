//! Keeping users and clients. Every change that ends tokens revokes them in the same commit.

use std::time::Duration;

use super::authenticate::{AuthenticateError, Source, account_key, hash_error};
use super::clients::{ClientError, ClientProof};
use super::journal::{Happening, Origin, Unrecorded};
use super::{Service, describe};
use crate::crypto::sha256;
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::client::{Client, ClientType, LifetimeError};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Initiator, Reason};
use crate::domain::ids::{ClientId, SubjectId};
use crate::domain::scope::Names;
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::session::Device;
use crate::domain::user::User;
use crate::domain::username::{NameError, Username};
use crate::password::PolicyError;
use crate::precis;
use crate::store::{Changed, ClientChange, StoreError, UserChange};

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
        if caller.identity == Identity::Anonymous {
            return Err(AdminError::Anonymous);
        }
        if caller.may(Right::Admin, Resource::default()) {
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
        self.may_administer(caller, what, origin)?;
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
        if !self.store.create_user(user.clone(), now).await? {
            return Err(AdminError::Taken);
        }
        self.administered("user_created", caller, Some(&user.subject), None, None, origin);
        Ok(user)
    }

    /// A user by subject.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn user(
        &self,
        caller: &Caller,
        subject: &SubjectId,
        origin: &Origin,
    ) -> Result<User, AdminError> {
        self.may_administer(caller, "get_user", origin)?;
        self.store.find_user(subject)?.ok_or(AdminError::NotFound)
    }

    /// A user by name.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn user_by_name(
        &self,
        caller: &Caller,
        username: &str,
        origin: &Origin,
    ) -> Result<User, AdminError> {
        self.may_administer(caller, "get_user", origin)?;
        let username = precis::username(username).map_err(AdminError::Username)?;
        self.store.find_user_by_name(username.as_str())?.ok_or(AdminError::NotFound)
    }

    /// Users in the order of their subjects.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn list_users(
        &self,
        caller: &Caller,
        after: Option<&SubjectId>,
        limit: usize,
        origin: &Origin,
    ) -> Result<Vec<User>, AdminError> {
        self.may_administer(caller, "list_users", origin)?;
        Ok(self.store.users(after, limit)?)
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
        let user = self.store.find_user(&subject)?.ok_or(AdminError::NotFound)?;
        let hash = self.new_password(&user, password, 0).await?;
        let change = UserChange { password_hash: Some(hash), ..UserChange::default() };
        let cause = Cause { reason: Reason::CredentialChanged, initiator: Initiator::Admin };
        let changed =
            self.change_user(caller, subject, change, Some(cause), "password_set", origin).await?;
        self.store.clear_attempts(account_key(&user.username), None, self.now()).await?;
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
        let client = self.clients.authenticate(&change.client).map_err(|error| match error {
            ClientError::Store(error) => AdminError::Store(error),
            ClientError::Refused(failure) => {
                let happening = Happening::LoginFailed {
                    subject: None,
                    client: change.client.id.clone(),
                    source: None,
                    failure,
                };
                self.journal.record(now, origin, happening);
                AdminError::Credential(AuthenticateError::Refused)
            }
        })?;
        if !client.first_party {
            return Err(AdminError::Credential(AuthenticateError::NotFirstParty));
        }
        let source = Source::of(&change.device, origin);
        let present = change.password;
        let proved =
            self.prove_user(&client, &change.username, present, &source, origin, now).await?;
        let (user, epochs, account) = proved;
        // It was no failed guess, whatever the rules say of the new password.
        self.store.clear_attempts(account, Some(source.key), now).await?;
        let hash =
            self.new_password(&user, change.new_password, u64::from_be_bytes(source.key)).await?;
        let caller = Caller {
            identity: Identity::Subject {
                subject: user.subject.clone(),
                client: client.id,
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
        match self.store.change_user(subject, change, cause, now).await? {
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
        let revoked = self.store.delete_user(subject.clone(), cause, self.now()).await?;
        let entry = revoked.entry().cloned();
        self.administered("user_deleted", caller, Some(&subject), None, entry.as_ref(), origin);
        Ok(entry)
    }

    /// Registers a client. The secret is in this answer and nowhere else.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_client(
        &self,
        caller: &Caller,
        client: Client,
        origin: &Origin,
    ) -> Result<(Client, Option<SecretText>), AdminError> {
        let by_certificate_only = !client.certificate_names.is_empty();
        let secret = (client.kind == ClientType::Confidential && !by_certificate_only)
            .then(|| self.new_client_secret());
        let client = self.create_client_with(caller, client, secret.as_ref(), origin).await?;
        Ok((client, secret))
    }

    /// Registers a client whose secret was made, and put where it is kept, before.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn create_client_with(
        &self,
        caller: &Caller,
        mut client: Client,
        secret: Option<&SecretText>,
        origin: &Origin,
    ) -> Result<Client, AdminError> {
        self.begin_change(caller, "create_client", origin).await?;
        check_registration(&client)?;
        let now = self.now();
        client.secret_digest = secret.map(digest);
        client.disabled = false;
        client.created_at = now;
        if !self.store.create_client(client.clone(), now).await? {
            return Err(AdminError::Taken);
        }
        self.administered("client_created", caller, None, Some(&client.id), None, origin);
        Ok(client)
    }

    /// A made-up id for a client that was not given one.
    pub fn new_client_id(&self) -> Result<ClientId, AdminError> {
        format!("cli_{}", self.entropy.token_id())
            .parse()
            .map_err(|_| AdminError::Internal("a new client id is no client id"))
    }

    /// 256 random bits behind a prefix that secret scanners can look for.
    pub fn new_client_secret(&self) -> SecretText {
        SecretText::new(format!("avs1_{}", self.new_random_text().expose()))
    }

    /// 256 random bits as text.
    pub fn new_random_text(&self) -> SecretText {
        use base64::Engine as _;
        let bytes: [u8; 32] = self.entropy.bytes();
        SecretText::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A client.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn client(
        &self,
        caller: &Caller,
        id: &ClientId,
        origin: &Origin,
    ) -> Result<Client, AdminError> {
        self.may_administer(caller, "get_client", origin)?;
        self.store.find_client(id)?.ok_or(AdminError::NotFound)
    }

    /// Clients in the order of their ids.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn list_clients(
        &self,
        caller: &Caller,
        after: Option<&ClientId>,
        limit: usize,
        origin: &Origin,
    ) -> Result<Vec<Client>, AdminError> {
        self.may_administer(caller, "list_clients", origin)?;
        Ok(self.store.clients(after, limit)?)
    }

    /// Replaces a registration.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn update_client(
        &self,
        caller: &Caller,
        client: Client,
        origin: &Origin,
    ) -> Result<Client, AdminError> {
        self.begin_change(caller, "update_client", origin).await?;
        check_registration(&client)?;
        let (id, change) = (client.id.clone(), ClientChange::Registration(Box::new(client)));
        let changed = self.change_client(caller, id, change, None, "client_updated", origin).await;
        Ok(changed?.0)
    }

    /// Gives a client a new secret, and on request revokes what was issued.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn rotate_client_secret(
        &self,
        caller: &Caller,
        id: ClientId,
        revoke_issued: bool,
        origin: &Origin,
    ) -> Result<(SecretText, Option<Entry>), AdminError> {
        self.begin_change(caller, "rotate_client_secret", origin).await?;
        let known = self.store.find_client(&id)?.ok_or(AdminError::NotFound)?;
        if known.kind == ClientType::Public {
            return Err(AdminError::PublicClient);
        }
        let secret = self.new_client_secret();
        let cause = Cause { reason: Reason::CredentialCompromised, initiator: Initiator::Admin };
        let cause = revoke_issued.then_some(cause);
        let change = ClientChange::Secret(digest(&secret));
        let (_, entry) =
            self.change_client(caller, id, change, cause, "client_secret_rotated", origin).await?;
        Ok((secret, entry))
    }

    /// Disables a client, which revokes what was issued to it, or enables one again.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn set_client_disabled(
        &self,
        caller: &Caller,
        id: ClientId,
        disabled: bool,
        origin: &Origin,
    ) -> Result<(Client, Option<Entry>), AdminError> {
        let action = if disabled { "client_disabled" } else { "client_enabled" };
        self.begin_change(caller, action, origin).await?;
        let cause = Cause { reason: Reason::ClientDisabled, initiator: Initiator::Admin };
        let cause = disabled.then_some(cause);
        let change = ClientChange::Disabled(disabled);
        self.change_client(caller, id, change, cause, action, origin).await
    }

    async fn change_client(
        &self,
        caller: &Caller,
        id: ClientId,
        change: ClientChange,
        cause: Option<Cause>,
        action: &'static str,
        origin: &Origin,
    ) -> Result<(Client, Option<Entry>), AdminError> {
        let now: Timestamp = self.now();
        let changed = self.store.change_client(id.clone(), change, cause, now).await?;
        self.clients.forget(&id);
        match changed {
            Changed::Unknown => Err(AdminError::NotFound),
            Changed::NameTaken => Err(AdminError::Taken),
            Changed::Stale => Err(AdminError::Internal("a client has no condition")),
            Changed::Done(client, entry) => {
                let id = Some(&client.id);
                self.administered(action, caller, None, id, entry.as_ref(), origin);
                Ok((client, entry))
            }
        }
    }

    /// Deletes a client and revokes what was issued to it. An unknown client is no error.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn delete_client(
        &self,
        caller: &Caller,
        id: ClientId,
        origin: &Origin,
    ) -> Result<Option<Entry>, AdminError> {
        self.begin_change(caller, "delete_client", origin).await?;
        let cause = Cause { reason: Reason::ClientDisabled, initiator: Initiator::Admin };
        let revoked = self.store.delete_client(id.clone(), cause, self.now()).await?;
        self.clients.forget(&id);
        let entry = revoked.entry().cloned();
        self.administered("client_deleted", caller, None, Some(&id), entry.as_ref(), origin);
        Ok(entry)
    }
}

/// What the store keeps of a client's secret. The secret has 256 random bits, so a fast digest is
/// enough (ASVS 6.5.2).
pub fn digest(secret: &SecretText) -> SecretBytes<32> {
    SecretBytes::new(sha256(secret.expose().as_bytes()))
}

fn check_registration(client: &Client) -> Result<(), AdminError> {
    client.lifetimes.check().map_err(AdminError::Lifetime)?;
    if client.audience.is_empty() {
        return Err(AdminError::NoAudience);
    }
    if client.kind == ClientType::Public && !client.grants.is_empty() {
        return Err(AdminError::PublicClient);
    }
    Ok(())
}
