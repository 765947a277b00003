//! Whether the watchers were told everything, in order, and nothing that was acknowledged is missing at
//! the end.

use std::collections::BTreeMap;

use super::{Findings, Measures, Promise};
use crate::history::{Answer, History, Micros, Seen, Shown};

/// Every revocation that anybody knows of, by revision.
fn known(history: &History) -> BTreeMap<u64, Shown> {
    let mut known = BTreeMap::new();
    let mut add = |shown: &Shown| {
        known.insert(shown.revision, shown.clone());
    };
    for call in &history.calls {
        if let Answer::Revoked { event: Some(event), .. } = &call.answer {
            add(event);
        }
    }
    for (_, seen) in history.watched.iter().flatten() {
        if let Seen::Batch { shown, .. } = seen {
            shown.iter().for_each(&mut add);
        }
    }
    for list in history.end.iter().flat_map(|end| &end.lists) {
        list.iter().for_each(&mut add);
    }
    known
}

pub(super) fn check(history: &History, measures: Measures<'_>, findings: &mut Findings) {
    let known = known(history);
    for (watcher, seen) in history.watched.iter().enumerate() {
        stream(watcher, seen, measures, &known, findings);
    }
    for (place, other) in about_once(history) {
        findings
            .add(Promise::NoHoles, format!("one revision, two events: {place:?} and {other:?}"));
    }
    waits(history, findings);
    let Some(end) = &history.end else { return };
    for (watcher, whole) in end.whole.iter().enumerate() {
        if !whole {
            let text = format!("the set of watcher {watcher} is not the live one at the end");
            findings.add(Promise::NoHoles, text);
        }
    }
    for (watcher, seen) in history.watched.iter().enumerate() {
        let last = seen.iter().rev().find_map(|(_, seen)| match seen {
            Seen::Synced(at) | Seen::Heartbeat(at) | Seen::Batch { through: at, .. } => Some(*at),
            Seen::Connected { .. } | Seen::Reset | Seen::Lost(_) => None,
        });
        if last.is_none_or(|last| last < end.head) {
            let text = format!("watcher {watcher} is at {last:?} at the end, not {}", end.head);
            findings.add(Promise::NoHoles, text);
        }
    }
    for (replica, list) in end.lists.iter().enumerate() {
        let mut held: BTreeMap<&str, u32> = BTreeMap::new();
        for shown in list {
            let epoch = held.entry(&shown.about).or_default();
            *epoch = shown.epoch.max(*epoch);
        }
        let slack = measures.slack(end.at, end.at);
        let live = known.values().filter(|shown| shown.ends > end.at + slack);
        for shown in live {
            if held.get(shown.about.as_str()).is_none_or(|epoch| *epoch < shown.epoch) {
                let text = format!("replica {replica} does not list {shown:?} at the end");
                findings.add(Promise::Durable, text);
            }
        }
    }
}

/// Where it is said that all watchers have applied a revocation, those that were there all the time have.
fn waits(history: &History, findings: &mut Findings) {
    for call in &history.calls {
        let Answer::Revoked { event: Some(event), applied: Some(true), .. } = &call.answer else {
            continue;
        };
        for (watcher, seen) in history.watched.iter().enumerate() {
            let from = seen.partition_point(|(at, _)| *at < call.invoked);
            let to = seen.partition_point(|(at, _)| *at <= call.returned);
            let stays =
                |it: &Seen| matches!(it, Seen::Synced(_) | Seen::Batch { .. } | Seen::Heartbeat(_));
            let was_there = seen[..from].last().is_some_and(|(_, it)| stays(it))
                && seen[from..to].iter().all(|(_, it)| stays(it));
            let told = seen[..to].iter().any(|(_, it)| match it {
                Seen::Batch { shown, .. } => shown.iter().any(|it| it.revision == event.revision),
                _ => false,
            });
            if was_there && !told && !is_sent_away(&seen[to..], event.revision) {
                let text = format!("watcher {watcher} is said to have applied {event:?}: {call:?}");
                findings.add(Promise::Applied, text);
            }
        }
    }
}

/// Whether the server had ended the stream by then, and that was still on its way: what comes next of it
/// is its good-bye, before anything as late as this revision.
fn is_sent_away(next: &[(Micros, Seen)], revision: u64) -> bool {
    let mut before = next
        .iter()
        .map(|(_, it)| it)
        .skip_while(|it| matches!(it, Seen::Heartbeat(at) if *at < revision));
    matches!(before.next(), Some(Seen::Lost(why)) if why.starts_with("GoAway"))
}

/// What stands at one revision is one event for everybody.
fn about_once(history: &History) -> Vec<(Shown, Shown)> {
    let mut first: BTreeMap<u64, &Shown> = BTreeMap::new();
    let mut different = Vec::new();
    let calls = history.calls.iter().filter_map(|call| match &call.answer {
        Answer::Revoked { event, .. } => event.as_ref(),
        _ => None,
    });
    let watched = history.watched.iter().flatten().flat_map(|(_, seen)| match seen {
        Seen::Batch { shown, .. } => shown.as_slice(),
        _ => &[],
    });
    let lists = history.end.iter().flat_map(|end| end.lists.iter().flatten());
    for shown in calls.chain(watched).chain(lists) {
        let other = first.entry(shown.revision).or_insert(shown);
        if (&other.about, other.epoch) != (&shown.about, shown.epoch) {
            different.push(((*other).clone(), shown.clone()));
        }
    }
    different
}

/// One watcher's stream, from its beginning to its end.
fn stream(
    watcher: usize,
    seen: &[(Micros, Seen)],
    measures: Measures<'_>,
    known: &BTreeMap<u64, Shown>,
    findings: &mut Findings,
) {
    // Everything up to here was applied; None before the first set.
    let mut cursor: Option<u64> = None;
    // Between `start` and `synced` of a stream that does not resume, what comes is a part of a new set.
    let mut whole_follows = true;
    let mut last_revision = 0;
    for (now, seen) in seen {
        // What has ended meanwhile need not be told any more.
        let slack = measures.slack(*now, *now);
        let live = |it: &Shown| it.ends > now + slack;
        let mut hole =
            |text: String| findings.add(Promise::NoHoles, format!("watcher {watcher}: {text}"));
        match seen {
            Seen::Connected { resumed } => {
                whole_follows = !resumed;
                last_revision = if *resumed { cursor.unwrap_or(0) } else { 0 };
            }
            Seen::Synced(through) => {
                if cursor.is_some_and(|cursor| cursor > *through) {
                    hole(format!("synced at {through}, behind {cursor:?}"));
                }
                if !whole_follows {
                    shows_all(cursor, *through, &[], known, &live, &mut hole);
                }
                whole_follows = false;
                cursor = Some(*through);
            }
            Seen::Batch { shown, through } => {
                for shown in shown {
                    if shown.revision <= last_revision {
                        hole(format!("{} after {last_revision}", shown.revision));
                    }
                    last_revision = shown.revision;
                }
                if last_revision > *through {
                    hole(format!("{last_revision} is past {through}, to which all was shown"));
                }
                if !whole_follows {
                    shows_all(cursor, *through, shown, known, &live, &mut hole);
                    cursor = cursor.max(Some(*through));
                }
            }
            Seen::Heartbeat(through) => {
                if !whole_follows {
                    shows_all(cursor, *through, &[], known, &live, &mut hole);
                    cursor = cursor.max(Some(*through));
                }
            }
            Seen::Reset => hole("the log was said to be another one".to_owned()),
            Seen::Lost(_) => {}
        }
    }
}

/// Whether every event after `cursor` and up to `through` is among these.
fn shows_all(
    cursor: Option<u64>,
    through: u64,
    shown: &[Shown],
    known: &BTreeMap<u64, Shown>,
    live: &impl Fn(&Shown) -> bool,
    hole: &mut impl FnMut(String),
) {
    let Some(cursor) = cursor.filter(|cursor| *cursor < through) else { return };
    for (revision, event) in known.range(cursor + 1..=through) {
        if live(event) && !shown.iter().any(|shown| shown.revision == *revision) {
            hole(format!("not told of {event:?}, between {cursor} and {through}"));
        }
    }
}
