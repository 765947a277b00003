//! The connection to one member, and what is shown on it.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::client::{CallError, meaning};
use super::pb::AuthenticateRequest;
use super::pb::auth_client::AuthClient;
use super::settings::{EtcdLogin, EtcdSettings, EtcdTls};
use super::socket::connect_lazy;

/// etcd cuts whoever pings more often than every five seconds.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// For how long a member that said nothing is asked only if nobody else is left. A call that asks it takes
/// as long as one may take.
const QUIET: Duration = Duration::from_secs(30);

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    endpoint: String,
    tls: Option<EtcdTls>,
    connect_timeout: Duration,
    connections: Mutex<Connections>,
    /// When it last said nothing though it was asked.
    silent: watch::Sender<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Connections {
    /// How many were made.
    count: u64,
    current: Option<Connection>,
}

/// A connection that calls share.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    number: u64,
    pub(super) channel: Channel,
}

impl Member {
    pub(super) fn new(endpoint: &str, settings: &EtcdSettings) -> Self {
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let is_url = endpoint.contains("://");
        Self {
            endpoint: if is_url { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") },
            tls: settings.tls.clone(),
            connect_timeout: settings.request_timeout,
            connections: Mutex::default(),
            silent: watch::Sender::new(None),
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that is shared by all calls.
    pub(super) fn channel(&self) -> Result<Connection, String> {
        let mut connections = self.connections();
        if let Some(current) = &connections.current {
            return Ok(current.clone());
        }
        let channel = self.connect()?;
        connections.count += 1;
        let new = Connection { number: connections.count, channel };
        connections.current = Some(new.clone());
        Ok(new)
    }

    /// Makes the next call connect anew, with what the files hold then, unless one did so since this
    /// connection was made.
    pub(super) fn forget(&self, connection: &Connection) {
        self.connections().current.take_if(|current| current.number == connection.number);
    }

    /// It was asked and said nothing. It is asked after others for a while, and watches leave it.
    pub(super) fn note_silence(&self) {
        self.silent.send_replace(Some(Instant::now()));
    }

    /// Whether it was silent of late.
    pub(super) fn was_silent(&self) -> bool {
        self.silent.borrow().is_some_and(|at| at.elapsed() < QUIET)
    }

    /// Tells each time that it is found to be silent from now on.
    pub(super) fn silences(&self) -> watch::Receiver<Option<Instant>> {
        self.silent.subscribe()
    }

    /// A connection of its own, made when it is first used.
    pub(super) fn connect(&self) -> Result<Channel, String> {
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(|error| format!("{}: {error}", self.endpoint))?
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        if let Some(tls) = &self.tls {
            endpoint = endpoint
                .tls_config(client_tls(tls)?)
                .map_err(|error| format!("the TLS files cannot be used: {error}"))?;
        }
        Ok(connect_lazy(&endpoint, self.connect_timeout))
    }
}

fn client_tls(tls: &EtcdTls) -> Result<ClientTlsConfig, String> {
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let mut config =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca_file)?));
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}

/// What goes with each call. A member without a leader answers nothing, rather than what it last knew.
pub(super) fn metadata(token: Option<&AsciiMetadataValue>) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("hasleader", AsciiMetadataValue::from_static("true"));
    if let Some(token) = token {
        metadata.insert("token", token.clone());
    }
    metadata
}

/// What a login gave. It is good at every member.
pub(super) struct Token {
    login: Option<EtcdLogin>,
    token: Mutex<Option<AsciiMetadataValue>>,
    /// Held by the one who logs in: that costs etcd a slow hash, and the others wait for what it gives.
    logging_in: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("login", &self.login).finish_non_exhaustive()
    }
}

impl Token {
    pub(super) fn new(login: Option<EtcdLogin>) -> Self {
        Self { login, token: Mutex::default(), logging_in: tokio::sync::Mutex::default() }
    }

    /// The token, after a login if there is none. None where nobody logs in.
    pub(super) async fn shown_to(
        &self,
        channel: &Channel,
    ) -> Result<Option<AsciiMetadataValue>, CallError> {
        let Some(login) = &self.login else { return Ok(None) };
        if let Some(token) = &*self.token() {
            return Ok(Some(token.clone()));
        }
        let _only = self.logging_in.lock().await;
        if let Some(token) = &*self.token() {
            return Ok(Some(token.clone()));
        }
        let password = fs::read_to_string(&login.password_file).map_err(|error| {
            CallError::Refused(format!("{}: {error}", login.password_file.display()))
        })?;
        let request = AuthenticateRequest {
            name: login.username.clone(),
            password: password.trim_end_matches(['\r', '\n']).to_owned(),
        };
        let answer = AuthClient::new(channel.clone()).authenticate(request).await;
        let token = match answer {
            Ok(answer) => answer.into_inner().token,
            // It has authentication off, and lets everybody in.
            Err(status) if status.message().contains("authentication is not enabled") => {
                return Ok(None);
            }
            Err(status) => return Err(meaning(&status)),
        };
        let mut token = AsciiMetadataValue::try_from(token)
            .map_err(|_| CallError::Refused("the login gave no usable token".to_owned()))?;
        token.set_sensitive(true);
        *self.token() = Some(token.clone());
        Ok(Some(token))
    }

    fn token(&self) -> MutexGuard<'_, Option<AsciiMetadataValue>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next call log in again, unless somebody has done so since `refused` was shown.
    pub(super) fn forget(&self, refused: Option<&AsciiMetadataValue>) {
        let mut token = self.token();
        if token.as_ref() == refused {
            token.take();
        }
    }

    /// Makes the next call log in again.
    pub(super) fn forget_any(&self) {
        self.token().take();
    }

    /// Whether an error says that the token is good no longer.
    pub(super) fn is_refused(status: &Status) -> bool {
        let text = status.message();
        status.code() == Code::Unauthenticated
            || text.contains("revision in header is old")
            || text.contains("user name is empty")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_that_is_newer_than_the_one_that_was_refused_stays() {
        let login = EtcdLogin { username: "u".to_owned(), password_file: "/nowhere".into() };
        let token = Token::new(Some(login));
        let [old, new] = ["old", "new"].map(AsciiMetadataValue::from_static);
        *token.token() = Some(new.clone());
        token.forget(Some(&old));
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        assert_eq!(token.shown_to(&channel).await, Ok(Some(new.clone())));
        token.forget(Some(&new));
        assert!(token.token().is_none());
    }
}
