//! An IdentityService that does what a test tells it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::identity_service_server::{IdentityService, IdentityServiceServer};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::ServiceExt as _;

/// What to do with a call.
#[derive(Clone)]
pub(super) enum Step {
    /// Answer.
    Answer,
    /// Fail like this.
    Fail(Status),
    /// Close the connection without an answer.
    Cut,
    /// Never answer.
    Hang,
    /// Answer when this is cancelled.
    After(CancellationToken),
}

/// A call that came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) rpc: &'static str,
    /// How long the client listens.
    pub(super) timeout: Duration,
    /// The refresh token that was presented.
    pub(super) refresh_token: String,
}

type Play = Box<dyn Fn(usize) -> Step + Send + Sync>;

struct Script {
    play: Mutex<Play>,
    seen: watch::Sender<Vec<Seen>>,
    answers: AtomicUsize,
}

/// A running one. It is gone when this is dropped.
pub(super) struct Scripted {
    script: Arc<Script>,
    pub(super) address: SocketAddr,
    _running: DropGuard,
}

impl Scripted {
    /// `play` is asked with the number of the call, from 0.
    pub(super) async fn start(play: impl Fn(usize) -> Step + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (play, seen, answers) =
            (Mutex::new(Box::new(play) as Play), watch::Sender::default(), 0.into());
        let script = Arc::new(Script { play, seen, answers });
        let running = CancellationToken::new();
        let server = Server { script: Arc::clone(&script), running: running.clone() };
        tokio::spawn(running.clone().run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, server.clone()));
            }
        }));
        Self { script, address, _running: running.drop_guard() }
    }

    /// From now on, another play. The calls are counted on.
    pub(super) fn now(&self, play: impl Fn(usize) -> Step + Send + Sync + 'static) {
        *self.script.play.lock().expect("not poisoned") = Box::new(play);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.script.seen.borrow().clone()
    }

    pub(super) fn calls(&self) -> usize {
        self.script.seen.borrow().len()
    }

    /// Waits until that many calls came.
    pub(super) async fn saw(&self, calls: usize) {
        let mut seen = self.script.seen.subscribe();
        let seen = seen.wait_for(|seen| seen.len() >= calls);
        in_the_end(seen).await.expect("the script goes on");
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// For what must happen, so that a test that waits in vain fails: much longer than it ever takes.
pub(super) async fn in_the_end<F: Future>(it: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(120), it).await.expect("it happens in the end")
}

/// A status with what avouch puts into it.
pub(super) fn status(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "avouch", HashMap::new());
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, "as told", details)
}

#[derive(Clone)]
struct Server {
    script: Arc<Script>,
    running: CancellationToken,
}

async fn connection(stream: TcpStream, server: Server) {
    let close = server.running.child_token();
    let handle = close.clone();
    let service = IdentityServiceServer::new(server).map_request(
        move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(handle.clone());
            request
        },
    );
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        _ = connection => {}
        () = close.cancelled() => {}
    }
}

impl Server {
    async fn play<Q>(
        &self,
        rpc: &'static str,
        request: &Request<Q>,
        refresh_token: &str,
    ) -> Result<pb::TokenSet, Status> {
        let timeout = request.metadata().get("grpc-timeout").and_then(|it| it.to_str().ok());
        let refresh_token = refresh_token.to_owned();
        let timeout = timeout.map(read_timeout).unwrap_or_default();
        let mut number = 0;
        self.script.seen.send_modify(|seen| {
            number = seen.len();
            seen.push(Seen { rpc, timeout, refresh_token });
        });
        let step = (self.script.play.lock().expect("not poisoned"))(number);
        match step {
            Step::Answer => {}
            Step::Fail(status) => return Err(status),
            Step::Cut => {
                request.extensions().get::<CancellationToken>().expect("a connection").cancel();
                std::future::pending().await
            }
            Step::Hang => std::future::pending().await,
            Step::After(gate) => gate.cancelled().await,
        }
        let n = self.script.answers.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(pb::TokenSet {
            access_token: format!("access-{n}"),
            refresh_token: if rpc == "Refresh" { format!("refresh-{n}") } else { String::new() },
            expires_in_seconds: 300,
            ..Default::default()
        })
    }
}

/// A number and its unit, as gRPC has it.
fn read_timeout(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number = number.parse().expect("a number");
    match unit {
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        other => panic!("the unit {other}"),
    }
}

#[tonic::async_trait]
impl IdentityService for Server {
    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let tokens = Some(self.play("Authenticate", &request, "").await?);
        Ok(Response::new(pb::AuthenticateResponse { tokens }))
    }

    async fn refresh(
        &self,
        request: Request<pb::RefreshRequest>,
    ) -> Result<Response<pb::RefreshResponse>, Status> {
        let token = request.get_ref().refresh_token.clone();
        let tokens = Some(self.play("Refresh", &request, &token).await?);
        Ok(Response::new(pb::RefreshResponse { tokens }))
    }

    async fn revoke(
        &self,
        request: Request<pb::RevokeRequest>,
    ) -> Result<Response<pb::RevokeResponse>, Status> {
        self.play("Revoke", &request, "").await?;
        Ok(Response::new(pb::RevokeResponse::default()))
    }

    async fn introspect(
        &self,
        request: Request<pb::IntrospectRequest>,
    ) -> Result<Response<pb::IntrospectResponse>, Status> {
        self.play("Introspect", &request, "").await?;
        Ok(Response::new(pb::IntrospectResponse::default()))
    }

    async fn get_key_set(
        &self,
        request: Request<pb::GetKeySetRequest>,
    ) -> Result<Response<pb::GetKeySetResponse>, Status> {
        self.play("GetKeySet", &request, "").await?;
        Ok(Response::new(pb::GetKeySetResponse::default()))
    }
}
