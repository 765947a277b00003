//! What to follow, and how.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use v1::watch_revocations_response::Frame;

use crate::domain::ids::Cursor;
use crate::domain::view::View;
use crate::pb::v1;

/// Gives the value of `authorization` for the next call.
pub type Authorization = Arc<dyn Fn() -> Option<MetadataValue<Ascii>> + Send + Sync>;

/// The set that is in force, put in place whole when another one takes over.
pub type SharedView = Arc<ArcSwap<View>>;

/// Serves the stream on to others.
pub trait Relay: Send + Sync + 'static {
    /// Takes a frame before the set has it. None when it cannot be understood.
    fn take(&self, frame: &Frame) -> Option<()>;

    /// Whether everybody who is served has applied everything up to `through`, as soon as that can be
    /// told.
    fn applied(&self, through: Cursor) -> BoxFuture<'static, bool>;
}

/// What to follow, and how.
#[derive(Clone)]
pub struct WatchSettings {
    /// The replicas. Each try takes the next, over a connection of its own.
    pub endpoints: Vec<Endpoint>,
    /// The replicas as they come and go, in place of `endpoints` as long as there are any
    /// ([`Replicas::endpoints`](crate::client::balance::Replicas::endpoints)).
    pub replicas: Option<tokio::sync::watch::Receiver<Arc<[Endpoint]>>>,
    /// What to see; nothing set for everything.
    pub filter: v1::RevocationFilter,
    /// How often to hear from the server.
    pub heartbeat: Duration,
    /// The most bytes in one frame; zero for the server's default.
    pub max_frame_bytes: u32,
    /// The name for metrics and logs on the server.
    pub subscriber_id: String,
    /// The credential, when it is not the certificate.
    pub authorization: Option<Authorization>,
    /// Told when the server does not take the credential any more, so that the next one is new
    /// ([`TokenSource::refused`](crate::client::token_source::TokenSource::refused)). Who revokes everything
    /// revokes the tokens of watchers, too.
    pub refused: Option<Arc<dyn Fn() + Send + Sync>>,
    /// The most entries to hold. What comes over it is left out, and the server has to be asked about
    /// tokens that it might concern ([`View::with_limit`]).
    pub max_entries: u64,
    /// Who serves the stream on, if anybody does.
    pub relay: Option<Arc<dyn Relay>>,
}

impl WatchSettings {
    /// Everything, from these replicas, with a heartbeat each second.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            replicas: None,
            filter: v1::RevocationFilter::default(),
            heartbeat: Duration::from_secs(1),
            max_frame_bytes: 0,
            subscriber_id: String::new(),
            authorization: None,
            refused: None,
            max_entries: u64::MAX,
            relay: None,
        }
    }
    /// A request with the credential of this moment.
    pub(super) fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(value) = self.authorization.as_ref().and_then(|value| value()) {
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
}
