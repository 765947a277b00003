//! A stream of revocations with as many entries as are asked for, so that the verifier is measured and
//! nothing else.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use avouch::domain::clock::{Clock as _, SystemClock, Timestamp};
use avouch::domain::entropy::Entropy as _;
use avouch::domain::ids::LogId;
use avouch::domain::view::{SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, bucket_end};
use avouch::pb::v1;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use v1::revocation_service_server::{RevocationService, RevocationServiceServer};
use v1::watch_revocations_response::Frame;

/// How many keys a chunk has: 256 KiB.
const CHUNK: usize = 32 * 1024;
/// How long a verifier hears nothing but heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Serves one set, and anew under another log whenever it is told to.
#[derive(Clone)]
pub(crate) struct Stub {
    key: v1::JsonWebKey,
    chunks: Arc<Vec<v1::PackedTargets>>,
    generation: watch::Sender<u64>,
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    let nanos = i32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds: i64::try_from(millis / 1000).unwrap_or(0), nanos }
}

impl Stub {
    /// So many entries: nine tokens in ten over the buckets of an hour, the rest sessions.
    pub(crate) fn new(entries: usize, key: v1::JsonWebKey, now: Timestamp) -> Self {
        let (tokens, sessions) = (entries - entries / 10, entries / 10);
        let mut chunks = Vec::new();
        let mut fill = |kind: v1::PackedKind, count: usize, width: u64| {
            let buckets = usize::try_from(3600 / width).unwrap_or(1);
            let mut left = count;
            for bucket in 0..buckets {
                let mut here = left / (buckets - bucket);
                left -= here;
                let end = bucket_end(now, width) + (bucket as u64 + 1) * width;
                while here > 0 {
                    let mut bytes = vec![0; here.min(CHUNK) * 8];
                    avouch::crypto::OsEntropy.fill(&mut bytes);
                    let keys = bytes
                        .chunks_exact(8)
                        .map(|it| u64::from_le_bytes(it.try_into().unwrap_or_default()));
                    chunks.push(v1::PackedTargets {
                        kind: kind.into(),
                        expire_time_seconds: end,
                        keys: keys.collect(),
                    });
                    here -= here.min(CHUNK);
                }
            }
        };
        fill(v1::PackedKind::Token, tokens, TOKEN_BUCKET_SECS);
        fill(v1::PackedKind::Session, sessions, SESSION_BUCKET_SECS);
        Self { key, chunks: Arc::new(chunks), generation: watch::Sender::new(1) }
    }

    /// Listens, and says where.
    pub(crate) async fn serve(&self) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let routes = tonic::service::Routes::new(RevocationServiceServer::new(self.clone()));
        tokio::spawn(async move { axum::serve(listener, routes.into_axum_router()).await });
        Ok(address)
    }

    /// Sends the whole set once more, as that of another log.
    pub(crate) fn reset(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn cursor(generation: u64) -> v1::Cursor {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&generation.to_be_bytes());
        v1::Cursor { log_id: LogId::from_bytes(id).to_string(), revision: generation }
    }

    /// The set as frames, up to `synced`.
    fn set(&self, generation: u64) -> impl Stream<Item = Frame> + Send + use<> {
        let chunks = Arc::clone(&self.chunks);
        let count = chunks.len();
        let snapshot = stream::iter(0..count).map(move |at| {
            Frame::Snapshot(v1::SnapshotChunk {
                packed: vec![chunks[at].clone()],
                ..Default::default()
            })
        });
        snapshot.chain(stream::once(async move {
            let now = Some(timestamp(SystemClock::default().now()));
            Frame::Synced(v1::Synced {
                through: Some(Self::cursor(generation)),
                as_of_time: now,
                send_time: now,
                digest: None,
            })
        }))
    }
}

#[tonic::async_trait]
impl RevocationService for Stub {
    type WatchRevocationsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchRevocationsResponse, Status>> + Send>>;

    async fn watch_revocations(
        &self,
        _: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        let first = *self.generation.borrow();
        let start = Frame::Start(v1::WatchStart {
            watch_id: "bench".to_owned(),
            head: Some(Self::cursor(first)),
            heartbeat_interval: prost_types::Duration::try_from(HEARTBEAT).ok(),
            ..Default::default()
        });
        let keys = Frame::KeySet(v1::KeySet {
            through: Some(Self::cursor(first)),
            keys: vec![self.key.clone()],
        });
        let began = stream::iter([start, keys]).chain(self.set(first));
        let stub = self.clone();
        let mut changes = self.generation.subscribe();
        changes.mark_unchanged();
        let rest = stream::unfold(changes, move |mut changes| {
            let stub = stub.clone();
            async move {
                let changed = tokio::time::timeout(HEARTBEAT / 2, changes.changed()).await.is_ok();
                let generation = *changes.borrow_and_update();
                let frames: Pin<Box<dyn Stream<Item = Frame> + Send>> = if changed {
                    let reset =
                        Frame::Reset(v1::Reset { reason: v1::ResetReason::LogChanged.into() });
                    Box::pin(stream::once(async { reset }).chain(stub.set(generation)))
                } else {
                    let now = Some(timestamp(SystemClock::default().now()));
                    let beat = Frame::Heartbeat(v1::Heartbeat {
                        through: Some(Self::cursor(generation)),
                        as_of_time: now,
                        send_time: now,
                        digest: None,
                    });
                    Box::pin(stream::once(async { beat }))
                };
                Some((frames, changes))
            }
        });
        let frames = began.chain(rest.flatten());
        let responses = frames.map(|frame| Ok(v1::WatchRevocationsResponse { frame: Some(frame) }));
        Ok(Response::new(Box::pin(responses)))
    }

    async fn ack_revocations(
        &self,
        _: Request<v1::AckRevocationsRequest>,
    ) -> Result<Response<v1::AckRevocationsResponse>, Status> {
        Ok(Response::new(v1::AckRevocationsResponse {}))
    }

    async fn list_revocations(
        &self,
        _: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsResponse>, Status> {
        Err(Status::unimplemented("there is no list here"))
    }
}
