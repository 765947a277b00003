//! What is stored, and the bare transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::Failure;
use crate::etcd::{Cluster, pb};
use crate::records::{self, Records, spread};

type Kv = pb::kv_client::KvClient<tonic::transport::Channel>;

/// One of the records that a session takes.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Record,
    Index,
    Due,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Record, Self::Index, Self::Due];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Record => "session records",
            Self::Index => "index entries",
            Self::Due => "due entries",
        }
    }
}

/// One of the transactions.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// One linearizable read of a record.
    Read,
    /// A rotation: compare the session and three epochs, write the session.
    Rotate,
    /// A revocation: the same, and the event, and the head.
    Revoke,
    /// A login: compare the epochs, write the three records.
    Login,
}

impl What {
    pub(crate) const ALL: [Self; 4] = [Self::Read, Self::Rotate, Self::Revoke, Self::Login];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read (linearizable)",
            Self::Rotate => "rotate",
            Self::Revoke => "revoke session",
            Self::Login => "login",
        }
    }
}

/// What came of a measurement.
pub(crate) struct Rate {
    pub(crate) done: usize,
    pub(crate) took: Duration,
    each: Vec<Duration>,
}

impl Rate {
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let at = (self.each.len() as f64 * part) as usize;
        self.each.get(at).or(self.each.last()).copied().unwrap_or_default()
    }
}

/// Sessions in etcd.
pub(crate) struct Work<'a> {
    cluster: &'a Cluster,
    sessions: usize,
    /// The revision of each session's record.
    revisions: Arc<[AtomicI64]>,
    /// The next number that no session has.
    next: Arc<AtomicU64>,
}

fn put(key: &[u8], value: &[u8]) -> pb::RequestOp {
    let (key, value) = (key.to_vec().into(), value.to_vec().into());
    let request = pb::request_op::Request::RequestPut(pb::PutRequest { key, value, lease: 0 });
    pb::RequestOp { request: Some(request) }
}

fn unchanged(key: &[u8], revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::compare::CompareResult::Equal.into(),
        target: pb::compare::CompareTarget::Mod.into(),
        key: key.to_vec().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        range_end: Default::default(),
    }
}

impl<'a> Work<'a> {
    pub(crate) fn new(cluster: &'a Cluster, sessions: usize) -> Self {
        let revisions = (0..sessions).map(|_| AtomicI64::new(0)).collect();
        let next = Arc::new(AtomicU64::new(sessions as u64));
        Self { cluster, sessions, revisions, next }
    }

    /// Stores one kind of record for every session.
    pub(crate) async fn load(&mut self, kind: Kind) -> Result<Duration, Failure> {
        /// etcd takes at most 128 operations in a transaction.
        const TOGETHER: usize = 100;
        const LOADERS: usize = 16;
        let begun = Instant::now();
        let mut loaders = Vec::new();
        for loader in 0..LOADERS {
            let mut kv = Kv::new(self.cluster.channel(0)?);
            let (revisions, sessions) = (Arc::clone(&self.revisions), self.sessions);
            loaders.push(tokio::spawn(async move {
                let mut first = loader * TOGETHER;
                while first < sessions {
                    let numbers = first..sessions.min(first + TOGETHER);
                    let success = numbers
                        .clone()
                        .map(|number| {
                            let records = records::session(number as u64)?;
                            Ok(match kind {
                                Kind::Record => put(&records.at, &records.record),
                                Kind::Index => put(&records.index, &[]),
                                Kind::Due => put(&records.due, &[]),
                            })
                        })
                        .collect::<Result<_, Failure>>()?;
                    let txn = pb::TxnRequest { success, ..Default::default() };
                    let header = kv.txn(txn).await?.into_inner().header;
                    if matches!(kind, Kind::Record) {
                        let revision = header.map_or(0, |header| header.revision);
                        numbers.for_each(|it| revisions[it].store(revision, Ordering::Relaxed));
                    }
                    first += LOADERS * TOGETHER;
                }
                Ok::<_, Failure>(())
            }));
        }
        for loader in loaders {
            loader.await??;
        }
        Ok(begun.elapsed())
    }

    /// Does one thing again and again with so many callers, over 8 connections to each member.
    pub(crate) async fn run(
        &self,
        what: What,
        callers: usize,
        each: Duration,
    ) -> Result<Rate, Failure> {
        const CONNECTIONS: usize = 8;
        let channels: Vec<_> =
            (0..CONNECTIONS * 3).map(|at| self.cluster.channel(at)).collect::<Result<_, _>>()?;
        let begun = Instant::now();
        let until = begun + each;
        let mut all = Vec::new();
        for caller in 0..callers {
            let mut kv = Kv::new(channels[caller % channels.len()].clone());
            let (revisions, next) = (Arc::clone(&self.revisions), Arc::clone(&self.next));
            let share = self.sessions / callers;
            all.push(tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    // A session of this caller's share, so that no two meet.
                    let turn = spread((caller as u64) << 32 | times.len() as u64) as usize % share;
                    let number = caller * share + turn;
                    let new = next.fetch_add(1, Ordering::Relaxed);
                    let records = match what {
                        What::Login => records::session(new)?,
                        _ => records::session(number as u64)?,
                    };
                    let known = revisions[number].load(Ordering::Relaxed);
                    let begun = Instant::now();
                    let revision = call(&mut kv, what, &records, known, new).await?;
                    times.push(begun.elapsed());
                    if matches!(what, What::Rotate | What::Revoke) {
                        revisions[number].store(revision, Ordering::Relaxed);
                    }
                }
                Ok::<_, Failure>(times)
            }));
        }
        let mut times = Vec::new();
        for caller in all {
            times.append(&mut caller.await??);
        }
        let took = begun.elapsed();
        times.sort_unstable();
        Ok(Rate { done: times.len(), took, each: times })
    }
}

/// Does it once; gives the revision of what was written.
async fn call(
    kv: &mut Kv,
    what: What,
    records: &Records,
    known: i64,
    new: u64,
) -> Result<i64, Failure> {
    if matches!(what, What::Read) {
        let key = records.at.clone().into();
        let found = kv.range(pb::RangeRequest { key, ..Default::default() }).await?.into_inner();
        return match found.kvs.is_empty() {
            true => Err("a session is gone".into()),
            false => Ok(known),
        };
    }
    let mut compare: Vec<_> = records.epochs.iter().map(|key| unchanged(key, 0)).collect();
    compare.push(unchanged(&records.at, if matches!(what, What::Login) { 0 } else { known }));
    let mut success = vec![put(&records.at, &records.record)];
    match what {
        What::Read | What::Rotate => {}
        What::Revoke => {
            let mut at = b"e".to_vec();
            at.extend_from_slice(&new.to_be_bytes());
            success.push(put(&at, &records.event));
            success.push(put(b"head", &new.to_be_bytes()));
        }
        What::Login => {
            success.push(put(&records.index, &[]));
            success.push(put(&records.due, &[]));
        }
    }
    let txn = pb::TxnRequest { compare, success, failure: Vec::new() };
    let done = kv.txn(txn).await?.into_inner();
    if !done.succeeded {
        return Err("a transaction met another".into());
    }
    Ok(done.header.map_or(0, |header| header.revision))
}
