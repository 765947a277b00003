//! The first admin client by credentials that somebody gives in a file, the same one for every replica.

use std::path::Path;
use std::sync::Arc;

use super::{Made, refused, registration};
use crate::app::BuildError;
use crate::cli::files::ClientCredentials;
use crate::domain::caller::{Caller, Right};
use crate::domain::client::{Client, Lifetimes};
use crate::service::Service;
use crate::service::admin::AdminError;
use crate::service::journal::Origin;

/// The fewest characters of a secret that is given: 32 bytes in base64url. It is kept as a digest that
/// guesses can be tried on, without a password's slow hash.
const MIN_SECRET_LEN: usize = 43;

/// Registers the admin client whose credentials are in `file`, if there is no client at all. Any number of
/// replicas may do so at once.
///
/// # Errors
/// When the file holds no credentials, when its secret could be guessed, or when the store cannot be
/// written.
pub async fn register(
    service: &Arc<Service>,
    file: &Path,
    lifetimes: Lifetimes,
) -> Result<Made, BuildError> {
    if !service.store().clients(None, 1).await?.is_empty() {
        return Ok(Made::default());
    }
    let given =
        ClientCredentials::read(file).map_err(|error| BuildError::Bootstrap(error.to_string()))?;
    let secret = given.client_secret.filter(|secret| {
        let text = secret.expose();
        text.len() >= MIN_SECRET_LEN && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let Some(secret) = secret else {
        let file = file.display();
        return Err(BuildError::Bootstrap(format!(
            "{file}: client_secret must be {MIN_SECRET_LEN} visible characters or more: avs1_ and 32 random bytes in base64url"
        )));
    };
    let audiences = [service.settings().own_audience.to_string()];
    let client =
        registration(&given.client_id, "First admin client", false, &audiences, &Right::ALL)?;
    let client = Client { lifetimes, ..client };
    let origin = Origin::default();
    match service.create_client_with(&Caller::system(), client, Some(&secret), &origin).await {
        Ok(_) => Ok(Made { admin_client: Some(file.to_owned()), ..Made::default() }),
        // By another replica, a moment ago, with the same file.
        Err(AdminError::Taken) => Ok(Made::default()),
        Err(error) => Err(refused("client", error)),
    }
}
