//! `client`: applications and services.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{Global, duration, proto_duration};
use super::connection::Connection;
use super::failure::Failure;
use super::files::ClientCredentials;
use super::output::{self, Output};
use super::view;
use crate::domain::secret::SecretText;
use crate::pb::v1::{
    Client as Registration, ClientType, CreateClientRequest, DeleteClientRequest,
    DisableClientRequest, EnableClientRequest, GetClientRequest, Grant, ListClientsRequest,
    ReuseDetection, Right, RotateClientSecretRequest, UpdateClientRequest,
};

/// Keep clients.
#[derive(Debug, clap::Subcommand)]
#[command(
    after_help = "Examples:\n  avouch client list --credentials avouch-data/admin-client.json\n  avouch client create shop --audience orders --save shop.json \\\n      --credentials avouch-data/admin-client.json"
)]
pub(super) enum Client {
    /// Register a client. A secret is shown once, or kept in a file.
    #[command(
        after_help = "Examples:\n  avouch client create shop --audience orders --scope read --save shop.json \\\n      --credentials avouch-data/admin-client.json\n  avouch client create sidecar --audience avouch \\\n      --grant watch:audience=orders --grant introspect --save sidecar.json \\\n      --credentials avouch-data/admin-client.json\n  avouch client create web --first-party --audience orders \\\n      --access-token-lifetime 2m --save web.json \\\n      --credentials avouch-data/admin-client.json"
    )]
    Create {
        /// Its id. Without it avouch makes one up.
        id: Option<String>,
        /// It cannot keep a secret: an application on somebody's device.
        #[arg(long)]
        public: bool,
        #[command(flatten)]
        settings: Settings,
        /// Keep the id and the secret in a file, mode 0600, and do not print the secret.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Show one client.
    #[command(
        after_help = "Example:\n  avouch client get shop --credentials avouch-data/admin-client.json"
    )]
    Get {
        /// Its id.
        id: String,
    },
    /// List all clients.
    #[command(
        after_help = "Example:\n  avouch client list --credentials avouch-data/admin-client.json --json"
    )]
    List,
    /// Change a client's registration; what is not named stays.
    #[command(
        after_help = "Example:\n  avouch client update shop --audience orders --audience stock \\\n      --credentials avouch-data/admin-client.json"
    )]
    Update {
        /// Its id.
        id: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Give a client a new secret. The old one stops at once.
    #[command(
        after_help = "Examples:\n  avouch client rotate-secret shop --save shop.json \\\n      --credentials avouch-data/admin-client.json\n  avouch client rotate-secret shop --revoke-issued --save shop.json \\\n      --credentials avouch-data/admin-client.json"
    )]
    RotateSecret {
        /// Its id.
        id: String,
        /// Revoke everything that was issued to it, too: the old secret is known to others.
        #[arg(long)]
        revoke_issued: bool,
        /// Keep the id and the secret in a file, mode 0600, and do not print the secret.
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Disable a client, and revoke everything that was issued to it.
    #[command(
        after_help = "Example:\n  avouch client disable shop --credentials avouch-data/admin-client.json"
    )]
    Disable {
        /// Its id.
        id: String,
    },
    /// Enable a client again.
    #[command(
        after_help = "Example:\n  avouch client enable shop --credentials avouch-data/admin-client.json"
    )]
    Enable {
        /// Its id.
        id: String,
    },
    /// Delete a client, and revoke everything that was issued to it.
    #[command(
        after_help = "Example:\n  avouch client delete shop --credentials avouch-data/admin-client.json"
    )]
    Delete {
        /// Its id.
        id: String,
    },
}

/// What a registration says.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// The name to show.
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Whether it may ask users for their passwords.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    first_party: Option<bool>,
    /// A scope that it may be granted; repeat for more.
    #[arg(long)]
    scope: Option<Vec<String>>,
    /// An audience that its tokens may be good for; repeat for more.
    #[arg(long)]
    audience: Option<Vec<String>>,
    /// What it may do with avouch itself: introspect, watch, revoke, sessions, admin or backup, perhaps limited: watch:audience=orders,client=shop,subject=u1. Repeat for more.
    #[arg(long, value_parser = grant, value_name = "RIGHT[:LIMITS]")]
    grant: Option<Vec<Grant>>,
    /// A certificate name (SPIFFE URI or DNS) by which it may authenticate; repeat for more.
    #[arg(long, value_name = "NAME")]
    certificate_name: Option<Vec<String>>,
    /// How long its access tokens live: 1m to 1h.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    access_token_lifetime: Option<Duration>,
    /// How long a session lives without a refresh.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    session_idle_lifetime: Option<Duration>,
    /// How long a session lives in any case.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    session_absolute_lifetime: Option<Duration>,
    /// How long a spent refresh token still gets the same successor: 0 to 300s.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    retry_window: Option<Duration>,
    /// What happens when a spent refresh token is presented: the session is revoked, or it is only reported.
    #[arg(long, value_parser = ["enforce", "report"], value_name = "enforce|report")]
    reuse_detection: Option<String>,
}

impl Settings {
    fn apply(self, client: &mut Registration) {
        let Self {
            display_name,
            first_party,
            scope,
            audience,
            grant,
            certificate_name,
            access_token_lifetime,
            session_idle_lifetime,
            session_absolute_lifetime,
            retry_window,
            reuse_detection,
        } = self;
        set(&mut client.display_name, display_name);
        set(&mut client.first_party, first_party);
        set(&mut client.scopes, scope);
        set(&mut client.audiences, audience);
        set(&mut client.grants, grant);
        set(&mut client.certificate_names, certificate_name);
        let lifetime = |time: Option<Duration>| time.map(|time| Some(proto_duration(time)));
        set(&mut client.access_token_lifetime, lifetime(access_token_lifetime));
        set(&mut client.session_idle_lifetime, lifetime(session_idle_lifetime));
        set(&mut client.session_absolute_lifetime, lifetime(session_absolute_lifetime));
        set(&mut client.retry_window, lifetime(retry_window));
        let reuse = reuse_detection.map(|word| match word.as_str() {
            "report" => ReuseDetection::Report.into(),
            _ => ReuseDetection::Enforce.into(),
        });
        set(&mut client.reuse_detection, reuse);
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Reads `watch`, `watch:audience=orders,subject=u1`.
fn grant(text: &str) -> Result<Grant, String> {
    let (name, limits) = text.split_once(':').unwrap_or((text, ""));
    let right = Right::from_str_name(&format!("RIGHT_{}", name.to_ascii_uppercase()))
        .filter(|right| *right != Right::Unspecified)
        .ok_or("the right must be one of: introspect, watch, revoke, sessions, admin, backup")?;
    let mut grant = Grant { right: right.into(), ..Grant::default() };
    for limit in limits.split(',').filter(|limit| !limit.is_empty()) {
        match limit.split_once('=') {
            Some(("audience", value)) => grant.audience = value.into(),
            Some(("client", value)) => grant.client_id = value.into(),
            Some(("subject", value)) => grant.subject = value.into(),
            _ => return Err("a limit must be audience=, client= or subject=".into()),
        }
    }
    Ok(grant)
}

impl Client {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let connection = Connection::authenticated(global).await?;
        let mut api = connection.admin();
        match self {
            Self::Create { id, public, settings, save } => {
                let kind = if public { ClientType::Public } else { ClientType::Confidential };
                let mut client = Registration {
                    client_id: id.unwrap_or_default(),
                    r#type: kind.into(),
                    ..Registration::default()
                };
                settings.apply(&mut client);
                let request = connection.request(CreateClientRequest { client: Some(client) });
                let answer = api.create_client(request).await?.into_inner();
                let client = answer.client.unwrap_or_default();
                let value = view::client(&client);
                keep(value, client.client_id, answer.client_secret, save.as_deref(), out)
            }
            Self::Get { id } => out.record(&view::client(&find(&connection, id).await?)),
            Self::List => {
                let (mut rows, mut page_token) = (Vec::new(), String::new());
                loop {
                    let request =
                        connection.request(ListClientsRequest { page_size: 0, page_token });
                    let page = api.list_clients(request).await?.into_inner();
                    rows.extend(page.clients.iter().map(view::client));
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        break;
                    }
                }
                let columns =
                    ["client_id", "display_name", "type", "first_party", "audiences", "disabled"];
                out.rows(&columns, &rows)
            }
            Self::Update { id, settings } => {
                let mut client = find(&connection, id).await?;
                settings.apply(&mut client);
                let request = connection.request(UpdateClientRequest { client: Some(client) });
                let answer = api.update_client(request).await?.into_inner();
                out.record(&view::client(&answer.client.unwrap_or_default()))
            }
            Self::RotateSecret { id, revoke_issued, save } => {
                let request = RotateClientSecretRequest { client_id: id.clone(), revoke_issued };
                let answer =
                    api.rotate_client_secret(connection.request(request)).await?.into_inner();
                let value = view::change(answer.cursor.as_ref(), answer.revoked.as_ref());
                keep(value, id, answer.client_secret, save.as_deref(), out)
            }
            Self::Disable { id } => {
                let request = connection.request(DisableClientRequest { client_id: id });
                let answer = api.disable_client(request).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
            Self::Enable { id } => {
                let request = connection.request(EnableClientRequest { client_id: id });
                let answer = api.enable_client(request).await?.into_inner();
                out.record(&view::client(&answer.client.unwrap_or_default()))
            }
            Self::Delete { id } => {
                let request = connection.request(DeleteClientRequest { client_id: id });
                let answer = api.delete_client(request).await?.into_inner();
                out.record(&view::change(answer.cursor.as_ref(), answer.revoked.as_ref()))
            }
        }
    }
}

async fn find(connection: &Connection, client_id: String) -> Result<Registration, Failure> {
    let request = connection.request(GetClientRequest { client_id });
    Ok(connection.admin().get_client(request).await?.into_inner().client.unwrap_or_default())
}

/// Shows a result; a secret goes to the file, or to the result when there is no file. It is the only
/// time that anybody sees it, so when the file cannot be written it is printed after all.
fn keep(
    mut value: serde_json::Value,
    client_id: String,
    secret: String,
    save: Option<&Path>,
    out: &mut Output,
) -> Result<(), Failure> {
    let Some(path) = save else {
        if !secret.is_empty() {
            value["client_id"] = client_id.into();
            value["client_secret"] = secret.into();
        }
        return out.record(&value);
    };
    let client_secret = (!secret.is_empty()).then(|| SecretText::new(secret.clone()));
    let credentials = ClientCredentials { client_id, client_secret };
    if let Err(error) = credentials.write(path) {
        value["client_secret"] = secret.into();
        out.record(&value)?;
        return Err(Failure::File(path.into(), error));
    }
    output::note(&format!("the credentials are in {}", path.display()));
    out.record(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_with_their_limits() {
        let read = grant("watch:audience=orders,client=shop").unwrap();
        assert_eq!(read.right(), Right::Watch);
        assert_eq!((read.audience.as_str(), read.client_id.as_str()), ("orders", "shop"));
        assert_eq!(grant("admin").unwrap().right(), Right::Admin);
        for bad in ["", "unspecified", "watch:", "root", "watch:who=x"] {
            assert_eq!(grant(bad).is_ok(), bad == "watch:", "{bad}");
        }
    }
}
