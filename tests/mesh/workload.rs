//! The workload behind the proxy: answers everything and remembers what it was asked. HTTP/1.1, and
//! over HTTP/2 one gRPC service, grpc.health.v1, as it has a call of each kind.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::ServiceExt as _;

/// Whoever sees this header knows that the workload answered.
pub(crate) const MARK: &str = "x-workload";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The path with the query, as it was written.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    /// Every value of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(is, _)| is == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// It serves until the test is over.
pub(crate) struct Workload {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Workload {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("its port");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let record = Arc::clone(&seen);
        let (reporter, health) = tonic_health::server::health_reporter();
        // The reporter's end would be the end of every stream.
        tokio::spawn(async move {
            let _reporter = reporter;
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&record), health.clone()));
            }
        });
        Self { address, seen }
    }

    /// What was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}

async fn serve<H: Health>(
    stream: TcpStream,
    record: Arc<Mutex<Vec<Seen>>>,
    health: HealthServer<H>,
) {
    let mut first = [0; 3];
    let http2 = stream.peek(&mut first).await.is_ok_and(|_| &first == b"PRI");
    let service = tower::service_fn(move |request: http::Request<Incoming>| {
        let (record, health) = (Arc::clone(&record), health.clone());
        async move {
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let headers = request.headers().iter();
            record.lock().expect("no panic").push(Seen {
                method: request.method().to_string(),
                target: request
                    .uri()
                    .path_and_query()
                    .map_or_else(|| request.uri().to_string(), ToString::to_string),
                headers: headers
                    .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
                    .collect(),
            });
            if http2 {
                return health.oneshot(request.map(Body::new)).await;
            }
            let mut response = http::Response::new(Body::empty());
            response.headers_mut().insert(MARK, http::HeaderValue::from_static("yes"));
            Ok(response)
        }
    });
    let io = TokioIo::new(stream);
    let service = TowerToHyperService::new(service);
    // How a connection ends is for the tests to see at the other end.
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}
