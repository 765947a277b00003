//! The board of the replicas in etcd: leases, plain puts, and a watch over one prefix.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::{Request, Streaming};

use super::client::{CallError, meaning};
use super::core::Core;
use super::feed::fell_silent;
use super::member::Member;
use super::pb::event::EventType;
use super::pb::lease_client::LeaseClient;
use super::pb::request_op::Request as Op;
use super::pb::watch_client::WatchClient;
use super::pb::watch_request::RequestUnion;
use super::pb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::store::StoreError;
use crate::store::board::{Board, Change, Lease};
use crate::store::engine::KeyRange;

/// What the key of every note begins with.
const BOARD: &str = "!board/";
/// How long to wait before the board is read again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct EtcdBoard(pub(super) Arc<Core>);

impl EtcdBoard {
    fn at(&self, name: &str) -> Vec<u8> {
        self.0.keys.at(format!("{BOARD}{name}").as_bytes())
    }

    fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        self.0.keys.range(&KeyRange::prefix(format!("{BOARD}{prefix}").as_bytes()))
    }

    async fn write(&self, op: Op) -> Result<(), CallError> {
        let txn =
            TxnRequest { success: vec![RequestOp { request: Some(op) }], ..TxnRequest::default() };
        self.0.client.txn(txn, self.0.deadline()).await.map(drop)
    }
}

/// Whether etcd refused because there is no such lease.
fn is_no_lease(error: &CallError) -> bool {
    matches!(error, CallError::Refused(text) if text.contains("lease not found"))
}

#[async_trait]
impl Board for EtcdBoard {
    async fn lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let core = &self.0;
        let granted = core.client.call(core.deadline(), |channel, metadata| {
            let mut request = Request::new(LeaseGrantRequest { ttl: seconds, id: 0 });
            *request.metadata_mut() = metadata;
            async move { LeaseClient::new(channel).lease_grant(request).await }
        });
        let granted = granted.await.map_err(|error| core.noted(error))?;
        core.client.check(granted.header.as_ref(), 0).map_err(|error| core.noted(error))?;
        Ok(Lease(granted.id))
    }

    async fn keep(&self, lease: Lease) -> Result<bool, StoreError> {
        let core = &self.0;
        let kept = core.client.call(core.deadline(), |channel, metadata| {
            let once = tokio_stream::once(LeaseKeepAliveRequest { id: lease.0 });
            let mut request = Request::new(once);
            *request.metadata_mut() = metadata;
            async move {
                let answers = LeaseClient::new(channel).lease_keep_alive(request).await?;
                let (metadata, mut answers, extensions) = answers.into_parts();
                let answer = answers.message().await?.unwrap_or_default();
                Ok(tonic::Response::from_parts(metadata, answer, extensions))
            }
        });
        let kept = kept.await.map_err(|error| core.noted(error))?;
        Ok(kept.ttl > 0)
    }

    async fn end(&self, lease: Lease) -> Result<(), StoreError> {
        let core = &self.0;
        let ended = core.client.call(core.deadline(), |channel, metadata| {
            let mut request = Request::new(LeaseRevokeRequest { id: lease.0 });
            *request.metadata_mut() = metadata;
            async move { LeaseClient::new(channel).lease_revoke(request).await }
        });
        match ended.await {
            Ok(_) => Ok(()),
            Err(error) if is_no_lease(&error) => Ok(()),
            Err(error) => Err(core.noted(error)),
        }
    }

    async fn put(&self, name: &str, value: Vec<u8>, lease: Lease) -> Result<bool, StoreError> {
        let put = PutRequest { key: self.at(name).into(), value: value.into(), lease: lease.0 };
        match self.write(Op::RequestPut(put)).await {
            Ok(()) => Ok(true),
            Err(error) if is_no_lease(&error) => Ok(false),
            Err(error) => Err(self.0.noted(error)),
        }
    }

    async fn take_down(&self, prefix: &str) -> Result<(), StoreError> {
        let (key, range_end) = self.range(prefix);
        let delete = DeleteRangeRequest { key: key.into(), range_end: range_end.into() };
        self.write(Op::RequestDeleteRange(delete)).await.map_err(|error| self.0.noted(error))
    }

    fn follow(&self) -> mpsc::UnboundedReceiver<Change> {
        let (changes, receiver) = mpsc::unbounded_channel();
        let board = Self(Arc::clone(&self.0));
        tokio::spawn(async move {
            let gone = changes.clone();
            tokio::select! {
                () = gone.closed() => {}
                () = board.tell(&changes) => {}
            }
        });
        receiver
    }
}

impl EtcdBoard {
    /// Tells of everything, for good.
    async fn tell(&self, changes: &mpsc::UnboundedSender<Change>) {
        let mut next = 0_usize;
        loop {
            if let Err(error) = self.tell_once(next, changes).await {
                tracing::debug!(%error, "the notes of the replicas are read again");
            }
            next = self.0.client.after(next);
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Tells of all notes, and then of every change until the watch ends.
    async fn tell_once(
        &self,
        member: usize,
        changes: &mpsc::UnboundedSender<Change>,
    ) -> Result<(), CallError> {
        let core = &self.0;
        let (notes, revision) = core.read_all(self.at("")).await?;
        let prefix = self.at("").len();
        let name = |key: &[u8]| {
            String::from_utf8_lossy(key.get(prefix..).unwrap_or_default()).into_owned()
        };
        let all = notes.into_iter().map(|kv| (name(&kv.key), kv.value.to_vec())).collect();
        // Nobody hears it only when nobody follows any more.
        _ = changes.send(Change::All(all));
        let (number, member) = (member, core.client.member(member)?);
        let mut silences = member.silences();
        let begun = timeout(core.client.request_timeout(), self.watch(member, revision + 1)).await;
        let mut watch = begun.map_err(|_| {
            member.note_silence();
            CallError::Unknown("no watch in time".to_owned())
        })??;
        loop {
            let message = tokio::select! {
                message = watch.message() => message.map_err(|status| meaning(&status))?,
                () = fell_silent(&core.client, number, &mut silences) => {
                    return Err(CallError::Unknown("its member is silent".to_owned()));
                }
            };
            let Some(message) = message else { return Ok(()) };
            if message.canceled {
                return Err(CallError::Unknown(message.cancel_reason));
            }
            core.client.check(message.header.as_ref(), 0)?;
            for event in message.events {
                let kind = event.r#type();
                let Some(kv) = event.kv else { continue };
                let name = name(&kv.key);
                _ = changes.send(match kind {
                    EventType::Put => Change::Put(name, kv.value.to_vec()),
                    EventType::Delete => Change::Gone(name),
                });
            }
        }
    }

    /// A watch over a connection of its own, as other watches have them: what is busy elsewhere does
    /// not hold it up.
    async fn watch(
        &self,
        member: &Member,
        from: i64,
    ) -> Result<Streaming<WatchResponse>, CallError> {
        let token = self.0.client.token();
        let channel = member.connect().map_err(CallError::Unknown)?;
        let shown = token.shown_to(&channel).await?;
        let (key, range_end) = self.range("");
        let create = WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // To end what it asks is to end the watch.
        let asked = tokio_stream::once(create).chain(tokio_stream::pending());
        let mut request = Request::new(asked);
        *request.metadata_mut() = super::member::metadata(shown.as_ref());
        let answer = WatchClient::new(channel).watch(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            // Whatever it was: a login is cheap, and a watch is rare.
            token.forget(shown.as_ref());
            meaning(&status)
        })
    }
}
