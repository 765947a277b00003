//! The engine alone, its power cut after each step of what it did: while it creates its directory,
//! writes, closes, opens again, and recovers from the cut before.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use avouch::domain::ids::{LogId, Revision};
use avouch::store::engine::{Decision, Engine as _, Reads as _};
use avouch::store::sled::{SledEngine, SledSettings};

use super::fuse::Disk;
use super::image::{HONEST, Honours, Step, Tree, Unsynced, after_power_cut};
use super::{Dice, ROUNDS, SEED, Shelf, setting, variable, with_own_mounts};

/// How many tasks write at once.
const WRITERS: usize = 8;
/// The file in which the other process says what it was told, on the same disk: so each answer
/// stands in the record between what was done before it and after it.
const ACKED: &str = "acked";
/// Tells the other process where the disk is.
const MOUNT: &str = "AVOUCH_TEST_MOUNT";
/// Where the engine's directory is: neither this directory nor the one above it is there at first.
const DATA: &str = "var/avouch";

fn open(path: &Path) -> Result<SledEngine, String> {
    let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(1) };
    SledEngine::open(path, &settings, LogId::from_bytes([7; 16])).map_err(|e| e.to_string())
}

/// One of a writer's two records.
fn half(which: u8, writer: usize) -> Vec<u8> {
    vec![which, b'/', u8::try_from(writer).expect("few")]
}

fn number(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("eight")))
}

/// Counts a writer's two records up, with an event that says so. It adds a record each time and
/// removes four every fourth time, so that pages split and are freed.
fn step(writer: usize) -> Decision {
    Box::new(move |txn| {
        let next = number(txn.get(&half(b'a', writer))?.as_deref()) + 1;
        txn.put(half(b'a', writer), next.to_be_bytes().to_vec());
        txn.put(half(b'b', writer), next.to_be_bytes().to_vec());
        let bulk = |n: u64| [half(b'c', writer), n.to_be_bytes().to_vec()].concat();
        txn.put(bulk(next), vec![b'.'; 40 + usize::try_from(next * 97 % 900).expect("small")]);
        if next.is_multiple_of(4) && next > 8 {
            (next - 8..next - 4).for_each(|n| txn.delete(bulk(n)));
        }
        txn.append([(writer as u64).to_be_bytes(), next.to_be_bytes()].concat())?;
        Ok(Box::new(next))
    })
}

/// What the other process does: opens, writes, closes, opens again, writes, and ends without
/// closing.
#[test]
#[ignore = "the other process of the tests beside this one"]
fn writer() {
    let Some(mount) = variable(MOUNT) else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mount = Path::new(&mount);
    _ = std::fs::remove_file(mount.join(ACKED));
    let acked = OpenOptions::new().create(true).append(true).open(mount.join(ACKED));
    let acked = Arc::new(acked.expect("a file"));
    for run in 0..2 {
        let engine = Arc::new(open(&mount.join(DATA)).expect("it opens"));
        runtime.block_on(async {
            let tasks: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (engine, acked) = (Arc::clone(&engine), Arc::clone(&acked));
                    tokio::spawn(async move {
                        for _ in 0..12 {
                            let (n, _) = engine.commit(step(writer)).await.expect("it commits");
                            let n = n.downcast::<u64>().expect("a count");
                            (&*acked)
                                .write_all(format!("{writer} {n}\n").as_bytes())
                                .expect("said");
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("it commits");
            }
            if run == 0 {
                engine.close().await;
            }
        });
        if run == 1 {
            std::process::exit(0);
        }
    }
}

/// The last count that each writer was told in these steps.
fn acked(steps: &[Step]) -> [u64; WRITERS] {
    let mut file = None;
    let mut text = Vec::new();
    for step in steps {
        match step {
            Step::Create { name, ino, .. } if name == ACKED => file = Some(*ino),
            Step::Write { ino, bytes, .. } if file == Some(*ino) => text.extend_from_slice(bytes),
            _ => {}
        }
    }
    let mut last = [0; WRITERS];
    for line in String::from_utf8(text).expect("text").lines() {
        let (writer, n) = line.split_once(' ').expect("two words");
        let last: &mut u64 = &mut last[writer.parse::<usize>().expect("a writer")];
        *last = (*last).max(n.parse().expect("a count"));
    }
    last
}

/// What each writer was told, be it in one power-on or the other.
fn newest(mut one: [u64; WRITERS], other: [u64; WRITERS]) -> [u64; WRITERS] {
    one.iter_mut().zip(other).for_each(|(n, other)| *n = other.max(*n));
    one
}

/// Opens what a disk holds. What is wrong with it, if anything is.
fn wrong(path: &Path, acked: &[u64; WRITERS]) -> Result<(), String> {
    let engine = open(path).map_err(|error| format!("refused: {error}"))?;
    let read = |key: Vec<u8>| engine.get(&key).map(|value| number(value.as_deref()));
    let events = engine.events_after(Revision(0), usize::MAX).map_err(|e| e.to_string())?;
    let mut counted = [0; WRITERS];
    for (event, revision) in events.iter().zip(1..) {
        let writer = usize::try_from(number(Some(&event.value[..8]))).expect("small");
        counted[writer] += 1;
        if event.revision != Revision(revision)
            || number(Some(&event.value[8..])) != counted[writer]
        {
            return Err(format!("a hole in the log: {event:?} after {counted:?}"));
        }
    }
    if engine.head().revision != Revision(events.len() as u64) {
        return Err(format!("its head is not its last event: {:?}", engine.head()));
    }
    for writer in 0..WRITERS {
        let a = read(half(b'a', writer)).map_err(|e| e.to_string())?;
        let b = read(half(b'b', writer)).map_err(|e| e.to_string())?;
        if (a, b) != (counted[writer], a) {
            return Err(format!("torn: {a} {b} {}", counted[writer]));
        }
        if a < acked[writer] {
            return Err(format!("lost: writer {writer} was told {}, found {a}", acked[writer]));
        }
    }
    Ok(())
}

/// Whether the engine finds on this disk what it acknowledged.
fn found(shelf: &mut Shelf, disk: &Tree, acked: &[u64; WRITERS]) -> Result<(), String> {
    let place = shelf.put(disk);
    let result = wrong(&place.join(DATA), acked);
    shelf.clear(&place);
    result
}

/// What the other process did to a disk that held this.
fn recorded(base: Tree) -> (Tree, Vec<Step>) {
    let disk = Disk::holding(base);
    let mount = tempfile::tempdir().expect("a directory");
    let session = disk.mount(mount.path());
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "disk::engine::writer", "--ignored", "--nocapture"])
        .env(MOUNT, mount.path())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    session.umount_and_join().expect("unmounted");
    disk.record()
}

/// The numbers of the steps after which the power is cut: each in turn comes often enough when
/// many rounds are asked for.
fn moments(steps: &[Step], count: usize, dice: &Dice) -> Vec<usize> {
    let mut moments: Vec<_> = (0..count).map(|_| dice.below(steps.len() + 1)).collect();
    // Syncs are where promises are kept: cut before and after some of them.
    let syncs: Vec<_> =
        (0..steps.len()).filter(|n| matches!(steps[*n], Step::Sync { .. })).collect();
    moments.extend((0..count / 2).map(|n| syncs[dice.below(syncs.len())] + n % 2));
    moments
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_that_was_acknowledged() {
    if !with_own_mounts("disk::engine::a_power_cut_at_any_step_loses_nothing_that_was_acknowledged")
    {
        return;
    }
    let seed = setting(SEED, 91);
    let dice = Dice::new(seed);
    println!("seed {seed}");
    let mut shelf = Shelf::new(256);
    let mut cuts = 0;
    let mut refused = Vec::new();
    let (mut base, mut before) = (Tree::default(), [0; WRITERS]);
    for generation in 0..3 * setting(ROUNDS, 1) {
        if generation % 6 == 0 {
            (base, before) = (Tree::default(), [0; WRITERS]);
        }
        let (held, steps) = recorded(base);
        let all = acked(&steps);
        assert!(all.iter().all(|n| *n >= 24), "the load was none: {all:?}");
        for (n, at) in moments(&steps, 60, &dice).into_iter().enumerate() {
            let unsynced = Unsynced::ALL[n % Unsynced::ALL.len()];
            let told = newest(before, acked(&steps[..at]));
            let disk = after_power_cut(&held, &steps[..at], unsynced, &dice, HONEST);
            cuts += 1;
            if let Err(what) = found(&mut shelf, &disk, &told) {
                refused.push(format!(
                    "seed {seed}, generation {generation}, after step {at} of {}, {unsynced:?}: \
                     {what}; the steps before: {:?}",
                    steps.len(),
                    &steps[at.saturating_sub(20)..at],
                ));
            }
        }
        // The next one begins with what a cut in the middle of this one has left.
        let at = steps.len() / 2 + dice.below(steps.len() / 2);
        base = after_power_cut(&held, &steps[..at], Unsynced::Torn(512), &dice, HONEST);
        before = newest(before, acked(&steps[..at]));
    }
    println!("{cuts} power cuts");
    assert!(refused.is_empty(), "{} of {cuts}:\n{}", refused.len(), refused.join("\n"));
}

/// sled's files, its directory and ours were synced, but of the directories above only the next one:
/// with two of them new, a power cut took everything.
#[test]
fn the_directories_above_a_new_one_outlast_a_power_cut() {
    if !with_own_mounts("disk::engine::the_directories_above_a_new_one_outlast_a_power_cut") {
        return;
    }
    let (held, steps) = recorded(Tree::default());
    let first = (0..steps.len()).find(|n| acked(&steps[..*n]) != [0; WRITERS]);
    let first = first.expect("something was acknowledged");
    let disk = after_power_cut(&held, &steps[..first], Unsynced::Lost, &Dice::new(0), HONEST);
    assert!(disk.find(&format!("{DATA}/sled/db")).is_some());
}

/// As it opens, sled removes the snapshot before the one that it has just written, and syncs neither
/// name: with both gone it found nothing in a log whose first segments it had used again.
#[test]
fn a_power_cut_while_sled_replaces_its_snapshot_loses_nothing() {
    if !with_own_mounts("disk::engine::a_power_cut_while_sled_replaces_its_snapshot_loses_nothing")
    {
        return;
    }
    let dice = Dice::new(setting(SEED, 91));
    let mut shelf = Shelf::new(256);
    let mut none = 0;
    for _ in 0..4 {
        let (mut base, mut before) = (Tree::default(), [0; WRITERS]);
        // After some cuts its log has segments to clear, and is longer than what it holds.
        for _ in 0..5 {
            let (held, steps) = recorded(base);
            let at = steps.len() / 2 + dice.below(steps.len() / 2);
            before = newest(before, acked(&steps[..at]));
            base = after_power_cut(&held, &steps[..at], Unsynced::Torn(512), &dice, HONEST);
        }
        none += without_a_snapshot(base, before, &dice, &mut shelf);
    }
    assert!(none > 0, "no cut has taken both names");
}

/// Cuts the power between the replacement of a snapshot and the sync of its directory. How many
/// times there was none left.
fn without_a_snapshot(base: Tree, before: [u64; WRITERS], dice: &Dice, shelf: &mut Shelf) -> usize {
    let (held, steps) = recorded(base);
    let directory = held.find(&format!("{DATA}/sled")).expect("it was there");
    let removes = |step: &Step| match step {
        Step::Remove { parent, name } => {
            *parent == directory && name.to_string_lossy().starts_with("snap.")
        }
        _ => false,
    };
    let whole = |name: &str| name.starts_with("snap.") && !name.ends_with(".generating");
    let mut none = 0;
    for removed in (0..steps.len()).filter(|n| removes(&steps[*n])) {
        let synced = |step: &Step| matches!(step, Step::Sync { ino } if *ino == directory);
        let more = steps[removed..].iter().position(synced).expect("the directory is synced");
        for _ in 0..24 {
            // What sled clears in the log meanwhile is on the disk or not.
            let at = removed + 1 + dice.below(more);
            let told = newest(before, acked(&steps[..at]));
            let torn = Unsynced::Torn(4096);
            let disk = after_power_cut(&held, &steps[..at], torn, dice, HONEST);
            let names = disk.names(directory).expect("a directory");
            none += usize::from(!names.keys().any(|name| whole(&name.to_string_lossy())));
            assert_eq!(found(shelf, &disk, &told), Ok(()), "after step {at}");
        }
    }
    none
}

/// What came of cuts on a disk that keeps this much of what it promised.
fn outcomes(honours: Honours<'_>, held: &Tree, steps: &[Step], from: usize) -> (u32, u32, u32) {
    let dice = Dice::new(4);
    let mut shelf = Shelf::new(256);
    let (mut fine, mut lost, mut refused) = (0, 0, 0);
    for _ in 0..16 {
        let at = from + dice.below(steps.len() - from);
        let told = acked(&steps[..at]);
        let disk = after_power_cut(held, &steps[..at], Unsynced::Lost, &dice, honours);
        match found(&mut shelf, &disk, &told) {
            Ok(()) => fine += 1,
            Err(what) if what.starts_with("lost") => lost += 1,
            Err(what) => {
                assert!(what.starts_with("refused") && what.contains("is damaged"), "{what}");
                refused += 1;
            }
        }
    }
    (fine, lost, refused)
}

/// The check above can fail: without the syncs it does. And a database that alone has lost
/// something does not open.
#[test]
fn a_disk_that_ignores_syncs_loses_what_was_acknowledged_and_the_check_sees_it() {
    if !with_own_mounts(
        "disk::engine::a_disk_that_ignores_syncs_loses_what_was_acknowledged_and_the_check_sees_it",
    ) {
        return;
    }
    let (held, steps) = recorded(Tree::default());
    let mut live = held.clone();
    steps.iter().for_each(|step| live.apply(step));
    let data = live.find(&format!("{DATA}/sled/db")).expect("a database");
    // From the first answer on.
    let from = (1..steps.len())
        .find(|n| acked(&steps[..*n]) != [0; WRITERS])
        .expect("something was acknowledged");
    let later = from + 200;
    assert!(later < steps.len(), "{} steps", steps.len());

    let (fine, lost, refused) = outcomes(HONEST, &held, &steps, later);
    assert_eq!((fine, lost, refused), (16, 0, 0), "an honest disk");
    let (fine, lost, refused) = outcomes(&|n, _| n < from, &held, &steps, later);
    assert_eq!((fine, lost, refused), (0, 16, 0), "no sync is carried out");
    let (fine, lost, refused) = outcomes(&|n, ino| n < from || ino != data, &held, &steps, later);
    assert_eq!((fine, lost, refused), (0, 0, 16), "none of the database is");
}
