//! RevocationService on a socket of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use avouch::domain::caller::{Caller, Grant, Identity, Right};
use avouch::feed::{Close, Feed};
use avouch::grpc::status;
use avouch::grpc::watch::{Authorize, RevocationServer, WatchCaller};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt as _;

/// The `authorization` of a caller without the right.
pub(crate) const NOBODY: &str = "nobody";

struct Everybody;

#[tonic::async_trait]
impl Authorize for Everybody {
    async fn watch_caller(
        &self,
        extensions: &http::Extensions,
        metadata: &MetadataMap,
    ) -> Result<WatchCaller, tonic::Status> {
        let name = metadata.get("authorization").map(|value| value.to_str().unwrap());
        let caller = match name {
            Some(NOBODY) => Caller::anonymous(),
            name => Caller {
                identity: Identity::Client(name.unwrap_or("sidecar").parse().unwrap()),
                grants: vec![Grant::unlimited(Right::Watch)],
            },
        };
        if name == Some("") {
            return Err(status::denied());
        }
        let close = extensions.get::<CancellationToken>().cloned();
        let close = close.map(|token| -> Close { Arc::new(move || token.cancel()) });
        Ok(WatchCaller { caller, valid_until: None, revoked: None, close })
    }
}

/// Serves `feed` until the test is over.
pub(crate) async fn serve(feed: Arc<Feed>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = RevocationServer::new(feed, Arc::new(Everybody));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, server.clone()));
        }
    });
    address
}

async fn connection(stream: TcpStream, server: RevocationServer) {
    let close = CancellationToken::new();
    let handle = close.clone();
    let service = server.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(handle.clone());
        request
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        _ = connection => {}
        () = close.cancelled() => {}
    }
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).unwrap()
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    endpoint(address).connect_timeout(Duration::from_secs(5)).connect().await.unwrap()
}
