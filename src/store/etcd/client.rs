//! Calls to etcd: which member is asked, for how long, as whom, and what an error means. Knows no
//! keys.
//!
//! Every answer is looked at for which cluster gave it and at which revision. A cluster of another id
//! is another etcd, and one that answers at a lower revision than it did before was put back to an
//! older state: neither has what was acknowledged.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::member::{Member, Token};
use super::pb::kv_client::KvClient;
use super::pb::maintenance_client::MaintenanceClient;
use super::pb::request_op::Request as Op;
use super::pb::response_op::Response as Answer;
use super::pb::{
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse,
};
use super::settings::EtcdSettings;
use crate::store::StoreError;

/// The largest answer that is read. etcd itself takes no request above 1.5 MiB, and pages are small.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How long a page may take at one member, at least.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a call gave no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::store) enum CallError {
    /// Nobody can say whether it happened, or whether it is going to.
    #[error("etcd gave no answer: {0}")]
    Unknown(String),
    /// It did not happen and will not: etcd refused it.
    #[error("etcd refused: {0}")]
    Refused(String),
    /// It did not happen and will not: etcd has no room.
    #[error("etcd is out of space: raise its quota, or compact, defragment and disarm its alarm")]
    NoSpace,
    /// What was asked for is too old: etcd has compacted it away.
    #[error("etcd has compacted what was asked for")]
    Compacted,
    /// The answer is not from the etcd that acknowledged what is in it.
    #[error("{0}")]
    Replaced(String),
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The members of an etcd.
#[derive(Debug)]
pub(in crate::store) struct Client {
    members: Vec<Member>,
    /// The one that is asked.
    current: AtomicUsize,
    token: Token,
    request_timeout: Duration,
    /// Zero until the first answer.
    cluster_id: AtomicU64,
    /// The highest revision of any answer. All but the watch are linearizable, so a call that begins
    /// after it was seen is answered at no lower one.
    seen: AtomicI64,
    calls: AtomicU64,
}

impl Client {
    /// A client that has called nobody yet. It begins with the member of this number, or whatever is left of it: not every replica with the
    /// same.
    pub(in crate::store) fn new(settings: &EtcdSettings, first: usize) -> Self {
        let members: Vec<_> =
            settings.endpoints.iter().map(|at| Member::new(at, settings)).collect();
        let current = AtomicUsize::new(first % members.len().max(1));
        Self {
            members,
            current,
            token: Token::new(settings.login.clone()),
            request_timeout: settings.request_timeout,
            cluster_id: AtomicU64::new(0),
            seen: AtomicI64::new(0),
            calls: AtomicU64::new(0),
        }
    }

    /// A client for pages of thousands of records, which may take longer than the calls that somebody
    /// waits for.
    pub(super) fn for_pages(settings: &EtcdSettings) -> Self {
        let client = Self::new(settings, 0);
        Self { request_timeout: client.request_timeout.max(PAGE_TIMEOUT), ..client }
    }

    /// How many calls were made.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The cluster that answers; zero before the first answer.
    pub(super) fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Relaxed)
    }

    /// A revision that every call which begins now is answered above, or at.
    pub(super) fn seen(&self) -> i64 {
        self.seen.load(Ordering::Acquire)
    }

    /// How long one call may take.
    pub(super) const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The members, and the token to show them.
    pub(super) fn members(&self) -> (&[Member], &Token) {
        (&self.members, &self.token)
    }

    /// Carries out a transaction once. On [`CallError::Unknown`] it may have happened, or still
    /// happen.
    pub(super) async fn txn_once(
        &self,
        txn: TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, CallError> {
        let floor = self.seen();
        let answer = self
            .call(deadline, |channel, metadata| {
                let mut request = Request::new(txn.clone());
                *request.metadata_mut() = metadata;
                async move {
                    let mut kv = KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
                    kv.txn(request).await
                }
            })
            .await?;
        self.check(answer.header.as_ref(), floor)?;
        Ok(answer)
    }

    /// Carries out a transaction that may happen any number of times, until a member answers.
    pub(in crate::store) async fn txn(
        &self,
        txn: TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, CallError> {
        let mut pause = Duration::from_millis(2);
        loop {
            match self.txn_once(txn.clone(), deadline).await {
                Err(CallError::Unknown(_)) if Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
                answer => return answer,
            }
        }
    }

    /// Reads several ranges at one moment, which is not before this was called, unless they name a
    /// revision. Gives the revision too.
    pub(in crate::store) async fn ranges(
        &self,
        ranges: Vec<RangeRequest>,
        deadline: Instant,
    ) -> Result<(Vec<RangeResponse>, i64), CallError> {
        let success = ranges
            .into_iter()
            .map(|range| RequestOp { request: Some(Op::RequestRange(range)) })
            .collect();
        let answer = self.txn(TxnRequest { success, ..TxnRequest::default() }, deadline).await?;
        let revision = revision_of(&answer);
        Ok((found(answer), revision))
    }

    /// How a member is doing.
    pub(super) async fn status(&self, deadline: Instant) -> Result<StatusResponse, CallError> {
        let answer = self
            .call(deadline, |channel, metadata| {
                let mut request = Request::new(StatusRequest {});
                *request.metadata_mut() = metadata;
                async move { MaintenanceClient::new(channel).status(request).await }
            })
            .await?;
        // What a member knows of itself may be behind.
        self.check(answer.header.as_ref(), 0)?;
        Ok(answer)
    }

    /// Goes on with the next member, if this one is still the one that is asked.
    fn leave(&self, index: usize) {
        let next = (index + 1) % self.members.len().max(1);
        _ = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) async fn call<T, F>(
        &self,
        deadline: Instant,
        ask: impl Fn(Channel, tonic::metadata::MetadataMap) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let until = deadline.min(Instant::now() + self.request_timeout);
        let mut logged_in = false;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let member = self
                .members
                .get(index)
                .ok_or_else(|| CallError::Refused("no member is named".to_owned()))?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            let asked = timeout_at(until, async {
                let channel = member.channel().map_err(CallError::Unknown)?;
                let token = self.token.shown_to(&channel).await?;
                let answer = ask(channel, super::member::metadata(token.as_ref())).await;
                Ok((token, answer))
            });
            let (token, status) = match asked.await {
                Ok(Ok((_, Ok(answer)))) => return Ok(answer.into_inner()),
                Ok(Ok((token, Err(status)))) => (token, status),
                Ok(Err(error)) => {
                    self.leave(index);
                    return Err(error);
                }
                Err(_) => {
                    self.leave(index);
                    return Err(CallError::Unknown("no answer in time".to_owned()));
                }
            };
            // It was not carried out: the login is looked at first.
            if Token::is_refused(&status) && !logged_in {
                logged_in = true;
                self.token.forget(token.as_ref());
                continue;
            }
            let error = meaning(&status);
            if matches!(error, CallError::Unknown(_)) {
                self.leave(index);
                if status.code() == Code::Unavailable {
                    member.forget();
                }
            }
            return Err(error);
        }
    }

    /// Whether an answer is from the etcd that gave the others.
    pub(super) fn check(
        &self,
        header: Option<&ResponseHeader>,
        floor: i64,
    ) -> Result<(), CallError> {
        let Some(header) = header else {
            return Err(CallError::Unknown("an answer has no header".to_owned()));
        };
        let known = self.cluster_id.load(Ordering::Relaxed);
        if known == 0 {
            self.cluster_id.store(header.cluster_id, Ordering::Relaxed);
        } else if known != header.cluster_id {
            return Err(CallError::Replaced(format!(
                "cluster {:x} answers in the place of cluster {known:x}",
                header.cluster_id
            )));
        }
        if header.revision < floor {
            return Err(CallError::Replaced(format!(
                "etcd answers at revision {} and was at revision {floor} before",
                header.revision
            )));
        }
        self.seen.fetch_max(header.revision, Ordering::AcqRel);
        Ok(())
    }
}

/// The revision at which an answer was given.
pub(super) fn revision_of(answer: &TxnResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}

/// What the reads of a transaction found, in their order.
pub(super) fn found(answer: TxnResponse) -> Vec<RangeResponse> {
    answer
        .responses
        .into_iter()
        .filter_map(|response| match response.response {
            Some(Answer::ResponseRange(range)) => Some(range),
            Some(Answer::ResponsePut(_) | Answer::ResponseDeleteRange(_)) | None => None,
        })
        .collect()
}

/// What an error of etcd says of a change. What is not known to be a refusal may have been carried
/// out.
pub(super) fn meaning(status: &Status) -> CallError {
    let text = status.message().to_owned();
    match status.code() {
        Code::ResourceExhausted if text.contains("space") => CallError::NoSpace,
        Code::OutOfRange if text.contains("compacted") => CallError::Compacted,
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Unimplemented
        | Code::OutOfRange => CallError::Refused(text),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => CallError::Unknown(text),
    }
}
