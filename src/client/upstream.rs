//! The way from a sidecar or a node agent to its server: every replica behind a name, or what one
//! endpoint leads to.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::transport::Endpoint;

use super::balance::Replicas;
use super::transport::Transport;
use super::watch::WatchSettings;

/// The server, for who calls it and follows it for good.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// What calls go over.
    pub transport: Transport,
    endpoints: Vec<Endpoint>,
    replicas: Option<watch::Receiver<Arc<[Endpoint]>>>,
}

/// Every address behind a name is a replica.
impl From<Replicas> for Upstream {
    fn from(replicas: Replicas) -> Self {
        let found = replicas.endpoints();
        Self { transport: replicas.into(), endpoints: Vec::new(), replicas: Some(found) }
    }
}

/// A Unix socket, say, or what balances by itself. Needs a tokio runtime.
impl From<Endpoint> for Upstream {
    fn from(endpoint: Endpoint) -> Self {
        let transport = endpoint.connect_lazy().into();
        Self { transport, endpoints: vec![endpoint], replicas: None }
    }
}

impl Upstream {
    /// Follows all revocations of this server, with a heartbeat each second.
    pub fn watch(&self) -> WatchSettings {
        WatchSettings {
            replicas: self.replicas.clone(),
            ..WatchSettings::new(self.endpoints.clone())
        }
    }
}
