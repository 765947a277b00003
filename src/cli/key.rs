//! `key`: signing keys.

use super::args::{Global, reason};
use super::connection::Connection;
use super::failure::Failure;
use super::output::Output;
use super::view;
use crate::pb::v1::{
    CreateKeyRequest, ListKeysRequest, RevocationReason, RevokeKeyRequest, RotateKeyRequest,
};

/// Keep signing keys. A key is announced, signs, rests, and goes.
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  avouch key list --credentials avouch-data/admin-client.json\n  avouch key revoke KID --credentials avouch-data/admin-client.json"
)]
pub(super) enum Key {
    /// List the signing keys with their states, newest first.
    #[command(
        after_help = "Example:\n  avouch key list --credentials avouch-data/admin-client.json"
    )]
    List,
    /// Announce the next signing key, or show it: the server keeps one announced.
    #[command(
        after_help = "Example:\n  avouch key create --algorithm EdDSA \\\n      --credentials avouch-data/admin-client.json"
    )]
    Create {
        /// ES256, EdDSA or RS256. Without it: as the server is configured.
        #[arg(long)]
        algorithm: Option<String>,
    },
    /// Make the announced key sign now, and announce another.
    #[command(
        after_help = "Example:\n  avouch key rotate --credentials avouch-data/admin-client.json"
    )]
    Rotate,
    /// Take a key back at once, with everything that it signed. The announced one takes its place.
    #[command(
        after_help = "Example:\n  avouch key revoke KID --credentials avouch-data/admin-client.json"
    )]
    Revoke {
        /// The key's id.
        // Ids are base64url: one in 64 begins with a hyphen.
        #[arg(allow_hyphen_values = true)]
        kid: String,
        /// Why; key_compromised unless it is said.
        #[arg(long, value_parser = reason)]
        reason: Option<RevocationReason>,
    },
}

impl Key {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let connection = Connection::authenticated(global).await?;
        let mut api = connection.admin();
        match self {
            Self::List => {
                let request = connection.request(ListKeysRequest {});
                let answer = api.list_keys(request).await?.into_inner();
                let rows: Vec<_> = answer.keys.iter().map(view::key).collect();
                let columns =
                    ["kid", "alg", "state", "create_time", "activate_time", "remove_time"];
                out.rows(&columns, &rows)
            }
            Self::Create { algorithm } => {
                let request = CreateKeyRequest { algorithm: algorithm.unwrap_or_default() };
                let answer = api.create_key(connection.request(request)).await?.into_inner();
                out.record(&view::key(&answer.key.unwrap_or_default()))
            }
            Self::Rotate => {
                let request = connection.request(RotateKeyRequest {});
                let answer = api.rotate_key(request).await?.into_inner();
                out.record(&view::key(&answer.key.unwrap_or_default()))
            }
            Self::Revoke { kid, reason } => {
                let reason = reason.unwrap_or_default().into();
                let request = connection.request(RevokeKeyRequest { kid, reason });
                let answer = api.revoke_key(request).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
        }
    }
}
