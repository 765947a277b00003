//! What stands around Envoy: avouch, its sidecar, a workload that answers at once, and who asks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tonic::body::Body;

use crate::{Failure, appears};

const AVOUCH: &str = env!("CARGO_BIN_EXE_avouch");

/// `avouch serve` and `avouch sidecar`. They end with this.
pub(crate) struct Avouch {
    _server: Child,
    _sidecar: Child,
    /// Where the public keys are.
    pub(crate) public: String,
    pub(crate) ext_authz: PathBuf,
    /// An access token.
    pub(crate) token: String,
}

impl Avouch {
    pub(crate) async fn start(dir: &Path) -> Result<Self, Failure> {
        let data = dir.join("data");
        let in_data = |name: &str| data.join(name).display().to_string();
        let server = spawn(&[
            "serve",
            "--dev",
            "--set=server.listen=127.0.0.1:0",
            "--set=server.public_listen=127.0.0.1:0",
            "--set=server.ops_listen=127.0.0.1:0",
            "--set=store.min_free_bytes=0",
            "--set=tokens.access_lifetime=1h",
            &format!("--set=store.path={}", data.display()),
        ])?;
        let addresses: serde_json::Value =
            serde_json::from_str(&appears(&data.join("addresses.json")).await?)?;
        let address = |name: &str| addresses[name].as_str().unwrap_or_default().to_owned();
        let (url, public) = (format!("http://{}", address("grpc")), address("public"));
        let path = |name: &str| dir.join(name).display().to_string();
        run(&[
            "client",
            "create",
            "sidecar",
            "--audience",
            "avouch",
            "--grant",
            "watch",
            "--grant",
            "introspect",
            "--save",
            &path("sidecar.json"),
            "--server",
            &url,
            "--credentials",
            &in_data("admin-client.json"),
        ])
        .await?;
        run(&[
            "login",
            "--username",
            "ada",
            "--password-file",
            &in_data("ada.password"),
            "--save",
            &path("tokens.json"),
            "--server",
            &url,
            "--credentials",
            &in_data("login-client.json"),
        ])
        .await?;
        let tokens: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path("tokens.json"))?)?;
        let token = tokens["access_token"].as_str().ok_or("no access token")?.to_owned();
        std::fs::write(path("rules.toml"), include_str!("../../docs/sidecar/rules.toml"))?;
        let ext_authz = dir.join("authz.sock");
        let sidecar = spawn(&[
            "sidecar",
            "--server",
            &url,
            "--issuer",
            &format!("http://{public}"),
            "--credentials",
            &path("sidecar.json"),
            "--rules",
            &path("rules.toml"),
            "--ext-authz",
            &format!("unix://{}", ext_authz.display()),
            "--ops",
            "127.0.0.1:0",
        ])?;
        Ok(Self { _server: server, _sidecar: sidecar, public, ext_authz, token })
    }
}

fn spawn(arguments: &[&str]) -> Result<Child, Failure> {
    let mut command = Command::new(AVOUCH);
    command.args(arguments).env_clear().env("AVOUCH_LOG_LEVEL", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command.kill_on_drop(true).spawn()?)
}

async fn run(arguments: &[&str]) -> Result<(), Failure> {
    let output = Command::new(AVOUCH).args(arguments).env_clear().output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Answers everything at once with nothing.
pub(crate) async fn workload() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let nothing =
                |_| std::future::ready(Ok::<_, Infallible>(http::Response::new(Body::empty())));
            let service = hyper::service::service_fn(nothing);
            let builder = hyper::server::conn::http1::Builder::new();
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

/// A connection to Envoy that is kept.
pub(crate) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, token: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET /orders/7 HTTP/1.1\r\nhost: workload\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        Ok(Self { stream, request: request.into_bytes(), answer: vec![0; 16 * 1024] })
    }

    /// One request, which must be let through.
    pub(crate) async fn request(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.request).await?;
        let mut length = 0;
        // The workload's answer has no body.
        while !self.answer[..length].ends_with(b"\r\n\r\n") {
            let read = self.stream.read(&mut self.answer[length..]).await?;
            if read == 0 {
                return Err("the connection was closed".into());
            }
            length += read;
        }
        if self.answer.starts_with(b"HTTP/1.1 200 ") {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&self.answer[..length]).into_owned().into())
    }
}
