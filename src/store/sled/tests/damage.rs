//! A directory that lost something does not open, and says why.

use std::fs;

use super::child::step;
use super::*;

/// The files of a data directory, and what is in them.
#[derive(Clone)]
struct Copied(Vec<(PathBuf, Vec<u8>)>);

impl Copied {
    fn of(dir: &Path) -> Self {
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(Self::of(&path).0);
            } else {
                files.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
        Self(files)
    }

    fn put_back(&self, dir: &Path) {
        if dir.exists() {
            fs::remove_dir_all(dir).unwrap();
        }
        for (path, bytes) in &self.0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Commits `n` steps and closes.
fn grow(path: &Path, n: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = open(path).unwrap();
    for _ in 0..n {
        runtime.block_on(engine.commit(step(0, 0))).unwrap();
    }
}

fn damage(path: &Path) -> String {
    match open(path) {
        Err(OpenError::Damaged { what, .. }) => what,
        Err(other) => panic!("{other}"),
        Ok(engine) => panic!("it opened, with {} events", engine.head().revision),
    }
}

#[test]
fn an_older_database_is_refused() {
    let (_outer, path) = fresh();
    grow(&path, 20);
    let older = Copied::of(&path.join("sled"));
    grow(&path, 1);
    older.put_back(&path.join("sled"));
    for _ in 0..2 {
        assert!(damage(&path).contains("acknowledged commits are missing"));
    }
}

#[test]
fn another_history_of_the_same_length_is_refused() {
    let (_outer, path) = fresh();
    grow(&path, 20);
    let common = Copied::of(&path);
    grow(&path, 1);
    let one = Copied::of(&path.join("sled"));
    common.put_back(&path);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(open(&path).unwrap().commit(put(b"other", b"1"))).unwrap();
    one.put_back(&path.join("sled"));
    assert!(damage(&path).contains("does not hold what was acknowledged"));
}

#[test]
fn a_missing_part_is_refused() {
    let (_outer, path) = fresh();
    grow(&path, 20);
    let whole = Copied::of(&path);
    fs::remove_file(path.join("avouch.hwm")).unwrap();
    let refused = open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("high-water mark, avouch.hwm, is missing"), "{refused}");
    assert!(refused.contains("Restore a backup"), "{refused}");

    whole.put_back(&path);
    fs::remove_dir_all(path.join("sled")).unwrap();
    assert!(damage(&path).contains("sled/db, is missing"));

    whole.put_back(&path);
    fs::write(path.join("sled/db"), b"").unwrap();
    damage(&path);

    whole.put_back(&path);
    fs::write(path.join("avouch.hwm"), [0; 1024]).unwrap();
    assert!(damage(&path).contains("avouch.hwm, cannot be read"));

    whole.put_back(&path);
    let (_other, other) = fresh();
    SledEngine::open(&other, &SledSettings::new(1), LogId::from_bytes([9; 16])).unwrap();
    fs::copy(other.join("avouch.hwm"), path.join("avouch.hwm")).unwrap();
    assert!(damage(&path).contains("belongs to another database"));
}

#[test]
fn a_creation_that_was_cut_off_is_finished() {
    let (_outer, path) = fresh();
    fs::create_dir_all(&path).unwrap();
    let mark = mark::Mark { log_id: LOG, counter: 0, digest: 0 };
    mark::MarkFile::create(&path.join("avouch.hwm"), mark).unwrap();
    let other = LogId::from_bytes([9; 16]);
    let engine = SledEngine::open(&path, &SledSettings::new(1), other).unwrap();
    assert_eq!(engine.log_id(), LOG);
    drop(engine);
    grow(&path, 1);
}

/// sled's first file has its name, and not yet what it holds.
#[test]
fn a_first_start_that_was_cut_off_with_torn_files_begins_anew() {
    let (_outer, path) = fresh();
    grow(&path, 0);
    let none = mark::Mark { log_id: LOG, counter: 0, digest: 0 };
    mark::MarkFile::create(&path.join("avouch.hwm"), none).unwrap();
    fs::write(path.join("sled/conf"), [0; 62]).unwrap();
    fs::write(path.join("avouch.snapshot"), b"of no use").unwrap();
    grow(&path, 3);
    assert_eq!(open(&path).unwrap().head().revision, Revision(3));
    assert!(path.join("sled.unfinished/conf").exists());

    // Once something is acknowledged, it does not.
    fs::write(path.join("sled/conf"), [0; 62]).unwrap();
    damage(&path);
    assert!(path.join("sled/db").exists());
}

#[test]
fn groups_past_the_mark_are_kept_and_the_mark_brought_up() {
    let (_outer, path) = fresh();
    grow(&path, 20);
    let older = fs::read(path.join("avouch.hwm")).unwrap();
    grow(&path, 3);
    fs::write(path.join("avouch.hwm"), &older).unwrap();
    assert_eq!(open(&path).unwrap().head().revision, Revision(23));
    let file = mark::MarkFile::open(&path.join("avouch.hwm")).unwrap();
    assert_eq!(file.1.unwrap().counter, 24);

    grow(&path, 40);
    fs::write(path.join("avouch.hwm"), &older).unwrap();
    assert!(damage(&path).contains("mark is too old"));
}

#[test]
fn another_schema_is_refused_and_left_alone() {
    let (_outer, path) = fresh();
    grow(&path, 1);
    let refused = SledEngine::open(&path, &SledSettings::new(2), LOG).map(|_| ());
    assert!(matches!(refused, Err(OpenError::Schema { found: 1, expected: 2, .. })));
    assert_eq!(open(&path).unwrap().head().revision, Revision(1));
}

#[test]
fn a_path_that_cannot_be_a_directory_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(open(file.path()), Err(OpenError::Io { .. })));
}

#[test]
fn a_flipped_bit_loses_nothing_unnoticed() {
    const FLIPS: u64 = 200;
    let (_outer, path) = fresh();
    grow(&path, 300);
    grow(&path, 100);
    let whole = Copied::of(&path);
    let all = KeyRange::prefix(b"");
    let records = open(&path).unwrap().scan(&all, Order::Ascending, usize::MAX).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut refused = 0;
    for flip in 0..FLIPS {
        let mut damaged = whole.clone();
        let largest = (0..damaged.0.len()).max_by_key(|&n| damaged.0[n].1.len()).unwrap();
        // Half of them in the log, most of them where something is written.
        let file = if flip % 2 == 0 { largest } else { draw(damaged.0.len()) };
        let (name, bytes) = &mut damaged.0[file];
        let written: Vec<_> = (0..bytes.len()).filter(|&n| bytes[n] != 0).collect();
        if bytes.is_empty() {
            continue;
        }
        let byte = if flip % 8 == 0 { draw(bytes.len()) } else { written[draw(written.len())] };
        bytes[byte] ^= 1 << draw(8);
        let at = format!("byte {byte} of {}", name.display());
        damaged.put_back(&path);
        match open(&path) {
            Ok(engine) => {
                let found = engine.scan(&all, Order::Ascending, usize::MAX).unwrap();
                assert_eq!(found, records, "{at}");
                assert_eq!(engine.head().revision, Revision(400), "{at}");
            }
            Err(OpenError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("{at}: {other}"),
        }
    }
    println!("{refused} of {FLIPS} flips were refused");
    assert!(refused > 0);
}
