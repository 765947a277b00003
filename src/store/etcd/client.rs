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
use super::pb::maintenance_client::MaintenanceClient;
use super::pb::request_op::Request as Op;
use super::pb::response_op::Response as Answer;
use super::pb::{
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse,
};
use super::settings::EtcdSettings;
use super::txn::Encoded;
use crate::store::StoreError;

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

    /// The member that is asked.
    #[cfg(test)]
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// How long one call may take.
    pub(super) const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// What is shown to members.
    pub(super) const fn token(&self) -> &Token {
        &self.token
    }

    /// Until when one try waits.
    fn one_try(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.request_timeout)
    }

    /// Carries out a transaction once. On [`CallError::Unknown`] it may have happened, or still
    /// happen.
    pub(super) async fn txn_once(
        &self,
        txn: TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, CallError> {
        self.send(&Encoded::of(&txn), self.one_try(deadline)).await
    }

    async fn send(&self, txn: &Encoded, until: Instant) -> Result<TxnResponse, CallError> {
        let floor = self.seen();
        let answer =
            self.call_within(until, |channel, metadata| txn.send(channel, metadata)).await?;
        self.check(answer.header.as_ref(), floor)?;
        Ok(answer)
    }

    /// Carries out a transaction that may happen any number of times, until a member answers.
    pub(in crate::store) async fn txn(
        &self,
        txn: TxnRequest,
        deadline: Instant,
    ) -> Result<TxnResponse, CallError> {
        let txn = Encoded::of(&txn);
        let mut pause = Duration::from_millis(2);
        loop {
            match self.send(&txn, self.one_try(deadline)).await {
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
        let answer = self.txn(reads(ranges), deadline).await?;
        let revision = revision_of(&answer);
        Ok((found(answer), revision))
    }

    /// As [`Client::ranges`], but it asks once, and waits this long for what may be a long answer on a slow
    /// way.
    pub(super) async fn long_ranges(
        &self,
        ranges: Vec<RangeRequest>,
        patience: Duration,
    ) -> Result<Vec<RangeResponse>, CallError> {
        let txn = Encoded::of(&reads(ranges));
        self.send(&txn, Instant::now() + patience).await.map(found)
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

    /// The member after this one, past those that were silent of late unless all were.
    pub(super) fn after(&self, index: usize) -> usize {
        let count = self.members.len().max(1);
        let others = (1..=count).map(|step| index.wrapping_add(step) % count);
        let heard = |index: &usize| self.members.get(*index).is_some_and(|it| !it.was_silent());
        others.clone().find(heard).unwrap_or_else(|| index.wrapping_add(1) % count)
    }

    /// Whether another than this member may be asked that was not silent of late.
    pub(super) fn has_better_than(&self, index: usize) -> bool {
        let count = self.members.len().max(1);
        let next = self.after(index);
        next != index % count && self.members.get(next).is_some_and(|next| !next.was_silent())
    }

    /// The member of this number, or whatever is left of it.
    pub(super) fn member(&self, index: usize) -> Result<&Member, CallError> {
        let member = self.members.get(index % self.members.len().max(1));
        member.ok_or_else(|| CallError::Refused("no member is named".to_owned()))
    }

    /// Goes on with another member, if this one is still the one that is asked.
    fn leave(&self, index: usize) {
        let next = self.after(index);
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
        self.call_within(self.one_try(deadline), ask).await
    }

    async fn call_within<T, F>(
        &self,
        until: Instant,
        ask: impl Fn(Channel, tonic::metadata::MetadataMap) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut logged_in = false;
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let member = self.member(index)?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            let connection = match member.channel() {
                Ok(connection) => connection,
                Err(why) => {
                    self.leave(index);
                    return Err(CallError::Unknown(why));
                }
            };
            let asked = timeout_at(until, async {
                let channel = connection.channel.clone();
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
                    // Who has less time than others says nothing of the member, and who has more has
                    // asked for what takes long.
                    if until <= began + self.request_timeout
                        && began.elapsed() >= self.request_timeout / 2
                    {
                        member.note_silence();
                        member.forget(&connection);
                    }
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
                if status.code() == Code::Unavailable {
                    // It could not be connected to for as long.
                    if began.elapsed() >= self.request_timeout / 2 {
                        member.note_silence();
                    }
                    member.forget(&connection);
                }
                self.leave(index);
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

/// A transaction that reads.
fn reads(ranges: Vec<RangeRequest>) -> TxnRequest {
    let read = |range| RequestOp { request: Some(Op::RequestRange(range)) };
    TxnRequest { success: ranges.into_iter().map(read).collect(), ..TxnRequest::default() }
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
