//! The frames of WatchRevocations as bytes, and the codec that sends bytes as they are.

use std::marker::PhantomData;

use bytes::{BufMut as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, EncodeBuf};

use super::convert::revocation::{cursor, entry};
use super::convert::{duration, known_timestamp, timestamp};
use crate::domain::clock::Timestamp;
use crate::domain::event::Entry;
use crate::domain::ids::{ClientId, Cursor};
use crate::feed::subscription::{Chunk, Item, Leave, Mark, Packed, PackedKind};
use crate::feed::{Check, Encoder};
use crate::pb::v1;
use v1::watch_revocations_response::Frame;

/// A frame as bytes.
pub fn encode(frame: Frame) -> Bytes {
    v1::WatchRevocationsResponse { frame: Some(frame) }.encode_to_vec().into()
}

/// The key set as bytes, for [`crate::feed::Feed::set_key_set`].
pub fn key_set(through: Cursor, keys: Vec<v1::JsonWebKey>) -> Bytes {
    encode(Frame::KeySet(v1::KeySet { through: Some(cursor(through)), keys }))
}

/// What the feed has to say, as bytes.
pub fn item(item: Item) -> Bytes {
    let frame = match item {
        Item::Ready(bytes) => return bytes,
        Item::Start { watch_id, resumed, head, heartbeat, retention, audiences, clients } => {
            Frame::Start(v1::WatchStart {
                watch_id,
                resumed,
                head: Some(cursor(head)),
                heartbeat_interval: Some(duration(heartbeat)),
                retention: Some(duration(retention)),
                effective_filter: Some(v1::RevocationFilter {
                    audiences: audiences.into_iter().map(String::from).collect(),
                    client_ids: clients.iter().map(ClientId::to_string).collect(),
                }),
            })
        }
        Item::Reset => Frame::Reset(v1::Reset { reason: v1::ResetReason::LogChanged as i32 }),
        Item::Snapshot(chunk) => Frame::Snapshot(snapshot(chunk)),
        Item::Synced(mark) => Frame::Synced(v1::Synced {
            through: Some(cursor(mark.through)),
            as_of_time: known_timestamp(mark.as_of),
            digest: mark.check.map(digest),
            send_time: Some(timestamp(mark.at)),
        }),
        Item::Batch(Mark { through, as_of, at, check: _ }, entries) => {
            return batch(&entries, through, as_of, at);
        }
        Item::Heartbeat(mark) => Frame::Heartbeat(v1::Heartbeat {
            through: Some(cursor(mark.through)),
            as_of_time: known_timestamp(mark.as_of),
            digest: mark.check.map(digest),
            send_time: Some(timestamp(mark.at)),
        }),
        Item::AckRequest(through) => {
            Frame::AckRequest(v1::AckRequest { through: Some(cursor(through)) })
        }
        Item::GoAway { leave, reconnect_after } => Frame::GoAway(v1::GoAway {
            reason: reason(leave) as i32,
            reconnect_after: Some(duration(reconnect_after)),
        }),
    };
    encode(frame)
}

fn batch(entries: &[Entry], through: Cursor, as_of: Timestamp, at: Timestamp) -> Bytes {
    encode(Frame::Batch(v1::RevocationBatch {
        through: Some(cursor(through)),
        as_of_time: known_timestamp(as_of),
        revocations: entries.iter().filter_map(entry).collect(),
        send_time: Some(timestamp(at)),
    }))
}

const fn reason(leave: Leave) -> v1::GoAwayReason {
    match leave {
        Leave::Drain => v1::GoAwayReason::Drain,
        Leave::Rebalance => v1::GoAwayReason::Rebalance,
        Leave::Slow => v1::GoAwayReason::Slow,
        Leave::CredentialExpiring => v1::GoAwayReason::CredentialExpiring,
    }
}

fn digest(check: Check) -> v1::SetDigest {
    v1::SetDigest {
        live_count: check.digest.count,
        xor_of_keys: check.digest.xor,
        counted_after_time: Some(timestamp(check.counted_after)),
    }
}

fn snapshot(chunk: Chunk) -> v1::SnapshotChunk {
    let packed = |packed: Packed| v1::PackedTargets {
        kind: match packed.kind {
            PackedKind::Token => v1::PackedKind::Token,
            PackedKind::Session => v1::PackedKind::Session,
        } as i32,
        expire_time_seconds: packed.end,
        keys: packed.keys,
    };
    v1::SnapshotChunk {
        revocations: chunk.full.iter().filter_map(entry).collect(),
        packed: chunk.packed.into_iter().map(packed).collect(),
    }
}

/// Encodes the batches that watchers share.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchEncoder;

impl Encoder for BatchEncoder {
    fn batch(&self, entries: &[Entry], through: Cursor, as_of: Timestamp, at: Timestamp) -> Bytes {
        batch(entries, through, as_of, at)
    }
}

/// A codec whose responses are encoded already.
#[derive(Clone, Copy, Debug)]
pub struct FrameCodec<T>(PhantomData<fn() -> T>);

impl<T> Default for FrameCodec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Default + 'static> Codec for FrameCodec<T> {
    type Encode = Bytes;
    type Decode = T;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

/// There may be ten thousand idle streams: each begins with a small buffer.
const BUFFER: usize = 1024;
/// A frame goes out as soon as it is there; more than this is not gathered from one wake-up.
const GATHER: usize = 64 * 1024;

impl<T> tonic::codec::Encoder for FrameCodec<T> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(frame.len());
        to.put(frame);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, GATHER)
    }
}

impl<T: Message + Default> tonic::codec::Decoder for FrameCodec<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        match T::decode(from) {
            Ok(message) => Ok(Some(message)),
            Err(_) => Err(super::status::field("request", "is not a message of this call")),
        }
    }
}
