//! The first admin client: made once, by whichever of any number of servers is first. Its secret is in a
//! file before the store knows of it, so that a crash in between leaves nothing that nobody can open; and
//! the file has its name only afterwards, so that nobody takes the secret of one that came too late for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Made, failed, refused};
use crate::app::BuildError;
use crate::cli::files::{ADMIN_CLIENT, ClientCredentials};
use crate::domain::caller::Caller;
use crate::domain::client::Client;
use crate::service::Service;
use crate::service::admin::AdminError;
use crate::service::admin::clients::digest;
use crate::service::journal::Origin;

/// What the name of a draft ends with.
const DRAFT: &str = ".draft";

/// Makes it.
///
/// # Errors
/// When the store or a file cannot be written.
pub(super) async fn make(
    service: &Arc<Service>,
    client: Client,
    data: &Path,
) -> Result<Made, BuildError> {
    let id = client.id.clone();
    let secret = service.new_client_secret();
    let random = service.new_random_text().into_exposed();
    let draft = data.join(format!("{ADMIN_CLIENT}.{random}{DRAFT}"));
    let credentials =
        ClientCredentials { client_id: id.to_string(), client_secret: Some(secret.clone()) };
    credentials.write(&draft).map_err(|error| failed(draft.display(), error))?;
    let (caller, origin) = (Caller::system(), Origin::default());
    match service.create_client_with(&caller, client, Some(&secret), &origin).await {
        Ok(client) => {
            let path = data.join(ADMIN_CLIENT);
            claim(&draft, &path).map_err(|error| failed(path.display(), error))?;
            Ok(Made { admin_client: Some(path), elsewhere: None, made: Some(client.created_at) })
        }
        // Another server was first.
        Err(AdminError::Taken) => {
            remove(&draft).map_err(|error| failed(draft.display(), error))?;
            match service.store().find_client(&id).await? {
                Some(client) => find(&client, data),
                None => Ok(Made::default()),
            }
        }
        Err(error) => Err(refused("client", error)),
    }
}

/// Where its credentials are, now that it is made. What a start of this directory left that did not come
/// to its end is finished.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn find(client: &Client, data: &Path) -> Result<Made, BuildError> {
    let path = data.join(ADMIN_CLIENT);
    for draft in drafts(data).map_err(|error| failed(data.display(), error))? {
        let secret = ClientCredentials::read(&draft).ok().and_then(|it| it.client_secret);
        let done = if secret.is_some_and(|it| client.secret_digest == Some(digest(&it))) {
            claim(&draft, &path)
        } else {
            remove(&draft)
        };
        done.map_err(|error| failed(draft.display(), error))?;
    }
    let elsewhere = (!path.exists()).then(|| client.display_name.clone());
    Ok(Made { admin_client: None, elsewhere, made: Some(client.created_at) })
}

fn drafts(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut drafts = Vec::new();
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().and_then(|name| name.strip_prefix(ADMIN_CLIENT));
        if ours.is_some_and(|rest| rest.ends_with(DRAFT)) {
            drafts.push(entry.path());
        }
    }
    Ok(drafts)
}

/// Gives a draft its name, unless another server did, in the same directory.
fn claim(draft: &Path, path: &Path) -> io::Result<()> {
    match std::fs::rename(draft, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => Ok(()),
        renamed => renamed,
    }
}

fn remove(draft: &Path) -> io::Result<()> {
    match std::fs::remove_file(draft) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
