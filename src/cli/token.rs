//! `login`, `refresh`, `introspect` and `revoke`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{Global, duration, proto_duration, reason};
use super::connection::{Connection, access_token, any_token, refresh_token, required_client};
use super::failure::Failure;
use super::files::write_json;
use super::output::{self, Output};
use super::{password, view};
use crate::pb::v1::authenticate_request::Grant;
use crate::pb::v1::revoke_request::Target;
use crate::pb::v1::{
    AuthenticateRequest, ClientCredentialsGrant, Device, IntrospectRequest, PasswordGrant,
    RefreshRequest, RevocationReason, RevokeRequest, TokenSet,
};

/// Log a user in, or the client itself, and get tokens.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch login --credentials avouch-data/login-client.json --username ada \\\n      --save tokens.json\n  avouch login --credentials avouch-data/login-client.json --username ada \\\n      --password-file avouch-data/ada.password --save tokens.json\n  avouch login --credentials service.json --audience orders --json"
)]
pub(super) struct Login {
    /// The user's name. Without it the client logs in for itself.
    #[arg(long)]
    username: Option<String>,
    /// A file with the password, mode 0600, or - for stdin. Without it the password is asked for.
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// A scope to ask for; repeat for more.
    #[arg(long)]
    scope: Vec<String>,
    /// An audience to ask for; repeat for more.
    #[arg(long)]
    audience: Vec<String>,
    /// What to call this device in the list of sessions.
    #[arg(long, value_name = "NAME")]
    device_name: Option<String>,
    /// Keep the tokens in a file, mode 0600, and do not print them.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Login {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let client = required_client(global)?;
        let grant = match self.username {
            Some(username) => {
                let prompt = format!("Password of {}", super::table::printable(&username));
                let password = password::ask(self.password_file.as_deref(), &prompt, false)?;
                Grant::Password(PasswordGrant { username, password: password.into_exposed() })
            }
            None => Grant::ClientCredentials(ClientCredentialsGrant {}),
        };
        let connection = Connection::open(global).await?;
        let request = connection.request(AuthenticateRequest {
            client: Some(client),
            grant: Some(grant),
            scopes: self.scope,
            audiences: self.audience,
            device: Some(Device {
                device_name: self.device_name.unwrap_or_default(),
                user_agent: concat!("avouch/", env!("CARGO_PKG_VERSION")).into(),
                ..Device::default()
            }),
        });
        let answer = connection.identity().authenticate(request).await?.into_inner();
        keep(&answer.tokens.unwrap_or_default(), self.save.as_deref(), out)
    }
}

/// Keeps tokens in a file and shows what they are, or prints them.
fn keep(tokens: &TokenSet, save: Option<&Path>, out: &mut Output) -> Result<(), Failure> {
    let Some(path) = save else { return out.record(&view::tokens_with_secrets(tokens)) };
    write_json(path, &view::tokens_with_secrets(tokens))
        .map_err(|error| Failure::File(path.into(), error))?;
    output::note(&format!("the tokens are in {}", path.display()));
    out.record(&view::tokens(tokens))
}

/// Exchange a refresh token for new tokens. The old one is spent.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch refresh tokens.json --credentials avouch-data/login-client.json\n  avouch refresh - --credentials login.json --json < refresh-token"
)]
pub(super) struct Refresh {
    /// The file with the refresh token: what `login --save` wrote, which is replaced, or the token alone; - for stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A scope to ask for; repeat for more. Without it: all that the session holds.
    #[arg(long)]
    scope: Vec<String>,
    /// An audience to ask for; repeat for more. Without it: all that the session holds.
    #[arg(long)]
    audience: Vec<String>,
    /// Keep the new tokens in another file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Refresh {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let client = required_client(global)?;
        let stdin = self.file == Path::new("-");
        let token = refresh_token(&self.file)?;
        let connection = Connection::open(global).await?;
        let request = connection.request(RefreshRequest {
            client: Some(client),
            refresh_token: token.into_exposed(),
            scopes: self.scope,
            audiences: self.audience,
            device: None,
        });
        let answer = connection.identity().refresh(request).await?.into_inner();
        let save = self.save.or_else(|| (!stdin).then_some(self.file));
        keep(&answer.tokens.unwrap_or_default(), save.as_deref(), out)
    }
}

/// Ask whether a token is good, and what it asserts.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch introspect tokens.json --credentials avouch-data/admin-client.json\n  avouch introspect tokens.json --refresh-token \\\n      --credentials avouch-data/admin-client.json\n  avouch introspect - --credentials avouch-data/admin-client.json \\\n      --json < access-token"
)]
pub(super) struct Introspect {
    /// The file with the token: what `login --save` wrote, or the token alone; - for stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Ask about the refresh token of the file, not about the access token.
    #[arg(long)]
    refresh_token: bool,
}

impl Introspect {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let token = if self.refresh_token { refresh_token } else { access_token }(&self.file)?;
        let connection = Connection::about_tokens(global).await?;
        let request = connection.request(IntrospectRequest {
            client: connection.client(),
            token: token.into_exposed(),
            ..IntrospectRequest::default()
        });
        let answer = connection.identity().introspect(request).await?.into_inner();
        out.record(&view::introspection(&answer))
    }
}

/// Take back a token, a session, or everything of a subject, of a client, or at all.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch revoke --token-file tokens.json --reason logout \\\n      --credentials avouch-data/login-client.json\n  avouch revoke --subject USER --reason credential-compromised --wait 5s \\\n      --credentials avouch-data/admin-client.json\n  avouch revoke --everything --credentials avouch-data/admin-client.json"
)]
pub(super) struct Revoke {
    #[command(flatten)]
    what: What,
    /// With --token-file: that access token alone, not the session of the refresh token.
    #[arg(long, requires = "token_file")]
    access_token_only: bool,
    /// Why: logout, admin_action, credential_compromised, … It goes to every watcher.
    #[arg(long, value_parser = reason)]
    reason: Option<RevocationReason>,
    /// Wait until every connected watcher has applied it, up to 30s.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The session of the refresh token in this file, or the access token if it holds only that; - for stdin.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// One session, by its id.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    session: Option<String>,
    /// Everything of this subject.
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Everything of this client.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Everything.
    #[arg(long)]
    everything: bool,
}

impl Revoke {
    fn target(&self) -> Result<Target, Failure> {
        let What { token_file, session, subject, client, everything: _ } = &self.what;
        if let Some(path) = token_file {
            let token = if self.access_token_only { access_token } else { any_token }(path)?;
            return Ok(Target::Token(token.into_exposed()));
        }
        let by_id = session.clone().map(Target::SessionId);
        let by_id = by_id.or_else(|| subject.clone().map(Target::Subject));
        let by_id = by_id.or_else(|| client.clone().map(Target::ClientId));
        Ok(by_id.unwrap_or(Target::Everything(true)))
    }

    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let target = self.target()?;
        let connection = Connection::about_tokens(global).await?;
        let mut request = connection.request(RevokeRequest {
            client: connection.client(),
            target: Some(target),
            reason: self.reason.unwrap_or_default().into(),
            wait: self.wait.map(proto_duration),
            ..RevokeRequest::default()
        });
        if let Some(wait) = self.wait {
            request.set_timeout(wait + Duration::from_secs(10));
        }
        let answer = connection.identity().revoke(request).await?.into_inner();
        let mut value = view::change(answer.cursor.as_ref(), answer.revoked.as_ref());
        if let Some(result) = &answer.wait_result {
            value["wait_result"] = view::wait_result(result);
        }
        if answer.revoked.is_none() {
            output::note("nothing was revoked: there is no such thing, or it has ended already");
        }
        out.record(&value)
    }
}
