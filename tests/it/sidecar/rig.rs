//! A sidecar in this process, and who asks it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use avouch::app::sidecar::{BoundSidecar, SidecarOptions, build};
use avouch::client::upstream::Upstream;
use avouch::config::Sources;
use avouch::config::sidecar::{SidecarConfig, load};
use avouch::domain::address::Address;
use avouch::listen::listener::DrainSummary;
use avouch::pb::v1 as pb;
use avouch::verifier::Verifier;
use bytes::{Buf as _, BufMut as _};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

use crate::harness::{ISSUER, Server, connect};
use crate::process::PATIENCE;

/// Everything that a test says of requests, by rules that most tests share.
pub(crate) const RULES: &str = r#"
[[rule]]
prefix = "/orders"
methods = "GET"
scope = "read"
[[rule]]
prefix = "/orders"
methods = "POST"
scope = "read write"
[[rule]]
prefix = "/public"
public = true
[[rule]]
path = "/other"
audience = "billing"
[[rule]]
path = "/swap"
forward_token = false
[[rule]]
grpc = "orders.v1.Orders/Get"
scope = "admin"
"#;

/// What Envoy sends, after `envoy/service/auth/v3/external_auth.proto` and what it imports.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) attributes: Option<AttributeContext>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    pub(crate) source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    pub(crate) request: Option<Request>,
    #[prost(map = "string, string", tag = "10")]
    pub(crate) context_extensions: HashMap<String, String>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Peer {
    #[prost(string, tag = "4")]
    pub(crate) principal: String,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(message, optional, tag = "2")]
    pub(crate) http: Option<HttpRequest>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(map = "string, string", tag = "3")]
    pub(crate) headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    pub(crate) path: String,
    #[prost(string, tag = "5")]
    pub(crate) host: String,
    #[prost(string, tag = "6")]
    pub(crate) scheme: String,
    #[prost(message, optional, tag = "13")]
    pub(crate) header_map: Option<HeaderMap>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderMap {
    #[prost(message, repeated, tag = "1")]
    pub(crate) headers: Vec<HeaderValue>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValue {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) raw_value: Vec<u8>,
}
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied: Option<Denied>,
    #[prost(message, optional, tag = "3")]
    ok: Option<Allowed>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Denied {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    body: String,
}
#[derive(Clone, PartialEq, prost::Message)]
struct Allowed {
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    headers_to_remove: Vec<String>,
}
#[derive(Clone, PartialEq, prost::Message)]
struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    header: Option<HeaderValue>,
    #[prost(int32, tag = "3")]
    append_action: i32,
}

/// What the sidecar said to Envoy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Said {
    /// It may pass with these headers set and those removed.
    Pass { set: Vec<(String, String)>, removed: Vec<String> },
    /// It may not.
    Denied { status: i32, challenge: Option<String> },
    /// The call failed.
    Failed(tonic::Code),
}

impl Said {
    pub(crate) fn denied(status: i32, challenge: &str) -> Self {
        let challenge = (!challenge.is_empty()).then(|| challenge.to_owned());
        Self::Denied { status, challenge }
    }

    /// The one answer for a token that is not good, whatever is wrong with it.
    pub(crate) fn invalid_token() -> Self {
        Self::denied(401, "Bearer error=\"invalid_token\"")
    }

    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Pass { .. })
    }

    pub(crate) fn of(answer: Result<CheckResponse, tonic::Status>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return Self::Failed(status.code()),
        };
        let code = answer.status.expect("a status").code;
        match (answer.ok, answer.denied) {
            (Some(ok), None) => {
                assert_eq!(code, 0);
                Self::Pass { set: headers(ok.headers), removed: ok.headers_to_remove }
            }
            (None, Some(denied)) => {
                let status = denied.status.expect("a status").code;
                assert_eq!(code, if status == 401 { 16 } else { 7 });
                let headers = headers(denied.headers);
                assert!(headers.contains(&("cache-control".into(), "no-store".into())));
                let challenge = headers.into_iter().find(|(name, _)| name == "www-authenticate");
                Self::Denied { status, challenge: challenge.map(|(_, value)| value) }
            }
            other => panic!("neither yes nor no: {other:?}"),
        }
    }
}

fn headers(options: Vec<HeaderValueOption>) -> Vec<(String, String)> {
    let header = |option: HeaderValueOption| {
        // OVERWRITE_IF_EXISTS_OR_ADD: what the client sent under that name goes.
        assert_eq!(option.append_action, 2);
        let header = option.header.expect("a header");
        (header.key, header.value)
    };
    options.into_iter().map(header).collect()
}

/// A question about a request.
pub(crate) fn question(method: &str, path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let pairs = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let http = HttpRequest {
        id: "1".into(),
        method: method.into(),
        path: path.into(),
        host: "orders.test".into(),
        scheme: "https".into(),
        headers: pairs.chain([(":path".into(), path.into())]).collect(),
        header_map: None,
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer { principal: "spiffe://test/ns/shop/sa/web".into() }),
            request: Some(Request { http: Some(http) }),
            context_extensions: HashMap::from([("virtual_host".into(), "orders".into())]),
        }),
    }
}

/// Sends bytes as they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, dst: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        dst.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, tonic::Status> {
        let length = src.remaining();
        Ok(Some(src.copy_to_bytes(length).to_vec()))
    }
}

/// A connection to a gRPC server on a Unix socket.
pub(crate) async fn unix_channel(path: PathBuf) -> Channel {
    let connect = move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    };
    let endpoint = Endpoint::from_static("http://sidecar");
    endpoint.connect_with_connector(tower::service_fn(connect)).await.expect("it listens")
}

/// The answer of a sidecar to a question of these bytes, if the call did not fail.
pub(crate) async fn ask(channel: &Channel, bytes: Vec<u8>) -> Result<CheckResponse, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("connected");
    let path = http::uri::PathAndQuery::from_static("/envoy.service.auth.v3.Authorization/Check");
    let answer = client.unary(tonic::Request::new(bytes), path, Bytes).await;
    answer.map(|answer| CheckResponse::decode(&*answer.into_inner()).expect("it decodes"))
}

/// Whether a request may pass.
pub(crate) async fn passes(channel: &Channel, bytes: Vec<u8>) -> bool {
    Said::of(ask(channel, bytes).await).passes()
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) verifier: Verifier,
    pub(crate) envoy: Channel,
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<DrainSummary>,
    forward_auth: std::net::SocketAddr,
    ops: PathBuf,
    pub(crate) directory: TempDir,
}

/// A configuration from a file of rules and flags.
pub(crate) fn config(
    directory: &std::path::Path,
    rules: &str,
    flags: &[(&str, &str)],
) -> SidecarConfig {
    let file = directory.join("rules.toml");
    std::fs::write(&file, rules).expect("written");
    let ext_authz = format!("unix://{}", directory.join("authz.sock").display());
    let ops = format!("unix://{}", directory.join("ops.sock").display());
    let usual = [
        ("sidecar.issuer", ISSUER),
        ("sidecar.audience", "orders"),
        ("sidecar.ext_authz", &ext_authz),
        ("sidecar.forward_auth", "127.0.0.1:0"),
        ("sidecar.ops", &ops),
    ];
    let flags = usual.iter().chain(flags);
    let flags = flags.map(|(key, value)| ("--set".into(), (*key).into(), (*value).into()));
    let sources =
        Sources { dev: false, file: Some(file), environment: Vec::new(), flags: flags.collect() };
    load(&sources, None).expect("a good configuration")
}

impl Sidecar {
    /// Beside a workload called `orders`, following `server`, ready.
    pub(crate) async fn beside(server: &Server, rules: &str, flags: &[(&str, &str)]) -> Self {
        let client = server.powerful("sidecar").await;
        let sidecar = Self::start(server.grpc, client, rules, flags).await;
        timeout(PATIENCE, sidecar.verifier.synced()).await.expect("it follows");
        sidecar
    }

    /// The same, not yet ready.
    pub(crate) async fn start(
        server: std::net::SocketAddr,
        client: pb::ClientAuthentication,
        rules: &str,
        flags: &[(&str, &str)],
    ) -> Self {
        let server = Endpoint::from_shared(format!("http://{server}")).expect("a URL");
        Self::with(server, Some(client), rules, flags).await
    }

    /// The same on a server that is reached in any way.
    pub(crate) async fn with(
        server: impl Into<Upstream>,
        client: Option<pb::ClientAuthentication>,
        rules: &str,
        flags: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = config(directory.path(), rules, flags);
        let options = SidecarOptions { config, server: server.into(), client };
        let bound: BoundSidecar = build(options).await.expect("it starts");
        let ext_authz = bound.ext_authz.clone().expect("an address");
        let Some(Address::Tcp(forward_auth)) = bound.forward_auth else { panic!("no port") };
        let (verifier, shutdown) = (bound.verifier.clone(), bound.shutdown.clone());
        let task = tokio::spawn(bound.serve());
        let ops = directory.path().join("ops.sock");
        let envoy = match ext_authz {
            Address::Unix(path) => unix_channel(path).await,
            Address::Tcp(address) => connect(address).await,
        };
        Self { verifier, envoy, shutdown, task, forward_auth, ops, directory }
    }

    /// Drains and stops.
    pub(crate) async fn stop(self) -> DrainSummary {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.expect("it ends").expect("without a panic")
    }

    /// What the sidecar says to a question of these bytes.
    pub(crate) async fn check_bytes(&self, bytes: Vec<u8>) -> Said {
        Said::of(ask(&self.envoy, bytes).await)
    }

    /// What the sidecar says to Envoy about a request.
    pub(crate) async fn check(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Said {
        self.check_bytes(question(method, path, headers).encode_to_vec()).await
    }

    /// The same with a token.
    pub(crate) async fn check_token(&self, method: &str, path: &str, token: &str) -> Said {
        self.check(method, path, &[("authorization", &format!("Bearer {token}"))]).await
    }

    /// What the sidecar says over HTTP: the status and the head, in lower case. `head` is the lines after
    /// the request line, as bytes.
    pub(crate) async fn ask(&self, path: &str, head: &[u8]) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.forward_auth).await.expect("it listens");
        let (status, head, _) = exchange(stream, path, head).await;
        (status, head)
    }

    /// What `GET path` says on the listener for metrics and probes.
    pub(crate) async fn ops(&self, path: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.ops).await.expect("it listens");
        let (status, _, body) = exchange(stream, path, b"").await;
        (status, body)
    }
}

async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    path: &str,
    head: &[u8],
) -> (u16, String, String) {
    let mut request =
        format!("GET {path} HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\n").into_bytes();
    request.extend_from_slice(head);
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// A request as Traefik and Caddy pass it on.
pub(crate) fn forwarded(method: &str, uri: &str, token: Option<&str>) -> Vec<u8> {
    let mut head = format!("x-forwarded-method: {method}\r\nx-forwarded-uri: {uri}\r\n");
    if let Some(token) = token {
        head += &format!("authorization: Bearer {token}\r\n");
    }
    head.into_bytes()
}

/// Waits until something is so; it is looked at again and again because nobody tells.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
