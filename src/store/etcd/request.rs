//! How what a decision rests on and what it wants become one transaction of etcd.

use bytes::Bytes;

use super::keys::{EVENT, Keys, Stamp, revision_in, stamped};
use super::log::Log;
use super::pb::compare::{CompareResult, CompareTarget, TargetUnion};
use super::pb::request_op::Request as Op;
use super::pb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request,
};
use super::view::{Attempt, Scan, Wanted};
use crate::store::StoreError;
use crate::store::engine::{KeyRange, Rests};

/// The most compares, and the most operations of either branch, that etcd takes unless it is told
/// otherwise (`--max-txn-ops`).
pub(super) const MAX_OPS: usize = 128;

/// A put.
pub(super) fn put(at: Vec<u8>, value: Vec<u8>) -> RequestOp {
    let put = PutRequest { key: at.into(), value: value.into(), lease: 0 };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

/// A read of one key.
pub(super) fn range_of_one(at: Vec<u8>) -> RangeRequest {
    RangeRequest { key: at.into(), ..RangeRequest::default() }
}

pub(super) fn read(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Op::RequestRange(range)) }
}

/// Up to `limit` records of a scan's range.
pub(super) fn range_of_scan(keys: &Keys, scan: &Scan, limit: usize) -> RangeRequest {
    let (key, range_end) = keys.range(&scan.range());
    // They come in the order of their keys as it is. To ask for an order, that one too, is to have etcd
    // read the whole range before it looks at the limit.
    let order = if scan.descending {
        range_request::SortOrder::Descend
    } else {
        range_request::SortOrder::None
    };
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: i64::try_from(limit).unwrap_or(i64::MAX),
        sort_order: order.into(),
        ..RangeRequest::default()
    }
}

/// That a record was last changed at this revision: zero that it is not there.
pub(super) fn unchanged(at: Vec<u8>, changed: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: at.into(),
        target_union: Some(TargetUnion::ModRevision(changed)),
        range_end: Bytes::new(),
    }
}

/// That nothing in a range was added or changed after `as_of`. What was removed leaves no trace.
fn nothing_newer((at, end): (Vec<u8>, Vec<u8>), as_of: i64) -> Compare {
    Compare {
        result: CompareResult::Less.into(),
        target: CompareTarget::Mod.into(),
        key: at.into(),
        target_union: Some(TargetUnion::ModRevision(as_of.saturating_add(1))),
        range_end: end.into(),
    }
}

/// What the last run of a call rests on, as compares.
pub(super) fn compares(keys: &Keys, attempt: &Attempt) -> Vec<Compare> {
    let run = attempt.last_run();
    let mut compares: Vec<_> =
        run.got.iter().map(|(key, known)| unchanged(keys.at(key), known.changed)).collect();
    for (scan, rests) in &run.scanned {
        let Some(scanned) = attempt.scan(scan) else { continue };
        if *rests == Rests::OnNothing {
            continue;
        }
        if *rests == Rests::OnAll {
            compares.extend(
                scanned.records.iter().map(|(key, _, changed)| unchanged(keys.at(key), *changed)),
            );
        }
        // What lies behind the last record of a full page was not looked at.
        let mut range = scan.range();
        if scanned.records.len() >= scan.limit
            && let Some((last, _, _)) = scanned.records.last()
        {
            if scan.descending {
                range.start.clone_from(last);
            } else {
                range.end = Some([last.as_slice(), &[0]].concat());
            }
        }
        compares.push(nothing_newer(keys.range(&range), scanned.as_of));
    }
    compares
}

/// What a decision wants, as operations.
pub(super) fn operations(
    keys: &Keys,
    log: &Log,
    wanted: &Wanted,
    stamp: Stamp,
) -> Result<Vec<RequestOp>, StoreError> {
    let mut operations = Vec::with_capacity(wanted.writes.len());
    for (key, value) in &wanted.writes {
        let is_event = key.first() == Some(&EVENT);
        let at = if is_event {
            // It may have been swept by another.
            match revision_in(key).and_then(|revision| log.place_of(revision)) {
                Some(at) => at,
                None => continue,
            }
        } else {
            keys.at(key).into()
        };
        let operation = match value {
            Some(_) if is_event => {
                return Err(StoreError::Internal(
                    "a decision wrote an event that it did not append",
                ));
            }
            Some(value) => Op::RequestPut(PutRequest {
                key: at,
                value: stamped(key, value, stamp).into(),
                lease: 0,
            }),
            None => Op::RequestDeleteRange(DeleteRangeRequest { key: at, range_end: Bytes::new() }),
        };
        operations.push(RequestOp { request: Some(operation) });
    }
    Ok(operations)
}

/// A transaction, if etcd takes one that large.
pub(super) fn transaction(
    compare: Vec<Compare>,
    success: Vec<RequestOp>,
    failure: Vec<RequestOp>,
) -> Result<TxnRequest, StoreError> {
    if compare.len().max(success.len()).max(failure.len()) > MAX_OPS {
        return Err(StoreError::Internal("a change is larger than a transaction of etcd"));
    }
    Ok(TxnRequest { compare, success, failure })
}

/// All keys that begin with the prefix and `key`, as a page of a range.
pub(super) fn page((at, end): (Vec<u8>, Vec<u8>), limit: i64, revision: i64) -> RangeRequest {
    RangeRequest {
        key: at.into(),
        range_end: end.into(),
        limit,
        revision,
        ..RangeRequest::default()
    }
}

/// What is not used of a range once its first records were read.
pub(super) fn rest_of(scan: &Scan, last: &[u8]) -> KeyRange {
    let mut range = scan.range();
    if scan.descending {
        range.end = Some(last.to_vec());
    } else {
        range.start = [last, &[0]].concat();
    }
    range
}
