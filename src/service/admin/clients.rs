//! Keeping clients.

use super::AdminError;
use crate::crypto::sha256;
use crate::domain::caller::Caller;
use crate::domain::client::{Client, ClientType};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Cause, Entry, Initiator, Reason};
use crate::domain::ids::{ClientId, Epoch};
use crate::domain::secret::{SecretBytes, SecretText};
use crate::service::Service;
use crate::service::journal::Origin;
use crate::service::traced::commit;
use crate::store::{Changed, ClientChange};

impl Service {
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
        if !commit("create_client", self.store.create_client(client.clone(), now)).await? {
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
    pub async fn client(
        &self,
        caller: &Caller,
        id: &ClientId,
        origin: &Origin,
    ) -> Result<Client, AdminError> {
        self.may_administer(caller, "get_client", origin)?;
        self.store.find_client(id).await?.ok_or(AdminError::NotFound)
    }

    /// Clients in the order of their ids, each with its epoch.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub async fn list_clients(
        &self,
        caller: &Caller,
        after: Option<&ClientId>,
        limit: usize,
        origin: &Origin,
    ) -> Result<Vec<(Client, Epoch)>, AdminError> {
        self.may_administer(caller, "list_clients", origin)?;
        Ok(self.store.clients(after, limit).await?)
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
        let known = self.store.find_client(&id).await?.ok_or(AdminError::NotFound)?;
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
        let changed =
            commit("change_client", self.store.change_client(id.clone(), change, cause, now)).await;
        // Whatever came of it: an error may leave the outcome open.
        self.clients.forget(&id);
        match changed? {
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
        let revoked =
            commit("delete_client", self.store.delete_client(id.clone(), cause, self.now())).await;
        self.clients.forget(&id);
        let revoked = revoked?;
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
