//! A connection to a server, and who calls on it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};

use super::args::Global;
use super::failure::Failure;
use super::files::{ClientCredentials, FileError};
use super::password;
use crate::client::balance::{BalanceSettings, Replicas, SystemResolver, Target};
use crate::client::upstream::Upstream;
use crate::config::read_secret_file;
use crate::crypto::OsEntropy;
use crate::domain::refresh_token::RefreshToken;
use crate::domain::secret::SecretText;
use crate::pb::v1::admin_service_client::AdminServiceClient;
use crate::pb::v1::authenticate_request::Grant;
use crate::pb::v1::identity_service_client::IdentityServiceClient;
use crate::pb::v1::session_service_client::SessionServiceClient;
use crate::pb::v1::{AuthenticateRequest, ClientAuthentication, ClientCredentialsGrant};

/// The name that avouch goes by as an audience, unless it is configured otherwise.
const OWN_AUDIENCE: &str = "avouch";
/// A call that takes longer is given up; RPCs that hash wait for at most a second.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Other(error.to_string())
    }
}

/// A channel and how the caller shows who it is.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
    client: Option<ClientAuthentication>,
}

impl Connection {
    /// Connects; nobody in particular calls.
    pub(super) async fn open(global: &Global) -> Result<Self, Failure> {
        let endpoint = endpoint(global)?;
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = cause(&error);
            Failure::Other(format!("{} cannot be reached: {cause}", global.server))
        })?;
        Ok(Self { channel, bearer: None, client: None })
    }

    /// Connects, and gets a token to call with from `--token` or `--credentials`. A certificate
    /// alone is fine, too.
    pub(super) async fn authenticated(global: &Global) -> Result<Self, Failure> {
        // What was typed is looked at first: a mistake in it needs no server to be seen.
        if let Some(path) = &global.token {
            let bearer = bearer(access_token(path)?.expose())?;
            return Ok(Self { bearer: Some(bearer), ..Self::open(global).await? });
        }
        if let Some(path) = &global.credentials {
            let credentials = ClientCredentials::read(path)?;
            let mut connection = Self::open(global).await?;
            connection.log_in(&credentials).await?;
            return Ok(connection);
        }
        // A node agent asks nobody: who can open its socket may watch.
        if global.cert.is_none() && !global.server.starts_with("unix:") {
            let text = "say who calls: --credentials FILE, --token FILE, or --cert and --key";
            return Err(Failure::Usage(text.into()));
        }
        Self::open(global).await
    }

    /// Connects to call about tokens: with a token, as above, if the client may have one for avouch
    /// itself; if not, with its credentials in each request, which is enough for its own tokens.
    pub(super) async fn about_tokens(global: &Global) -> Result<Self, Failure> {
        match (&global.token, &global.credentials) {
            (None, Some(path)) => {
                let credentials = ClientCredentials::read(path)?;
                let mut connection = Self::open(global).await?;
                match connection.log_in(&credentials).await {
                    Err(failure) if failure.code() == Some(Code::PermissionDenied) => {
                        connection.client = Some(authentication(&credentials));
                    }
                    other => other?,
                }
                Ok(connection)
            }
            _ => Self::authenticated(global).await,
        }
    }

    /// Gets a token for the client itself, good for avouch itself.
    async fn log_in(&mut self, credentials: &ClientCredentials) -> Result<(), Failure> {
        let request = AuthenticateRequest {
            client: Some(authentication(credentials)),
            grant: Some(Grant::ClientCredentials(ClientCredentialsGrant {})),
            audiences: vec![OWN_AUDIENCE.into()],
            ..AuthenticateRequest::default()
        };
        let answer = self.identity().authenticate(self.request(request)).await?.into_inner();
        let tokens = answer.tokens.unwrap_or_default();
        self.bearer = Some(bearer(&tokens.access_token)?);
        Ok(())
    }

    /// What shows who calls, if it is not a certificate.
    pub(super) fn bearer(&self) -> Option<MetadataValue<Ascii>> {
        self.bearer.clone()
    }

    /// The client to name in requests that have a field for it.
    pub(super) fn client(&self) -> Option<ClientAuthentication> {
        self.client.clone()
    }

    /// A request with a deadline, from whoever calls.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }

    pub(super) fn identity(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel.clone())
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(super) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }
}

/// What began an error. It says what to do; what is around it says only that it was a connection.
fn cause(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The client's credentials, for requests that carry them.
pub(super) fn required_client(global: &Global) -> Result<ClientAuthentication, Failure> {
    let path = global.credentials.as_deref().ok_or_else(|| {
        Failure::Usage("--credentials FILE is missing: the client that asks for the tokens".into())
    })?;
    Ok(authentication(&ClientCredentials::read(path)?))
}

pub(super) fn authentication(credentials: &ClientCredentials) -> ClientAuthentication {
    let secret = credentials.client_secret.as_ref();
    ClientAuthentication {
        client_id: credentials.client_id.clone(),
        client_secret: secret.map(|secret| secret.expose().to_owned()).unwrap_or_default(),
    }
}

/// The access token in a file: alone, or with others as `login --save` wrote them.
pub(super) fn access_token(path: &Path) -> Result<SecretText, Failure> {
    let token = token_in(path, &["access_token"])?;
    if token.expose().parse::<RefreshToken>().is_ok() {
        return Err(Failure::Other(format!("{} holds a refresh token alone", path.display())));
    }
    Ok(token)
}

/// The refresh token in a file, likewise.
pub(super) fn refresh_token(path: &Path) -> Result<SecretText, Failure> {
    token_in(path, &["refresh_token"])
}

/// The refresh token in a file, likewise, or else the access token.
pub(super) fn any_token(path: &Path) -> Result<SecretText, Failure> {
    token_in(path, &["refresh_token", "access_token"])
}

/// The first of these members that the file has, or all of a file that is no JSON object.
fn token_in(path: &Path, fields: &[&str]) -> Result<SecretText, Failure> {
    let text = password::from_file(path)?;
    if !text.expose().trim_start().starts_with('{') {
        return Ok(text);
    }
    let value: Option<serde_json::Value> = serde_json::from_str(text.expose()).ok();
    let member = |field: &&str| value.as_ref()?.get(field)?.as_str().filter(|it| !it.is_empty());
    let token = fields.iter().find_map(member).ok_or_else(|| {
        Failure::Other(format!("{} holds no {}", path.display(), fields.join(" and no ")))
    })?;
    Ok(SecretText::new(token.to_owned()))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Failure> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Failure::Other("what should be an access token is none".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// One connection to the server.
pub(super) fn endpoint(global: &Global) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(global.server.clone())
        .map_err(|_| Failure::Usage("--server must be a URL such as http://127.0.0.1:7700".into()))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(5))
        .tcp_nodelay(true);
    match tls(global)? {
        None => Ok(endpoint),
        Some(tls) => endpoint
            .tls_config(tls)
            .map_err(|error| Failure::Other(format!("the certificates cannot be used: {error}"))),
    }
}

/// All replicas of the server, for who stays: its name is looked up again and again.
pub(super) fn upstream(global: &Global) -> Result<Upstream, Failure> {
    if global.server.starts_with("unix:") {
        return Ok(endpoint(global)?.into());
    }
    let target = match tls(global)? {
        None => Target::plaintext(&global.server),
        Some(tls) => Target::tls(&global.server, tls),
    };
    let target = target.map_err(|error| Failure::Usage(format!("--server: {error}")))?;
    let (names, every) = (Arc::new(SystemResolver), BalanceSettings::default());
    Ok(Replicas::start(target, names, every, Arc::new(OsEntropy)).into())
}

/// The certificates, where the server is reached over TLS.
fn tls(global: &Global) -> Result<Option<ClientTlsConfig>, Failure> {
    if !global.server.starts_with("https://") {
        if global.ca_file.is_some() || global.cert.is_some() {
            return Err(Failure::Usage(
                "certificates need a --server that begins with https://".into(),
            ));
        }
        return Ok(None);
    }
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| Failure::Other(format!("{} cannot be read: {error}", path.display())))
    };
    let Some(ca) = &global.ca_file else {
        return Err(Failure::Usage(
            "https needs --ca-file: the CA of the server's certificate".into(),
        ));
    };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    match (&global.cert, &global.key) {
        (Some(cert), Some(key)) => {
            let identity = Identity::from_pem(read(cert)?, read_secret_file(key)?.expose());
            Ok(Some(tls.identity(identity)))
        }
        (None, None) => Ok(Some(tls)),
        _ => Err(Failure::Usage("--cert and --key go together".into())),
    }
}
