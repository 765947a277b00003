//! Who may watch here: whoever the socket lets in.

use std::sync::Arc;

use http::Extensions;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::domain::caller::{Caller, Grant, Identity, Right};
use crate::grpc::watch::{Authorize, WatchCaller};
use crate::listen::peer::PeerInfo;

/// Lets everybody watch: the mode of the socket, or the loopback address, says who can call.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours;

#[tonic::async_trait]
impl Authorize for Neighbours {
    async fn watch_caller(
        &self,
        extensions: &Extensions,
        _: &MetadataMap,
    ) -> Result<WatchCaller, Status> {
        let close = extensions.get::<Arc<PeerInfo>>().map(|peer| {
            let peer = Arc::clone(peer);
            Arc::new(move || peer.close.cancel()) as crate::feed::Close
        });
        let caller =
            Caller { identity: Identity::System, grants: vec![Grant::unlimited(Right::Watch)] };
        Ok(WatchCaller { caller, valid_until: None, revoked: None, close })
    }
}
