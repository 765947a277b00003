//! RevocationService: the stream itself, acknowledgements, and the list.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_util::future::BoxFuture;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};
use v1::revocation_service_server::{RevocationService, RevocationServiceServer};

use super::convert::revocation::{entry, read_cursor};
use super::frame::{self, FrameCodec};
use super::status;
use crate::domain::caller::{Caller, Identity, Resource, Right};
use crate::domain::clock::Timestamp;
use crate::domain::event::{Entry, Event, Target};
use crate::domain::ids::{ClientId, Cursor, Revision};
use crate::domain::scope::MAX_NAMES;
use crate::feed::filter::Filter;
use crate::feed::subscription::Subscription;
use crate::feed::{Close, Feed, Revoked, Subscribe, WatchError};
use crate::pb::v1;

/// What is served here.
const WATCH: &str = "/avouch.v1.RevocationService/WatchRevocations";
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);
const HEARTBEATS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const DEFAULT_FRAME_BYTES: u32 = 256 * 1024;
const FRAME_BYTES: (u32, u32) = (1024, 1024 * 1024);
const MAX_SUBSCRIBER_BYTES: usize = 256;

/// Who calls, and how long that holds.
#[derive(Clone)]
pub struct WatchCaller {
    /// The caller and its rights.
    pub caller: Caller,
    /// When its credential expires.
    pub valid_until: Option<Timestamp>,
    /// Says whether its credential was taken back.
    pub revoked: Option<Revoked>,
    /// Ends its connection, if a stream on it takes nothing any more.
    pub close: Option<Close>,
}

/// Says who calls.
#[tonic::async_trait]
pub trait Authorize: Send + Sync + 'static {
    /// The caller of a request with these extensions and this metadata. Says who it is, not whether
    /// it may.
    ///
    /// # Errors
    /// UNAUTHENTICATED when a credential is no good.
    async fn watch_caller(
        &self,
        extensions: &http::Extensions,
        metadata: &MetadataMap,
    ) -> Result<WatchCaller, Status>;
}

/// Gives the feed of the moment.
pub type CurrentFeed = Arc<dyn Fn() -> Result<Arc<Feed>, WatchError> + Send + Sync>;

/// The handlers of RevocationService.
struct Handlers {
    feed: CurrentFeed,
    authorize: Arc<dyn Authorize>,
}

impl Handlers {
    async fn caller<T: Sync>(&self, request: &Request<T>) -> Result<WatchCaller, Status> {
        let caller = self.authorize.watch_caller(request.extensions(), request.metadata()).await?;
        if caller.caller.has(Right::Watch) { Ok(caller) } else { Err(status::denied()) }
    }

    fn feed(&self) -> Result<Arc<Feed>, Status> {
        (self.feed)().map_err(status::watch)
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Frames>, Status> {
        let caller = self.caller(&request).await?;
        let subscribe = subscribe(request.into_inner(), caller)?;
        let feed = self.feed()?;
        let subscription = feed.subscribe(subscribe).await.map_err(status::watch)?;
        Ok(Response::new(frames(subscription)))
    }
}

/// The frames of one stream. Nothing stands between them and the connection: what it does not take
/// is not made.
type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

fn frames(subscription: Subscription) -> Frames {
    Box::pin(futures_util::stream::unfold(Some(subscription), |subscription| async move {
        let mut subscription = subscription?;
        match subscription.next().await {
            Ok(Some(item)) => Some((Ok(frame::item(item)), Some(subscription))),
            Ok(None) => None,
            Err(error) => Some((Err(status::watch(error)), None)),
        }
    }))
}

fn subscribe(
    request: v1::WatchRevocationsRequest,
    caller: WatchCaller,
) -> Result<Subscribe, Status> {
    let resume_after = match &request.resume_after {
        Some(cursor) => Some(
            read_cursor(cursor)
                .map_err(|error| status::field("resume_after.log_id", &error.to_string()))?,
        ),
        None => None,
    };
    let heartbeat = match request.heartbeat_interval {
        None => DEFAULT_HEARTBEAT,
        Some(interval) => Duration::try_from(interval)
            .map_err(|_| status::field("heartbeat_interval", "must not be negative"))?
            .clamp(HEARTBEATS.0, HEARTBEATS.1),
    };
    let max_frame_bytes = match request.max_frame_bytes {
        0 => DEFAULT_FRAME_BYTES,
        bytes => bytes.clamp(FRAME_BYTES.0, FRAME_BYTES.1),
    };
    if request.subscriber_id.len() > MAX_SUBSCRIBER_BYTES {
        return Err(status::field("subscriber_id", "is too long"));
    }
    let asked = filter(request.filter.unwrap_or_default())?;
    Ok(Subscribe {
        resume_after,
        filter: asked.narrowed_to(&caller.caller),
        heartbeat,
        max_frame_bytes: usize::try_from(max_frame_bytes).unwrap_or(usize::MAX),
        subscriber: request.subscriber_id,
        owner: owner(&caller.caller),
        valid_until: caller.valid_until,
        revoked: caller.revoked,
        close: caller.close,
    })
}

fn filter(filter: v1::RevocationFilter) -> Result<Filter, Status> {
    const AUDIENCES: &str = "filter.audiences";
    const CLIENTS: &str = "filter.client_ids";
    if filter.audiences.len() > MAX_NAMES {
        return Err(status::field(AUDIENCES, "has too many values"));
    }
    if filter.client_ids.len() > MAX_NAMES {
        return Err(status::field(CLIENTS, "has too many values"));
    }
    let audiences = crate::domain::scope::Names::new(&filter.audiences)
        .map_err(|error| status::field(AUDIENCES, &error.to_string()))?;
    let clients = filter.client_ids.iter().map(|id| id.parse::<ClientId>());
    let clients = clients
        .collect::<Result<_, _>>()
        .map_err(|error| status::field(CLIENTS, &error.to_string()))?;
    Ok(Filter::new(audiences.iter().map(Box::from).collect(), clients))
}

/// The name under which a caller's watchers count together.
fn owner(caller: &Caller) -> String {
    match &caller.identity {
        Identity::Anonymous | Identity::System => String::new(),
        Identity::Certificate(names) => format!("certificate {}", names.join(" ")),
        Identity::Client(client) => format!("client {client}"),
        Identity::Subject { subject, client, .. } => format!("subject {subject} client {client}"),
    }
}

#[tonic::async_trait]
impl RevocationService for Handlers {
    type WatchRevocationsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchRevocationsResponse, Status>> + Send>>;

    /// Never reached: [`RevocationServer`] serves the path itself, with frames that are bytes
    /// already.
    async fn watch_revocations(
        &self,
        _: Request<v1::WatchRevocationsRequest>,
    ) -> Result<Response<Self::WatchRevocationsStream>, Status> {
        Err(Status::unimplemented("served elsewhere"))
    }

    async fn ack_revocations(
        &self,
        request: Request<v1::AckRevocationsRequest>,
    ) -> Result<Response<v1::AckRevocationsResponse>, Status> {
        let caller = self.caller(&request).await;
        let ack = request.into_inner();
        // A revocation may take the credential of the very watcher that is asked for it. Its stream is
        // there a little longer, and the name of that stream is known to nobody else.
        let owner = match caller {
            Ok(caller) => owner(&caller.caller),
            Err(status) => self.feed()?.owner_of(&ack.watch_id).ok_or(status)?,
        };
        let Some(applied) = &ack.applied else {
            return Err(status::field("applied", "must be set"));
        };
        let applied = read_cursor(applied)
            .map_err(|error| status::field("applied.log_id", &error.to_string()))?;
        self.feed()?.ack(&ack.watch_id, &owner, applied);
        Ok(Response::new(v1::AckRevocationsResponse {}))
    }

    async fn list_revocations(
        &self,
        request: Request<v1::ListRevocationsRequest>,
    ) -> Result<Response<v1::ListRevocationsResponse>, Status> {
        /// How many pages of the log one call looks at, however few of them the caller may see.
        const PAGES: usize = 16;
        let caller = self.caller(&request).await?.caller;
        let request = request.into_inner();
        let limit = match request.page_size {
            ..0 => return Err(status::field("page_size", "must not be negative")),
            0 => 100,
            size => usize::try_from(size).unwrap_or(1).min(1000),
        };
        let feed = self.feed()?;
        let head = feed.head();
        let mut after = read_page_token(&request.page_token, head)?;
        let mut revocations = Vec::new();
        let mut more = true;
        for _ in 0..PAGES {
            let listed = feed.list(after, limit).map_err(status::store)?;
            let (page, page_more) = listed.ok_or_else(status::no_log)?;
            more = page_more;
            for found in &page.entries {
                if revocations.len() == limit {
                    more = true;
                    break;
                }
                after = found.revision;
                if visible(&caller, found) {
                    revocations.extend(entry(found));
                }
            }
            if revocations.len() == limit || !more {
                break;
            }
            after = after.max(page.through);
        }
        let next_page_token = if more {
            Cursor { log_id: head.log_id, revision: after }.to_string()
        } else {
            String::new()
        };
        Ok(Response::new(v1::ListRevocationsResponse { revocations, next_page_token }))
    }
}

fn read_page_token(token: &str, head: Cursor) -> Result<Revision, Status> {
    if token.is_empty() {
        return Ok(Revision(0));
    }
    let cursor = token.parse::<Cursor>().ok().filter(|cursor| cursor.log_id == head.log_id);
    cursor
        .map(|cursor| cursor.revision)
        .ok_or_else(|| status::field("page_token", "is not a token of this list"))
}

/// Whether the caller may see an entry of the list. Unlike on the stream, what is not a token or a
/// session is shown only to who may watch it: nobody's safety hangs on the list.
fn visible(caller: &Caller, entry: &Entry) -> bool {
    let Event::Revocation(revocation) = &entry.event else { return false };
    let resource = match &revocation.target {
        Target::Token { client, subject, audience, .. }
        | Target::Session { client, subject, audience, .. } => {
            Resource { audience: Some(audience), client: Some(client), subject: Some(subject) }
        }
        Target::Subject { id, .. } => Resource { subject: Some(id), ..Resource::default() },
        Target::Client { id, .. } => Resource { client: Some(id), ..Resource::default() },
        Target::Everything { .. } | Target::Key { .. } => return true,
    };
    caller.may(Right::Watch, resource)
}

/// Serves RevocationService: the stream with frames that are encoded once for all watchers, the
/// rest as tonic generated it.
#[derive(Clone)]
pub struct RevocationServer {
    handlers: Arc<Handlers>,
    unary: RevocationServiceServer<Handlers>,
}

impl RevocationServer {
    /// Serves `feed` to whom `authorize` knows.
    pub fn new(feed: Arc<Feed>, authorize: Arc<dyn Authorize>) -> Self {
        Self::following(Arc::new(move || Ok(Arc::clone(&feed))), authorize)
    }

    /// Serves whatever feed there is at the time of a call.
    pub fn following(feed: CurrentFeed, authorize: Arc<dyn Authorize>) -> Self {
        let handlers = Arc::new(Handlers { feed, authorize });
        let unary = RevocationServiceServer::from_arc(Arc::clone(&handlers))
            .max_decoding_message_size(MAX_REQUEST_BYTES);
        Self { handlers, unary }
    }
}

/// Room for the largest filter.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

impl tonic::server::NamedService for RevocationServer {
    const NAME: &'static str = v1::revocation_service_server::SERVICE_NAME;
}

/// The stream as a tonic handler.
struct Watch(Arc<Handlers>);

impl ServerStreamingService<v1::WatchRevocationsRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = Frames;
    type Future = BoxFuture<'static, Result<Response<Frames>, Status>>;

    fn call(&mut self, request: Request<v1::WatchRevocationsRequest>) -> Self::Future {
        let handlers = Arc::clone(&self.0);
        Box::pin(async move { handlers.watch(request).await })
    }
}

impl<B> Service<http::Request<B>> for RevocationServer
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != WATCH {
            return Box::pin(self.unary.call(request));
        }
        let watch = Watch(Arc::clone(&self.handlers));
        Box::pin(async move {
            let codec = FrameCodec::<v1::WatchRevocationsRequest>::default();
            let mut grpc =
                tonic::server::Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.server_streaming(watch, request).await)
        })
    }
}
