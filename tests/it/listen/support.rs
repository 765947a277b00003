//! A listener to attack, and clients to attack it with.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use avouch::domain::entropy::SeededEntropy;
use avouch::listen::body::RequestBody;
use avouch::listen::deadline::Deadline;
use avouch::listen::listener::{DrainSummary, Listener};
use avouch::listen::panic::CatchPanic;
use avouch::listen::peer::PeerInfo;
use avouch::listen::settings::ListenSettings;
use avouch::listen::stats::{ListenSnapshot, ListenStats};
use avouch::listen::tls::TlsSettings;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::response::Redirect;
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::util::BoxCloneSyncService;
use tower_layer::Layer as _;

/// No wait in these tests is expected to come near it; it only turns a hang into a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Waits for what must happen.
pub(super) async fn soon<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it happens in time")
}

/// Production limits with deadlines that a test can wait for.
pub(super) fn quick() -> ListenSettings {
    ListenSettings {
        handshake_timeout: Duration::from_millis(400),
        first_bytes_timeout: Duration::from_millis(400),
        request_body_timeout: Duration::from_millis(400),
        write_stall_timeout: Duration::from_millis(600),
        ..ListenSettings::default()
    }
}

/// A listener that is being served.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<DrainSummary>,
    stats: Arc<ListenStats>,
}

impl Server {
    pub(super) fn start(settings: ListenSettings, tls: Option<TlsSettings>) -> Self {
        let address = "127.0.0.1:0".parse().expect("an address");
        let jitter = Arc::new(SeededEntropy::new(7));
        let listener = Listener::bind(address, settings, tls, jitter).expect("a listener");
        let stats = listener.stats();
        let shutdown = CancellationToken::new();
        let service = service(Arc::clone(&stats));
        Self {
            address: listener.local_addr(),
            shutdown: shutdown.clone(),
            stats,
            task: tokio::spawn(listener.serve(service, shutdown, Duration::from_millis(500))),
        }
    }

    pub(super) fn plain() -> Self {
        Self::start(quick(), None)
    }

    pub(super) fn stats(&self) -> ListenSnapshot {
        self.stats.snapshot()
    }

    /// Waits until the counters show it.
    pub(super) async fn shows(&self, what: impl Fn(&ListenSnapshot) -> bool) {
        let shown = async {
            while !what(&self.stats()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, shown).await.is_err() {
            panic!("never shown: {:?}", self.stats());
        }
    }

    pub(super) async fn connect(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.expect("a connection")
    }

    /// A client that means no harm is served, whatever the others do.
    pub(super) async fn serves_a_bystander(&self) {
        let mut client = Client::over(self.connect().await).await;
        assert_eq!(soon(client.post("/echo", b"hello")).await.as_deref(), Ok("hello"));
    }
}

type AnyService = BoxCloneSyncService<Request<RequestBody>, Response<Body>, Infallible>;

/// tonic's health service, and paths that do what handlers do at their best and worst.
fn service(stats: Arc<ListenStats>) -> AnyService {
    let (_, health) = tonic_health::server::health_reporter();
    let router = tonic::service::Routes::new(health.max_decoding_message_size(16 * 1024))
        .into_axum_router()
        .route("/echo", post(async |body: Bytes| body))
        .route("/hold", post(std::future::pending::<Redirect>))
        .route("/keep", post(keep))
        .route("/endless", post(async || Body::from_stream(endless())))
        .route("/idle", post(async || Body::from_stream(one_and_wait())))
        .route("/panic", post(async || -> Redirect { panic!("on purpose") }))
        .route("/close", post(close))
        .route("/peer", post(show_peer).merge(get(show_peer)));
    let service = Deadline::new(Duration::from_secs(5)).layer(router);
    let service = CatchPanic::new(stats).layer(service);
    let service = tower::ServiceExt::<Request<RequestBody>>::map_response(
        service,
        |response: Response<_>| response.map(Body::new),
    );
    BoxCloneSyncService::new(service)
}

/// An answer that never ends, for which the connection is kept.
async fn keep(Extension(peer): Extension<Arc<PeerInfo>>) -> Body {
    let kept_open = peer.keep_open();
    Body::from_stream(futures_util::stream::once(async move {
        let _kept_open = kept_open;
        std::future::pending::<Result<Bytes, Infallible>>().await
    }))
}

type Chunks = futures_util::stream::BoxStream<'static, Result<Bytes, Infallible>>;

fn endless() -> Chunks {
    futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![0; 16 * 1024]))).boxed()
}

fn one_and_wait() -> Chunks {
    let one = futures_util::stream::once(async { Ok(Bytes::from_static(b"one")) });
    one.chain(futures_util::stream::pending()).boxed()
}

async fn close(Extension(peer): Extension<Arc<PeerInfo>>) {
    peer.close.cancel();
    std::future::pending::<()>().await;
}

async fn show_peer(Extension(peer): Extension<Arc<PeerInfo>>) -> String {
    let Some(certificate) = &peer.certificate else { return "none".to_owned() };
    let hex = certificate.sha256.map(|byte| format!("{byte:02x}")).concat();
    format!("{:?} {:?} {hex}", certificate.spiffe_id, certificate.dns_names)
}

/// A well-behaved HTTP/2 client.
pub(super) struct Client {
    pub(super) requests: h2::client::SendRequest<Bytes>,
    pub(super) connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub(super) async fn over<T>(io: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::with(io, &h2::client::Builder::new()).await
    }

    pub(super) async fn with<T>(io: T, builder: &h2::client::Builder) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (requests, connection) = soon(builder.handshake(io)).await.expect("HTTP/2");
        Self { requests, connection: tokio::spawn(connection) }
    }

    /// Sends the head of a request; the body is the caller's to send.
    pub(super) async fn open(
        &mut self,
        path: &str,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let request = Request::post(format!("http://avouch.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let mut requests = self.requests.clone().ready().await?;
        requests.send_request(request, false)
    }

    /// The text of the answer.
    pub(super) async fn post(&mut self, path: &str, body: &'static [u8]) -> Result<String, String> {
        let text = |error: h2::Error| error.to_string();
        let (response, mut send) = self.open(path).await.map_err(text)?;
        send.send_data(Bytes::from_static(body), true).map_err(text)?;
        let mut body = response.await.map_err(text)?.into_body();
        let mut all = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(text)?;
            body.flow_control().release_capacity(chunk.len()).map_err(text)?;
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).map_err(|error| error.to_string())
    }
}

/// The gRPC status in the head of a response.
pub(super) fn grpc_status<B>(response: &Response<B>) -> Option<&str> {
    response.headers().get("grpc-status").map(|status| status.to_str().expect("ASCII"))
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One HTTP/2 frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

/// The bytes of a frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block that posts to `path`, without Huffman or the dynamic table.
pub(super) fn post_block(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    for (name, value) in [(&[0x01][..], "avouch.test"), (&[0x0f, 0x10], "application/grpc")] {
        block.extend(name);
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block.extend(b"\x00\x02te\x08trailers");
    block
}

/// A peer that writes what frames it likes.
pub(super) struct Raw<T = TcpStream> {
    pub(super) io: T,
}

impl Raw {
    /// Connected, preface and `settings` sent.
    pub(super) async fn open(server: &Server, settings: &[u8]) -> Self {
        let mut raw = Self { io: server.connect().await };
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, settings)).await;
        raw
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Raw<T> {
    /// Whether the bytes were taken; a peer that was thrown out cannot write.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        soon(self.io.write_all(bytes)).await.is_ok()
    }

    /// The next frame; `None` once the connection is closed.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon(self.io.read_exact(&mut head)).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        soon(self.io.read_exact(&mut payload)).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    }

    /// Reads until a frame of this kind, or the end.
    pub(super) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads to the end of the connection; the error code of the last GOAWAY on the way.
    pub(super) async fn until_closed(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                let bytes = frame.payload[4..8].try_into().expect("an error code");
                code = Some(u32::from_be_bytes(bytes));
            }
        }
        code
    }
}

/// Reads until the other side closes, whether politely or not.
pub(super) async fn closed(io: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = soon(io.read(&mut buffer)).await {}
}

/// The memory that this process holds.
pub(super) fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize =
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}
