//! An agent in this process, a way to its server that can be turned, and who watches.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use avouch::agent::{Agent, Unfit};
use avouch::app::agent::{AgentOptions, BoundAgent, build};
use avouch::client::watch::{Watch, WatchEvent, WatchSettings};
use avouch::domain::address::Address;
use avouch::domain::entropy::SeededEntropy;
use avouch::listen::listener::DrainSummary;
use avouch::pb::v1;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::watch_revocations_response::Frame;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::support::serve::endpoint;

/// Longer than anything here takes; a test that waits for it has failed.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// An agent and where it is.
pub(super) struct Rig {
    pub(super) agent: Arc<Agent>,
    pub(super) socket: PathBuf,
    pub(super) ops: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<DrainSummary, Unfit>>,
    _directory: Option<TempDir>,
}

/// An agent for the server at `server`, changed by `edit`.
pub(super) async fn agent(server: SocketAddr, edit: impl FnOnce(&mut AgentOptions)) -> Rig {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    Rig { _directory: Some(directory), ..agent_at(&socket, server, edit).await }
}

/// The same on this socket.
pub(super) async fn agent_at(
    socket: &Path,
    server: SocketAddr,
    edit: impl FnOnce(&mut AgentOptions),
) -> Rig {
    let mut options = AgentOptions::new(Address::Unix(socket.to_owned()), endpoint(server));
    options.ops = Some("127.0.0.1:0".parse().expect("an address"));
    edit(&mut options);
    let bound: BoundAgent = build(options).await.expect("it binds");
    let (agent, shutdown) = (Arc::clone(&bound.agent), bound.shutdown.clone());
    let Some(Address::Tcp(ops)) = bound.ops else { panic!("an ops listener") };
    let task = tokio::spawn(bound.serve());
    Rig { agent, socket: socket.to_owned(), ops, shutdown, task, _directory: None }
}

impl Rig {
    /// Waits for its first set.
    pub(super) async fn synced(self) -> Self {
        timeout(LONG, self.agent.synced()).await.expect("the set is complete in time");
        self
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let url = format!("unix://{}", self.socket.display());
        Endpoint::from_shared(url).expect("a URL")
    }

    pub(super) async fn client(&self) -> RevocationServiceClient<Channel> {
        RevocationServiceClient::new(self.endpoint().connect().await.expect("it listens"))
    }

    /// A stream through the agent.
    pub(super) async fn watch(&self, resume_after: Option<v1::Cursor>) -> Frames {
        Frames::open(self.client().await, resume_after).await
    }

    /// A client that follows through the agent.
    pub(super) fn follow(&self) -> Watch {
        let settings = WatchSettings {
            heartbeat: Duration::from_millis(100),
            ..WatchSettings::new(vec![self.endpoint()])
        };
        Watch::new(settings, Arc::new(SeededEntropy::new(1)))
    }

    /// Drains and stops.
    pub(super) async fn stop(self) -> Result<DrainSummary, Unfit> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Waits for its end.
    pub(super) async fn ended(self) -> Result<DrainSummary, Unfit> {
        timeout(LONG, self.task).await.expect("it ends").expect("without a panic")
    }

    /// Waits until everything up to here is passed on.
    pub(super) async fn passed(&self, revision: u64) {
        crate::verifier::until("the agent has it", || {
            self.agent.status().cursor.is_some_and(|cursor| cursor.revision.0 >= revision)
        })
        .await;
    }
}

/// The frames of a stream, and what they said last.
pub(super) struct Frames {
    client: RevocationServiceClient<Channel>,
    frames: Streaming<v1::WatchRevocationsResponse>,
    pub(super) start: v1::WatchStart,
}

/// The frames between the first and the last.
pub(super) type Between = Vec<Frame>;

impl Frames {
    pub(super) async fn open(
        mut client: RevocationServiceClient<Channel>,
        resume_after: Option<v1::Cursor>,
    ) -> Self {
        let request = v1::WatchRevocationsRequest {
            resume_after,
            heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
            ..Default::default()
        };
        let frames = client.watch_revocations(request).await.expect("it begins").into_inner();
        let mut frames = Self { client, frames, start: v1::WatchStart::default() };
        let first = frames.next().await.expect("a frame");
        let Frame::Start(start) = first else { panic!("{first:?}") };
        frames.start = start;
        frames
    }

    pub(super) async fn next(&mut self) -> Result<Frame, Status> {
        let message = timeout(LONG, self.frames.message()).await.expect("a frame in time")?;
        message.and_then(|it| it.frame).ok_or_else(|| Status::ok("the end"))
    }

    /// Reads up to the first that is `wanted`; gives what came before, and it.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> (Between, Frame) {
        let found = async {
            let mut between = Vec::new();
            loop {
                let frame = self.next().await.expect("the stream goes on");
                if wanted(&frame) {
                    return (between, frame);
                }
                between.push(frame);
            }
        };
        timeout(LONG, found).await.expect("the frame in time")
    }

    pub(super) async fn synced(&mut self) -> (Between, v1::Synced) {
        match self.until(|frame| matches!(frame, Frame::Synced(_))).await {
            (between, Frame::Synced(synced)) => (between, synced),
            other => panic!("{other:?}"),
        }
    }

    /// The revocations up to this revision.
    pub(super) async fn revocations(&mut self, until: u64) -> Vec<v1::Revocation> {
        let mut revocations: Vec<v1::Revocation> = Vec::new();
        while revocations.last().is_none_or(|last| last.revision < until) {
            let (_, frame) = self.until(|frame| matches!(frame, Frame::Batch(_))).await;
            let Frame::Batch(batch) = frame else { panic!("{frame:?}") };
            revocations.extend(batch.revocations);
        }
        revocations
    }

    pub(super) async fn heartbeat(&mut self) -> v1::Heartbeat {
        match self.until(|frame| matches!(frame, Frame::Heartbeat(_))).await {
            (_, Frame::Heartbeat(heartbeat)) => heartbeat,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn acknowledge(&mut self, applied: v1::Cursor) {
        let ack = v1::AckRevocationsRequest {
            watch_id: self.start.watch_id.clone(),
            applied: Some(applied),
        };
        self.client.ack_revocations(ack).await.expect("it is taken");
    }
}

/// The revisions of what batches showed.
pub(super) fn revisions(frames: &[Frame]) -> Vec<u64> {
    let of = |frame: &Frame| match frame {
        Frame::Batch(batch) => batch.revocations.iter().map(|it| it.revision).collect(),
        _ => Vec::new(),
    };
    frames.iter().flat_map(of).collect()
}

pub(super) async fn event_where(
    watch: &mut Watch,
    wanted: impl Fn(&WatchEvent) -> bool,
) -> WatchEvent {
    let found = async {
        loop {
            let event = watch.next().await;
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(LONG, found).await.expect("the event in time")
}

pub(super) const fn is_synced(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Synced(_))
}

/// A way to one server or another. What stands is cut whenever it is turned.
pub(super) struct Switch {
    pub(super) address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
}

impl Switch {
    pub(super) async fn to(server: impl Into<Option<SocketAddr>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (to, turned) = watch::channel(server.into());
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                tokio::spawn(pass_on(peer, turned.clone()));
            }
        });
        Self { address, to }
    }

    /// To another server, or to none.
    pub(super) fn turn(&self, server: impl Into<Option<SocketAddr>>) {
        self.to.send_replace(server.into());
    }
}

async fn pass_on(mut peer: TcpStream, mut turned: watch::Receiver<Option<SocketAddr>>) {
    let Some(to) = *turned.borrow_and_update() else { return };
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut peer, &mut server) => {}
        _ = turned.changed() => {}
    }
}
