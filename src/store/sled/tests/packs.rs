//! Index entries in packs: few records, and none of them missed.

use std::sync::atomic::{AtomicBool, AtomicU8};

use proptest::prelude::*;

use super::*;
use crate::store::engine::is_index_key;

fn entry(n: u64) -> Vec<u8> {
    [b"i", n.to_be_bytes().as_slice(), &[3; 24]].concat()
}

/// A decision that puts some entries and deletes others.
fn change(put: Vec<Vec<u8>>, delete: Vec<Vec<u8>>) -> Decision {
    decision(move |txn| {
        for key in &put {
            txn.put(key.clone(), Vec::new());
        }
        for key in &delete {
            txn.delete(key.clone());
        }
        Ok(())
    })
}

#[tokio::test]
async fn entries_share_records_and_leave_none_behind() {
    let (_outer, path) = fresh();
    let engine = open(&path).unwrap();
    let entries: Vec<_> = (0..2000).map(|n: u64| entry(n.wrapping_mul(0x9e37_79b9))).collect();
    for chunk in entries.chunks(10) {
        engine.commit(change(chunk.to_vec(), Vec::new())).await.unwrap();
    }
    let records =
        || engine.shared.db.iter().keys().filter(|key| is_index_key(key.as_ref().unwrap()));
    assert!((20..700).contains(&records().count()), "{}", records().count());
    let all = KeyRange::prefix(b"i");
    assert_eq!(engine.scan(&all, Order::Ascending, usize::MAX).unwrap().len(), entries.len());
    for record in engine.shared.db.iter() {
        let (key, value) = record.unwrap();
        assert!(key.len() + value.len() < 1024);
    }
    for chunk in entries.chunks(10) {
        engine.commit(change(Vec::new(), chunk.to_vec())).await.unwrap();
    }
    assert_eq!(records().count(), 0);
}

/// While packs split under it, a scan in either direction shows each entry that stays, once.
#[test]
fn a_scan_misses_nothing_that_a_split_moves() {
    const STAY: u64 = 200;
    let (_outer, path) = fresh();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = open(&path).unwrap();
    let commit = |decision| runtime.block_on(engine.commit(decision)).unwrap();
    // Each round in a range of its own, where nothing has split yet.
    let of_round = |round: u8| move |n: u64| [b"i", &[round][..], &entry(n)].concat();
    let (current, done) = (AtomicU8::new(0), AtomicBool::new(false));
    commit(change((0..STAY).map(|n| of_round(0)(n << 32)).collect(), Vec::new()));
    thread::scope(|threads| {
        for order in [Order::Ascending, Order::Descending] {
            let (engine, current, done) = (&engine, &current, &done);
            threads.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let round = current.load(Ordering::Acquire);
                    let range = KeyRange::prefix(&[b'i', round]);
                    let mut found = engine.scan(&range, order, usize::MAX).unwrap();
                    if order == Order::Descending {
                        found.reverse();
                    }
                    assert!(found.is_sorted_by(|a, b| a.0 < b.0));
                    let stay = (0..STAY).map(|n| of_round(round)(n << 32));
                    let found = found.into_iter().map(|(key, _)| key);
                    assert!(found.filter(|key| key[7..11] == [0; 4]).eq(stay), "{order:?}");
                }
            });
        }
        for round in 1..40 {
            let among = |m| {
                change((0..STAY).map(|n| of_round(round - 1)((n << 32) + m)).collect(), Vec::new())
            };
            (1..9).map(among).for_each(|more| _ = commit(more));
            commit(change((0..STAY).map(|n| of_round(round)(n << 32)).collect(), Vec::new()));
            current.store(round, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
}

proptest! {
    #[test]
    fn a_pack_reads_back_and_nothing_makes_it_panic(
        keys in proptest::collection::btree_set(proptest::collection::vec(0..3_u8, 1..300), 0..40),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let entries: Vec<_> = keys.into_iter().map(|key| [b"i", key.as_slice()].concat()).collect();
        let at = entries.first().map_or(b"i".to_vec(), Clone::clone);
        prop_assert_eq!(pack::read(&at, &pack::write(&at, &entries)), Some(entries));
        _ = pack::read(b"i", &noise);
    }
}
