//! The engine's own record: which log stands under the prefix, and in which cluster it was begun.
//!
//! An etcd that was restored from a snapshot, or that another was put in the place of, does not have
//! what was acknowledged last, and nothing in it shows what is missing. A cluster has its id from its token
//! and the URLs of its members, so one that was restored with others has a new id, and what is in it does
//! not open. With the same ones it has its old id: `raft.rs` has what shows it then. `adopt` opens it
//! under a new name of the log, so that no watcher takes it for the old one.

use tokio::time::Instant;

use super::client::{CallError, Client, found, revision_of};
use super::keys::Keys;
use super::pb::{RangeRequest, RequestOp, TxnRequest};
use super::request::{page, put, range_of_one, unchanged};
use super::settings::EtcdSettings;
use crate::domain::ids::LogId;
use crate::store::OpenError;

/// The layout of the record.
const LAYOUT: u8 = 1;

/// The record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) struct Meta {
    /// The version of the records of the layers above.
    pub(in crate::store) schema: u32,
    /// The name of the log.
    pub(in crate::store) log_id: LogId,
    /// The cluster that acknowledged what is there.
    pub(in crate::store) cluster_id: u64,
    /// Whether it may be opened.
    pub(in crate::store) standing: Standing,
}

/// Whether records may be opened. Every transaction of an engine compares the record, so one that has
/// them open writes nothing any more once this changes, and fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) enum Standing {
    /// They may.
    Whole,
    /// An adoption has not come to its end.
    Adopting,
    /// They are being written by a restore or a move, or were, by one that was cut off.
    Restoring,
    /// They go on elsewhere, or are on their way there.
    Moved,
    /// A replica found that etcd went back to an older state.
    WentBack,
}

impl Standing {
    const fn code(self) -> u8 {
        match self {
            Self::Whole => 0,
            Self::Adopting => 1,
            Self::Restoring => 2,
            Self::Moved => 3,
            Self::WentBack => 4,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Whole),
            1 => Some(Self::Adopting),
            2 => Some(Self::Restoring),
            3 => Some(Self::Moved),
            4 => Some(Self::WentBack),
            _ => None,
        }
    }
}

impl Meta {
    /// As it is stored.
    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![LAYOUT, self.standing.code()];
        bytes.extend_from_slice(&self.schema.to_be_bytes());
        bytes.extend_from_slice(&self.cluster_id.to_be_bytes());
        bytes.extend_from_slice(self.log_id.as_bytes());
        bytes
    }

    /// Reads what [`Meta::encode`] wrote.
    pub(in crate::store) fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk::<2>()?;
        let (schema, rest) = rest.split_first_chunk::<4>()?;
        let (cluster, rest) = rest.split_first_chunk::<8>()?;
        let standing = match first {
            [LAYOUT, code] => Standing::of(*code)?,
            _ => return None,
        };
        Some(Self {
            schema: u32::from_be_bytes(*schema),
            log_id: LogId::from_bytes(rest.try_into().ok()?),
            cluster_id: u64::from_be_bytes(*cluster),
            standing,
        })
    }
}

/// What to do with what is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Claim {
    /// Open it if it is as it should be.
    Open,
    /// Open it whatever its cluster is, under this new name.
    Adopt,
}

/// Finds the record, or writes the first. Gives it, and when it was last changed.
pub(super) async fn claim(
    client: &Client,
    keys: &Keys,
    settings: &EtcdSettings,
    new_log_id: LogId,
    claim: Claim,
    deadline: Instant,
) -> Result<(Meta, i64), OpenError> {
    let place = settings.place();
    let away = |error: CallError| not_opened(settings.place(), error);
    let replaced =
        |what: &str| OpenError::Replaced { place: settings.place(), what: what.to_owned() };
    let everything = RangeRequest {
        keys_only: true,
        ..page(keys.range(&crate::store::engine::KeyRange::prefix(b"")), 1, 0)
    };
    let mut ranges = vec![range_of_one(keys.meta())];
    // Each turn either finds it as it should be or tries to make it so; another may be first.
    while Instant::now() < deadline {
        let (found, _) = client.ranges(ranges.clone(), deadline).await.map_err(away)?;
        if found.len() < 2 && found.iter().all(|found| found.kvs.is_empty()) {
            // Only then, and both at one moment: whatever its limit, etcd walks through all keys for it.
            ranges.push(everything.clone());
            continue;
        }
        let is_empty = found.get(1).is_none_or(|any| any.kvs.is_empty());
        let cluster_id = client.cluster_id();
        let first = Meta {
            schema: settings.schema_version,
            log_id: new_log_id,
            cluster_id,
            standing: Standing::Whole,
        };
        let (wanted, known) = match found.first().and_then(|found| found.kvs.first()) {
            None if is_empty => (first, 0),
            None => return Err(replaced("its own record is missing, and others are not")),
            Some(kv) => {
                let meta = Meta::decode(&kv.value)
                    .ok_or_else(|| replaced("its own record cannot be read"))?;
                if meta.schema != settings.schema_version {
                    let (found, expected) = (meta.schema, settings.schema_version);
                    return Err(OpenError::Schema { path: place, found, expected });
                }
                match claim {
                    _ if meta.standing == Standing::Restoring => {
                        return Err(OpenError::Unfinished { path: place });
                    }
                    _ if meta.standing == Standing::Moved => {
                        let to = "another store".to_owned();
                        return Err(OpenError::Moved { place, to });
                    }
                    Claim::Open if meta.standing == Standing::Adopting => {
                        return Err(half_adopted(settings));
                    }
                    Claim::Open if meta.standing == Standing::WentBack => {
                        return Err(went_back(settings));
                    }
                    Claim::Open if meta.cluster_id == cluster_id => {
                        return Ok((meta, kv.mod_revision));
                    }
                    Claim::Open => {
                        return Err(replaced(&format!(
                            "it was begun in cluster {:x}, and this is cluster {cluster_id:x}",
                            meta.cluster_id
                        )));
                    }
                    Claim::Adopt
                        if meta.standing == Standing::Adopting && meta.log_id == new_log_id =>
                    {
                        return Ok((meta, kv.mod_revision));
                    }
                    Claim::Adopt => {
                        (Meta { standing: Standing::Adopting, ..first }, kv.mod_revision)
                    }
                }
            }
        };
        write(client, keys, &wanted, known, deadline).await.map_err(away)?;
    }
    Err(OpenError::Unreachable { place, what: "it did not answer in time".to_owned() })
}

/// Why an error of a call keeps it from being opened.
pub(super) fn not_opened(place: String, error: CallError) -> OpenError {
    match error {
        CallError::Replaced(what) => OpenError::Replaced { place, what },
        error => OpenError::Unreachable { place, what: error.to_string() },
    }
}

/// Says that an adoption was cut off.
pub(super) fn half_adopted(settings: &EtcdSettings) -> OpenError {
    let what = "its adoption was cut off, adopt it again".to_owned();
    OpenError::Replaced { place: settings.place(), what }
}

/// Says that a replica found that etcd went back.
pub(super) fn went_back(settings: &EtcdSettings) -> OpenError {
    let what =
        "a replica found that it went back to an older state, and its log says how".to_owned();
    OpenError::Replaced { place: settings.place(), what }
}

/// Writes the record if it was last changed at `known`. Gives the revision if so.
pub(in crate::store) async fn write(
    client: &Client,
    keys: &Keys,
    meta: &Meta,
    known: i64,
    deadline: Instant,
) -> Result<Option<i64>, CallError> {
    write_with(client, keys, meta, known, Vec::new(), deadline).await
}

/// As [`write`], and does something besides.
pub(super) async fn write_with(
    client: &Client,
    keys: &Keys,
    meta: &Meta,
    known: i64,
    besides: Vec<RequestOp>,
    deadline: Instant,
) -> Result<Option<i64>, CallError> {
    let mut success = vec![put(keys.meta(), meta.encode())];
    success.extend(besides);
    let txn = TxnRequest {
        compare: vec![unchanged(keys.meta(), known)],
        success,
        failure: vec![super::request::read(range_of_one(keys.meta()))],
    };
    let answer = client.txn(txn, deadline).await?;
    if answer.succeeded {
        return Ok(Some(revision_of(&answer)));
    }
    // An earlier try may have been carried out, and its answer lost.
    let there = found(answer).pop().and_then(|found| found.kvs.into_iter().next());
    Ok(there.filter(|kv| *kv.value == meta.encode()).map(|kv| kv.mod_revision))
}
