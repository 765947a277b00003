//! The parts that need no etcd.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::store::engine::{Order, Reads, Rests, Value, event_key};
use crate::store::etcd::cache::Known;
use crate::store::etcd::keys::{Part, parts, revision_in, stamp_of, stamped};
use crate::store::etcd::log::Placed;
use crate::store::etcd::pb::range_request::SortOrder;
use crate::store::etcd::view::{Attempt, Over, Scan, Scanned};

/// Keys of all kinds: below and above those of the engine and of events, and these themselves.
fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(0),
        Just(b'!'),
        Just(b'"'),
        Just(b'd'),
        Just(b'e'),
        Just(b'f'),
        Just(b'i'),
        Just(255)
    ];
    vec(byte, 0..4)
}

fn any_range() -> impl Strategy<Value = KeyRange> {
    (any_key(), proptest::option::of(any_key())).prop_map(|(start, end)| KeyRange { start, end })
}

fn inside(range: &KeyRange, key: &[u8]) -> bool {
    *key >= *range.start && range.end.as_ref().is_none_or(|end| *key < **end)
}

fn any_standing() -> impl Strategy<Value = Standing> {
    use Standing::{Adopting, Moved, Restoring, WentBack, Whole};
    prop::sample::select(vec![Whole, Adopting, Restoring, Moved, WentBack])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parts_of_a_range_are_the_range_without_what_is_the_engines(
        range in any_range(), key in any_key(),
    ) {
        let parts = parts(&range);
        let holding: Vec<_> = parts
            .iter()
            .filter(|part| match part {
                Part::Stored(range) | Part::Log(range) => inside(range, &key),
            })
            .collect();
        let visible = inside(&range, &key) && key.first() != Some(&b'!');
        prop_assert_eq!(holding.len(), usize::from(visible));
        if let [part] = holding.as_slice() {
            prop_assert_eq!(matches!(part, Part::Log(_)), key.first() == Some(&b'e'));
        }
        let starts = parts.iter().map(|part| match part {
            Part::Stored(range) | Part::Log(range) => &range.start,
        });
        prop_assert!(starts.is_sorted());
    }

    #[test]
    fn keys_stand_under_the_prefix_in_their_order(one in any_key(), other in any_key(), range in any_range()) {
        let keys = Keys::new("/p/");
        prop_assert_eq!(keys.at(&one).cmp(&keys.at(&other)), one.cmp(&other));
        let placed = keys.at(&one);
        prop_assert_eq!(keys.key_at(&placed), Some(one.as_slice()));
        prop_assert_eq!(keys.key_at(b"/q/"), None);
        let (from, to) = keys.range(&range);
        let there = keys.at(&one);
        prop_assert_eq!(inside(&range, &one), there >= from && there < to);
        prop_assert!(b"/p0".as_slice() >= to.as_slice() || range.end.is_some());
    }

    #[test]
    fn a_value_stands_with_its_stamp(key in any_key(), value in vec(any::<u8>(), 0..40), stamp: [u8; 8]) {
        let index = key.first().is_some_and(|kind| b"ixz".contains(kind));
        let stored = stamped(&key, &value, stamp);
        let expected = if index { Value::new() } else { value };
        prop_assert_eq!(unstamped(&key, &stored), Ok(expected));
        prop_assert_eq!(stamp_of(&stored) == Some(stamp), !index);
    }

    #[test]
    fn no_bytes_make_the_own_record_panic(bytes in vec(any::<u8>(), 0..40), schema: u32, cluster_id: u64, standing in any_standing()) {
        let meta = Meta { schema, log_id: server::LOG, cluster_id, standing };
        prop_assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        prop_assert_eq!(Meta::decode(&meta.encode()[1..]), None);
        if let Some(meta) = Meta::decode(&bytes) {
            prop_assert_eq!(meta.encode(), bytes);
        }
    }

    /// The log in memory reads like records under `e`.
    #[test]
    fn the_log_scans_like_a_sorted_map(
        mut sorted in vec(1..40_i64, 0..20), swept in vec(1..40_i64, 0..6),
        range in any_range(), from in 0..40_u64, descending: bool, limit in 0..9_usize,
    ) {
        let log = Log::new();
        sorted.sort_unstable();
        let place = |revision: i64| Bytes::from(revision.to_string());
        let event = |revision: i64| Placed { revision, at: place(revision), value: place(revision) };
        log.add(sorted.iter().map(|revision| event(*revision)).collect(), 0);
        swept.iter().for_each(|revision| log.remove(&place(*revision)));
        let model: BTreeMap<_, _> = sorted
            .iter()
            .filter(|revision| !swept.contains(revision))
            .map(|revision| {
                let number = u64::try_from(*revision).unwrap();
                (event_key(Revision(number)), place(*revision).to_vec())
            })
            .collect();
        let order = if descending { Order::Descending } else { Order::Ascending };
        for range in [range, KeyRange { start: event_key(Revision(from)), end: Some(b"f".to_vec()) }] {
            let mut expected: Vec<_> =
                model.clone().into_iter().filter(|(key, _)| inside(&range, key)).collect();
            if descending {
                expected.reverse();
            }
            expected.truncate(limit);
            prop_assert_eq!(log.scan(&range, order, limit), expected);
        }
        let after: Vec<_> =
            log.after(Revision(from), limit).into_iter().map(|event| event_key(event.revision)).collect();
        let expected = model.keys().filter(|key| revision_in(key).unwrap().0 > from);
        prop_assert_eq!(after, expected.take(limit).cloned().collect::<Vec<_>>());
        prop_assert_eq!(log.head().0, sorted.last().copied().unwrap_or_default().unsigned_abs());
    }

    /// However little is known when it begins, a decision ends with what it would have said of all that
    /// is there, once what it could not see was read.
    #[test]
    fn a_view_in_parts_comes_to_the_same_as_the_whole(
        records in proptest::collection::btree_map(vec(prop_oneof![Just(b'a'), Just(b'b')], 1..4), any::<u8>(), 0..8),
        cached in vec((vec(prop_oneof![Just(b'a'), Just(b'b')], 1..4), proptest::option::of(any::<u8>())), 0..6),
        asked in vec((vec(prop_oneof![Just(b'a'), Just(b'b')], 1..4), 0..4_u8), 0..6),
    ) {
        let (keys, cache, log) = (Keys::new("/p/"), Cache::default(), Log::new());
        let over = Over { keys: &keys, cache: &cache, log: &log };
        let stored = |key: &[u8], value: u8| Bytes::from(stamped(key, &[value], [0; 8]));
        for (key, value) in &cached {
            let value = value.map(|value| stored(key, value));
            cache.learn(keys.at(key).into(), Known { changed: i64::from(value.is_some()), value, as_of: 1 });
        }
        let known = |key: &Vec<u8>| Known {
            value: records.get(key).map(|value| stored(key, *value)),
            changed: 5 * i64::from(records.contains_key(key)),
            as_of: 9,
        };
        let questions = asked.clone();
        let ask = move |reads: &dyn Reads| {
            let mut said: Vec<Vec<u8>> = Vec::new();
            for (key, how) in &questions {
                let found = match how {
                    0 => vec![reads.get(key)?],
                    1 => reads.get_many(std::slice::from_ref(key), Rests::OnAll)?,
                    2 => reads.get_many(std::slice::from_ref(key), Rests::OnNothing)?,
                    _ => {
                        let range = KeyRange::prefix(&key[..1]);
                        let found = reads.scan(&range, Order::Ascending, 9)?;
                        found.into_iter().map(|(_, value)| Some(value)).collect()
                    }
                };
                said.extend(found.into_iter().map(Option::unwrap_or_default));
            }
            Ok(Box::new(said) as Answer)
        };
        let mut attempt = Attempt::new(Trust::Cache);
        let mut runs = 0;
        let said = loop {
            runs += 1;
            prop_assert!(runs < 40, "it comes to an end");
            let said = attempt.ask(&ask, over);
            let run = attempt.last_run();
            let mut missing: Vec<_> = run.missing.iter().cloned().collect();
            let scans = run.missing_scans.clone();
            if missing.is_empty() && scans.is_empty() {
                // What is compared and found to be otherwise is read.
                missing.extend(run.got.iter().filter(|(key, got)| {
                    let there = known(key);
                    (there.changed, &there.value) != (got.changed, &got.value)
                }).map(|(key, _)| key.clone()));
                if missing.is_empty() {
                    break said.unwrap();
                }
            }
            for key in missing {
                let there = known(&key);
                attempt.learn(key, there);
            }
            for scan in scans {
                let range = scan.range();
                let records = records
                    .iter()
                    .filter(|(key, _)| inside(&range, key))
                    .map(|(key, value)| (key.clone(), stored(key, *value), 5))
                    .collect();
                attempt.learn_scan(scan, Scanned { records, as_of: 9 });
            }
        };
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for (key, how) in &asked {
            if *how < 3 {
                expected.push(records.get(key).map(|value| vec![*value]).unwrap_or_default());
            } else {
                let with = records.iter().filter(|(other, _)| other[0] == key[0]);
                expected.extend(with.map(|(_, value)| vec![*value]));
            }
        }
        prop_assert_eq!(*said.downcast::<Vec<Vec<u8>>>().unwrap(), expected);
    }
}

#[tokio::test]
async fn locks_that_are_no_longer_needed_hold_nobody_up() {
    let locks = Locks::new();
    let (a, b) = (b"a".to_vec(), b"b".to_vec());
    let both = locks.of([&a, &b].into_iter());
    let mut locked = locks.lock(both.clone()).await;
    assert!(locked.covers(&both));
    let only = locks.of(std::iter::once(&a));
    locked.keep(&only);
    assert!(locked.covers(&only));
    // Were it held still, this would wait for ever.
    let rest = both.difference(&only).copied().collect();
    drop(locks.lock(rest).await);
    assert!(!locked.covers(&both) || both == only);
}

#[test]
fn a_page_in_the_order_of_the_keys_asks_for_no_order() {
    // etcd reads a whole range to sort it, whatever the limit.
    let scan = |descending| Scan { start: b"u".to_vec(), end: None, descending, limit: 10 };
    let order = |scan| request::range_of_scan(&Keys::new("/p/"), &scan, 10).sort_order;
    assert_eq!(order(scan(false)), i32::from(SortOrder::None));
    assert_eq!(order(scan(true)), i32::from(SortOrder::Descend));
}

#[test]
fn what_is_kept_does_not_keep_what_came_with_it() {
    let sent = Bytes::from(vec![7; 8192]);
    let kv = pb::KeyValue { key: sent.slice(..4), value: sent.slice(4..8), ..Default::default() };
    let kept = feed::placed(&kv);
    drop(kv);
    assert_eq!((kept.at.len(), kept.value.len()), (4, 4));
    assert!(sent.is_unique());
}

#[test]
fn the_end_of_the_log_is_told_though_its_event_was_swept_unheard() {
    #[derive(Default)]
    struct Told(Mutex<Vec<(usize, Revision)>>);
    impl Observer for Told {
        fn durable(&self, events: &[LoggedEvent], head: Revision) {
            self.0.lock().unwrap().push((events.len(), head));
        }
    }
    let (log, told) = (Log::new(), Arc::new(Told::default()));
    log.observe(Arc::clone(&told) as Arc<dyn Observer>);
    let event = |revision| Placed { revision, at: Bytes::from_static(b"a"), value: Bytes::new() };
    log.add(vec![event(3)], 3);
    log.add(Vec::new(), 7);
    log.add(vec![event(3)], 7);
    assert_eq!(*told.0.lock().unwrap(), [(1, Revision(3)), (0, Revision(7))]);
}
