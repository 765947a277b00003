//! Where avouch is, by name, and how to connect to one of its addresses.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use tonic::transport::{ClientTlsConfig, Endpoint};

/// A dead connection is noticed within the sum of these, whatever TCP says.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why something is no target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is no such URL.
    #[error("the target must be a URL with a port, such as http://avouch.mesh.svc:7700")]
    Url,
    /// `https` and TLS settings go together.
    #[error("https needs TLS settings, and http has none")]
    Tls,
    /// The TLS settings cannot be used.
    #[error("the TLS settings cannot be used: {0}")]
    TlsSettings(#[source] tonic::transport::Error),
}

/// Where avouch is, by name.
#[derive(Clone, Debug)]
pub struct Target {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<ClientTlsConfig>,
}

impl Target {
    /// In plaintext: `http://host:port`.
    pub fn plaintext(url: &str) -> Result<Self, TargetError> {
        Self::new(url, None)
    }

    /// Over TLS: `https://host:port`. Every replica has to show a certificate for `host`, whatever
    /// its address; the name in `tls` does not count.
    pub fn tls(url: &str, tls: ClientTlsConfig) -> Result<Self, TargetError> {
        let this = Self::new(url, Some(tls))?;
        // What is wrong with the settings is wrong with them for any address.
        this.endpoint(SocketAddr::from(([127, 0, 0, 1], this.port)))?;
        Ok(this)
    }

    fn new(url: &str, tls: Option<ClientTlsConfig>) -> Result<Self, TargetError> {
        let uri: Uri = url.parse().map_err(|_| TargetError::Url)?;
        let (Some(scheme), Some(host), Some(port)) = (uri.scheme(), uri.host(), uri.port_u16())
        else {
            return Err(TargetError::Url);
        };
        let secure = *scheme == Scheme::HTTPS;
        if !secure && *scheme != Scheme::HTTP {
            return Err(TargetError::Url);
        }
        if secure != tls.is_some() {
            return Err(TargetError::Tls);
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { uri, host, port, tls })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// The replica at this address, under the name of the target.
    pub(super) fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, TargetError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| TargetError::Url)?
            .origin(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let Some(tls) = self.tls.clone() else { return Ok(endpoint) };
        endpoint.tls_config(tls.domain_name(&*self.host)).map_err(TargetError::TlsSettings)
    }
}
