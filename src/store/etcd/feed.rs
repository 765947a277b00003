//! Follows the events of all replicas, by a watch of etcd on a connection of its own.
//!
//! The watch begins where the events were read, and goes on where it was cut: etcd gives every change
//! from a revision on, in order, or says that it has compacted what comes next. Then the events are
//! read anew, all as of one revision, what is newer than the log is added to it, what is gone was swept,
//! and the watch begins after that revision. So there is no hole. What etcd says on its own about how
//! far a watch has come is not relied on: members have been seen to say it too early.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::{Request, Streaming};

use super::client::{CallError, Client, meaning};
use super::core::Core;
use super::keys::EVENT;
use super::log::Placed;
use super::member::{Member, metadata};
use super::pb::event::EventType;
use super::pb::watch_client::WatchClient;
use super::pb::watch_request::RequestUnion;
use super::pb::{KeyValue, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse};
use super::request::range_of_one;

/// The longest pause before the watch is begun again.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// How often the log is read anew when it is compacted away meanwhile.
const MAX_LOADS: u32 = 3;

/// Why a watch ended.
enum Ended {
    /// What comes next was compacted.
    Compacted,
    /// Something else, which another member may not have.
    Cut(String),
    /// The records are not those that were opened.
    Replaced,
}

/// Follows the watch from `next` on, for as long as the engine lives.
pub(super) async fn follow(core: Arc<Core>, mut member: usize, mut next: i64) {
    let mut pause = Duration::ZERO;
    loop {
        let (began, from) = (Instant::now(), next);
        match watch(&core, member, &mut next).await {
            Ended::Replaced => return,
            Ended::Compacted => {
                tracing::info!(from, "the watch fell behind what etcd keeps; the log is read anew");
                match load(&core).await {
                    Ok(read) => next = read + 1,
                    Err(error) => {
                        core.note(&error);
                        tracing::warn!(%error, "the log cannot be read");
                    }
                }
            }
            Ended::Cut(why) => {
                tracing::info!(why, member, "the watch was cut");
                member = core.client.after(member);
                core.cut.notify_one();
            }
        }
        if core.failure().is_some() {
            return;
        }
        // One that went well for a while is begun again at once.
        pause = if began.elapsed() > MAX_PAUSE {
            Duration::ZERO
        } else {
            (pause * 2).clamp(Duration::from_millis(10), MAX_PAUSE)
        };
        sleep(pause).await;
    }
}

/// Reads all events as of one revision into the log, and gives that revision.
pub(super) async fn load(core: &Core) -> Result<i64, CallError> {
    for _ in 0..MAX_LOADS {
        match load_once(core).await {
            // It was compacted away while it was read.
            Err(CallError::Compacted) => {}
            read => return read,
        }
    }
    Err(CallError::Compacted)
}

async fn load_once(core: &Core) -> Result<i64, CallError> {
    let (mut events, revision) = core.read_all(core.keys.at(&[EVENT])).await?;
    let head = RangeRequest { revision, ..range_of_one(core.keys.head()) };
    let (found, _) = core.client.ranges(vec![head], core.deadline()).await?;
    let head = found.first().and_then(|found| found.kvs.first()).map_or(0, |kv| kv.mod_revision);
    events.sort_by_key(|event| event.mod_revision);
    let there: HashSet<_> = events.iter().map(|event| event.key.clone()).collect();
    core.log.retain(|at| there.contains(at));
    core.log.add(events.iter().map(placed).collect(), head);
    Ok(revision)
}

/// A copy of an event: it may be kept for long, and what etcd sent with it is not to be.
pub(super) fn placed(kv: &KeyValue) -> Placed {
    let (at, value) = (Bytes::copy_from_slice(&kv.key), Bytes::copy_from_slice(&kv.value));
    Placed { revision: kv.mod_revision, at, value }
}

async fn watch(core: &Core, member: usize, next: &mut i64) -> Ended {
    let number = member;
    let member = match core.client.member(number) {
        Ok(member) => member,
        Err(error) => return Ended::Cut(error.to_string()),
    };
    let mut silences = member.silences();
    let begun = timeout(core.client.request_timeout(), begin(core, member, *next)).await;
    let mut stream = match begun {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Ended::Cut(error.to_string()),
        Err(_) => {
            member.note_silence();
            return Ended::Cut("it did not begin in time".to_owned());
        }
    };
    let (mut created, mut told) = (false, false);
    loop {
        let behind = async {
            sleep(patience(core.client.request_timeout(), told)).await;
            let mut missed = core.missed.subscribe();
            let is_behind = |missed: &i64| {
                u64::try_from(*missed).is_ok_and(|missed| missed > core.log.head().0)
            };
            _ = missed.wait_for(is_behind).await;
        };
        let message = tokio::select! {
            message = stream.message() => message,
            () = behind => return Ended::Cut("it is behind".to_owned()),
            () = fell_silent(&core.client, number, &mut silences) => {
                return Ended::Cut("its member is silent".to_owned());
            }
            () = sleep(core.client.request_timeout()), if !created => {
                member.note_silence();
                return Ended::Cut("it did not begin in time".to_owned());
            }
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Ended::Cut("it ended".to_owned()),
            Err(status) => {
                if super::member::Token::is_refused(&status) {
                    core.client.token().forget_any();
                }
                return Ended::Cut(meaning(&status).to_string());
            }
        };
        if let Err(error) = core.client.check(message.header.as_ref(), 0) {
            core.note(&error);
            return if matches!(error, CallError::Replaced(_)) {
                Ended::Replaced
            } else {
                Ended::Cut(error.to_string())
            };
        }
        created |= message.created;
        if message.compact_revision > 0 {
            return Ended::Compacted;
        }
        if message.canceled {
            return Ended::Cut(message.cancel_reason);
        }
        told |= !message.events.is_empty();
        take(core, message, next);
    }
}

/// For how long nobody may cut a watch for what it did not tell in time, from its last message on. On a slow
/// way it would else be cut again and again, before it has told of anything. One that has told of something
/// has shown that it does.
pub(super) const fn patience(request_timeout: Duration, told: bool) -> Duration {
    if told { request_timeout } else { request_timeout.saturating_mul(2) }
}

/// Ends when a member is found to be silent, and there is another to go to. Where there is none, a watch goes
/// on: it may be that all are slow.
pub(super) async fn fell_silent(
    client: &Client,
    number: usize,
    silences: &mut tokio::sync::watch::Receiver<Option<Instant>>,
) {
    // Who sends them lives as long as the client.
    while silences.changed().await.is_ok() {
        if client.has_better_than(number) {
            return;
        }
    }
}

/// Takes the changes of one message. Those of one revision may come in several.
fn take(core: &Core, message: WatchResponse, next: &mut i64) {
    let mut added = Vec::new();
    let mut last = *next - 1;
    for event in message.events {
        let is_put = event.r#type() == EventType::Put;
        let Some(kv) = event.kv else { continue };
        last = last.max(kv.mod_revision);
        if is_put {
            added.push(placed(&kv));
        } else {
            core.log.remove(&kv.key);
        }
    }
    if !added.is_empty() {
        let head = added.last().map_or(0, |event| event.revision);
        core.log.add(added, head);
    }
    // A change has one event. What of its revision is still to come is swept events, which the next
    // message removes, or a sweep that is told again.
    *next = if message.fragment { last } else { last + 1 };
}

async fn begin(
    core: &Core,
    member: &Member,
    from: i64,
) -> Result<Streaming<WatchResponse>, CallError> {
    let token = core.client.token();
    let channel = member.connect().map_err(CallError::Unknown)?;
    let token = token.shown_to(&channel).await?;
    let (key, range_end) = core.keys.events();
    let create = WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision: from,
        progress_notify: false,
        fragment: true,
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // To end what it asks is to end the watch.
    let asked = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut request = Request::new(asked);
    *request.metadata_mut() = metadata(token.as_ref());
    let mut watch = WatchClient::new(channel).max_decoding_message_size(64 << 20);
    let answer = watch.watch(request).await.map_err(|status| meaning(&status))?;
    Ok(answer.into_inner())
}
