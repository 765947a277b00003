//! The first credentials: made once, written to files that only the owner reads, before the store
//! knows of them, so that a crash in between leaves nothing that nobody can open.

mod first_admin;
pub mod given;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::BuildError;
use crate::cli::files::{ClientCredentials, DEV_PASSWORD, DEV_USER, LOGIN_CLIENT, write_private};
use crate::crypto::OsEntropy;
use crate::domain::caller::{Caller, Grant, Right};
use crate::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use crate::domain::clock::Timestamp;
use crate::domain::entropy::Entropy;
use crate::domain::scope::Names;
use crate::service::Service;
use crate::service::admin::AdminError;
use crate::service::admin::users::NewUser;
use crate::service::journal::Origin;

/// The file with the key-encryption key, made by `--dev` alone.
pub const ENCRYPTION_KEY: &str = "encryption.key";

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> BuildError {
    BuildError::Bootstrap(format!("{what}: {error}"))
}

/// The service did not make it.
fn refused(what: &str, error: AdminError) -> BuildError {
    match error {
        AdminError::Unrecorded => failed(
            what,
            "the audit log takes nothing, and nobody may get rights that are not recorded; look at where audit.output leads, and start again",
        ),
        AdminError::Store(error) => failed(what, error),
        other => failed(what, format!("{other:?}")),
    }
}

/// The key-encryption key of a `--dev` data directory, made if there is none.
///
/// # Errors
/// When the file cannot be read or written.
pub fn dev_encryption_key(data: &Path) -> Result<PathBuf, BuildError> {
    use base64::Engine as _;
    let path = data.join(ENCRYPTION_KEY);
    if !path.exists() {
        std::fs::create_dir_all(data).map_err(|error| failed(data.display(), error))?;
        let entropy: &dyn Entropy = &OsEntropy;
        let key: [u8; 32] = entropy.bytes();
        let text = base64::engine::general_purpose::STANDARD.encode(key);
        write_private(&path, &format!("{text}\n"))
            .map_err(|error| failed(path.display(), error))?;
    }
    Ok(path)
}

/// What is known of the first admin client.
#[derive(Debug, Default)]
pub struct Made {
    /// The file with its credentials, if this start made it.
    pub admin_client: Option<PathBuf>,
    /// What it is called, which says where it was made, if its credentials are not in this directory.
    pub elsewhere: Option<Box<str>>,
    /// When it was made; none when there is none any more.
    pub made: Option<Timestamp>,
}

/// Makes the admin client if there is no client at all, and with `dev` the client and the user to
/// try things with. Their tokens live as long as the configuration says. Of any number of servers that
/// start on one store at once, one makes it; its name says on which `host`.
///
/// # Errors
/// When the store or a file cannot be written.
pub async fn first_credentials(
    service: &Arc<Service>,
    data: &Path,
    dev: bool,
    lifetimes: Lifetimes,
    host: Option<&str>,
) -> Result<Made, BuildError> {
    let admin = "admin".parse().map_err(|error| failed("client id", error))?;
    let mut clients = service.store().clients(None, 2).await?;
    clients.retain(|(client, _)| client.id.as_str() != "login");
    // Asked for afterwards: if another server made it a moment ago, it is there.
    if let Some(client) = service.store().find_client(&admin).await? {
        return first_admin::find(&client, data);
    }
    if !clients.is_empty() {
        return Ok(Made::default());
    }
    let audience = service.settings().own_audience.clone();
    // The admin client comes last: until it is there, the next start does all of this again.
    if dev {
        let audiences = ["orders".to_owned(), audience.to_string()];
        let client = registration("login", "Trying avouch", true, &audiences, &[])?;
        let client = Client { lifetimes, ..client };
        make_client(service, client, &data.join(LOGIN_CLIENT)).await?;
        make_user(service, &data.join(DEV_PASSWORD)).await?;
    }
    let name = match host {
        Some(host) => format!("First admin client, made on {host}"),
        None => "First admin client".to_owned(),
    };
    let client = registration("admin", &name, false, &[audience.to_string()], &Right::ALL)?;
    first_admin::make(service, Client { lifetimes, ..client }, data).await
}

fn registration(
    id: &str,
    display_name: &str,
    first_party: bool,
    audiences: &[String],
    rights: &[Right],
) -> Result<Client, BuildError> {
    let scopes: &[&str] = if first_party { &["orders:read", "orders:write"] } else { &[] };
    Ok(Client {
        id: id.parse().map_err(|error| failed("client id", error))?,
        display_name: display_name.into(),
        kind: ClientType::Confidential,
        secret_digest: None,
        first_party,
        scope: Names::new(scopes).map_err(|error| failed("scopes", error))?,
        audience: Names::new(audiences).map_err(|error| failed("audiences", error))?,
        grants: rights.iter().copied().map(Grant::unlimited).collect(),
        certificate_names: Vec::new(),
        lifetimes: Lifetimes::default(),
        reuse_detection: ReuseDetection::Enforce,
        disabled: false,
        created_at: Timestamp::default(),
    })
}

async fn make_client(
    service: &Arc<Service>,
    client: Client,
    path: &Path,
) -> Result<(), BuildError> {
    let id = client.id.clone();
    let origin = Origin::default();
    // Left over from a start that did not come to its end: its secret may be lost.
    if service.store().find_client(&id).await?.is_some() {
        service
            .delete_client(&Caller::system(), id.clone(), &origin)
            .await
            .map_err(|error| refused("client", error))?;
    }
    let secret = service.new_client_secret();
    let credentials =
        ClientCredentials { client_id: id.to_string(), client_secret: Some(secret.clone()) };
    credentials.write(path).map_err(|error| failed(path.display(), error))?;
    service
        .create_client_with(&Caller::system(), client, Some(&secret), &origin)
        .await
        .map_err(|error| refused("client", error))?;
    Ok(())
}

async fn make_user(service: &Arc<Service>, path: &Path) -> Result<(), BuildError> {
    let origin = Origin::default();
    let known = service.store().find_user_by_name(DEV_USER).await?.map(|user| user.subject);
    if let Some(subject) = known {
        service
            .delete_user(&Caller::system(), subject, &origin)
            .await
            .map_err(|error| refused("user", error))?;
    }
    let password = service.new_random_text();
    write_private(path, &format!("{}\n", password.expose()))
        .map_err(|error| failed(path.display(), error))?;
    let user = NewUser {
        username: DEV_USER.to_owned(),
        display_name: "Ada Lovelace".into(),
        password: Some(password),
        scope: Names::default(),
    };
    service
        .create_user(&Caller::system(), user, &origin)
        .await
        .map_err(|error| refused("user", error))?;
    Ok(())
}
