//! What a disk holds after a power cut. Knows files and what was done to them; mounts nothing.
//!
//! The rules are as strict as POSIX lets a file system be: what was written to a file is on the disk
//! once that file was synced, a name once its directory was; until then any part of it may be there
//! or not, in any order, torn at sectors. Modes and times are kept as if they were synced at once.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Dice;

/// Names a file or a directory, whatever it is called.
pub(super) type Ino = u64;
/// The directory at the top.
pub(super) const ROOT: Ino = 1;

/// Something that was done, as far as it changed what a disk may hold.
#[derive(Clone)]
pub(super) enum Step {
    /// A new file or directory.
    Create { parent: Ino, name: OsString, ino: Ino, directory: bool, mode: u32 },
    /// One more name for a file.
    Link { parent: Ino, name: OsString, ino: Ino },
    /// A name is gone.
    Remove { parent: Ino, name: OsString },
    /// A name is another one, in the same directory.
    Rename { parent: Ino, from: OsString, to: OsString },
    /// Bytes.
    Write { ino: Ino, offset: usize, bytes: Vec<u8> },
    /// A file is this long.
    Resize { ino: Ino, len: usize },
    /// Permissions.
    Mode { ino: Ino, mode: u32 },
    /// What was done to this file or directory is on the disk.
    Sync { ino: Ino },
    /// A sync failed. The kernel has dropped what it could not write and will not write it again.
    FailedSync { ino: Ino },
}

/// Without the bytes.
impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { parent, name, ino, .. } => {
                write!(f, "create {} in {parent} as {ino}", name.display())
            }
            Self::Link { parent, name, ino } => {
                write!(f, "link {} in {parent} to {ino}", name.display())
            }
            Self::Remove { parent, name } => write!(f, "remove {} from {parent}", name.display()),
            Self::Rename { parent, from, to } => {
                write!(f, "rename {} to {} in {parent}", from.display(), to.display())
            }
            Self::Write { ino, offset, bytes } => {
                let zeros = if bytes.iter().all(|byte| *byte == 0) { " zeros" } else { "" };
                write!(f, "write {}{zeros} to {ino} at {offset}", bytes.len())
            }
            Self::Resize { ino, len } => write!(f, "resize {ino} to {len}"),
            Self::Mode { ino, mode } => write!(f, "mode {mode:o} for {ino}"),
            Self::Sync { ino } => write!(f, "sync {ino}"),
            Self::FailedSync { ino } => write!(f, "failed sync of {ino}"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    File { bytes: Vec<u8>, mode: u32 },
    Directory { names: BTreeMap<OsString, Ino>, mode: u32 },
}

/// Files and directories as they are at one moment.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) nodes: HashMap<Ino, Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::Directory { names: BTreeMap::new(), mode: 0o755 };
        Self { nodes: HashMap::from([(ROOT, root)]) }
    }
}

impl Tree {
    /// The names in a directory.
    pub(super) fn names(&self, ino: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        match self.nodes.get(&ino) {
            Some(Node::Directory { names, .. }) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, ino: Ino) -> &mut BTreeMap<OsString, Ino> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory { names, .. }) => names,
            _ => panic!("{ino} is no directory"),
        }
    }

    /// What a file holds.
    pub(super) fn bytes(&self, ino: Ino) -> Option<&Vec<u8>> {
        match self.nodes.get(&ino) {
            Some(Node::File { bytes, .. }) => Some(bytes),
            _ => None,
        }
    }

    fn bytes_mut(&mut self, ino: Ino) -> &mut Vec<u8> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File { bytes, .. }) => bytes,
            _ => panic!("{ino} is no file"),
        }
    }

    /// The file or directory at a path below the top.
    pub(super) fn find(&self, path: &str) -> Option<Ino> {
        path.split('/').try_fold(ROOT, |at, name| self.names(at)?.get(OsStr::new(name)).copied())
    }

    /// Does it.
    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::Create { parent, name, ino, .. } => {
                self.create_unnamed(step);
                self.names_mut(*parent).insert(name.clone(), *ino);
            }
            Step::Link { parent, name, ino } => {
                self.names_mut(*parent).insert(name.clone(), *ino);
            }
            Step::Remove { parent, name } => _ = self.names_mut(*parent).remove(name),
            Step::Rename { parent, from, to } => {
                let names = self.names_mut(*parent);
                if let Some(ino) = names.remove(from) {
                    names.insert(to.clone(), ino);
                }
            }
            Step::Write { ino, offset, bytes } => self.write(*ino, *offset, bytes),
            Step::Resize { ino, len } => self.bytes_mut(*ino).resize(*len, 0),
            Step::Mode { ino, mode: new } => match self.nodes.get_mut(ino) {
                Some(Node::File { mode, .. } | Node::Directory { mode, .. }) => *mode = *new,
                None => {}
            },
            Step::Sync { .. } | Step::FailedSync { .. } => {}
        }
    }

    fn create_unnamed(&mut self, step: &Step) {
        if let Step::Create { ino, directory, mode, .. } = step {
            let node = if *directory {
                Node::Directory { names: BTreeMap::new(), mode: *mode }
            } else {
                Node::File { bytes: Vec::new(), mode: *mode }
            };
            self.nodes.insert(*ino, node);
        }
    }

    fn write(&mut self, ino: Ino, offset: usize, new: &[u8]) {
        let bytes = self.bytes_mut(ino);
        let end = offset + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(new);
    }

    /// Forgets what no name leads to.
    fn without_the_unnamed(mut self) -> Self {
        let mut reached = vec![ROOT];
        let mut next = 0;
        while let Some(ino) = reached.get(next).copied() {
            reached.extend(self.names(ino).into_iter().flat_map(BTreeMap::values));
            next += 1;
        }
        self.nodes.retain(|ino, _| reached.contains(ino));
        self
    }

    /// Puts everything into a directory of another file system.
    pub(super) fn write_to(&self, path: &Path) {
        self.write_below(ROOT, path, &mut HashMap::new());
    }

    fn write_below(&self, ino: Ino, path: &Path, written: &mut HashMap<Ino, PathBuf>) {
        written.insert(ino, path.to_owned());
        match &self.nodes[&ino] {
            Node::File { bytes, mode } => {
                let mut options = std::fs::OpenOptions::new();
                let mut file =
                    options.write(true).create_new(true).mode(*mode).open(path).expect("new");
                std::io::Write::write_all(&mut file, bytes).expect("room");
            }
            Node::Directory { names, mode } => {
                let made = std::fs::DirBuilder::new().mode(*mode).create(path);
                assert!(ino == ROOT || made.is_ok(), "{made:?}");
                for (name, ino) in names {
                    let path = path.join(name);
                    // A file may have more names than one.
                    match written.get(ino) {
                        Some(same) => std::fs::hard_link(same, &path).expect("linked"),
                        None => self.write_below(*ino, &path, written),
                    }
                }
            }
        }
    }
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unsynced {
    /// All of it is lost.
    Lost,
    /// All of it is there: the power did not fail, a process did.
    Kept,
    /// The first of it is there, up to some point, as behind a journal.
    Begun,
    /// Any of it is there, in pieces of so many bytes.
    Torn(usize),
}

impl Unsynced {
    pub(super) const ALL: [Self; 5] =
        [Self::Lost, Self::Torn(512), Self::Begun, Self::Torn(4096), Self::Kept];
}

/// Which syncs the disk carries out, by the number of the step and what it syncs.
pub(super) type Honours<'a> = &'a dyn Fn(usize, Ino) -> bool;

/// A disk that does what it says.
pub(super) const HONEST: Honours<'static> = &|_, _| true;

/// What the disk, which held `base` and saw `steps`, may hold after the power was cut.
pub(super) fn after_power_cut(
    base: &Tree,
    steps: &[Step],
    unsynced: Unsynced,
    dice: &Dice,
    honours: Honours<'_>,
) -> Tree {
    let mut disk = base.clone();
    // What was done to each file and directory since it was synced, in order.
    let mut pending: BTreeMap<Ino, Vec<&Step>> = BTreeMap::new();
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Create { parent, .. } => {
                // The node itself; that it has a name is up to its directory.
                disk.create_unnamed(step);
                pending.entry(*parent).or_default().push(step);
            }
            Step::Link { parent, .. }
            | Step::Remove { parent, .. }
            | Step::Rename { parent, .. } => {
                pending.entry(*parent).or_default().push(step);
            }
            Step::Write { ino, .. } | Step::Resize { ino, .. } => {
                pending.entry(*ino).or_default().push(step);
            }
            Step::Mode { .. } => disk.apply(step),
            Step::Sync { ino } if honours(n, *ino) => {
                for step in pending.remove(ino).unwrap_or_default() {
                    land(&mut disk, step);
                }
            }
            Step::Sync { .. } => {}
            Step::FailedSync { ino } => _ = pending.remove(ino),
        }
    }
    for steps in pending.into_values() {
        let kept = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Kept => steps.len(),
            Unsynced::Begun => dice.below(steps.len() + 1),
            Unsynced::Torn(piece) => {
                // From hardly anything to nearly everything.
                let percent = [3, 50, 97][dice.below(3)];
                for step in steps {
                    tear(&mut disk, step, piece, percent, dice);
                }
                continue;
            }
        };
        for step in &steps[..kept] {
            land(&mut disk, step);
        }
    }
    disk.without_the_unnamed()
}

/// A step reaches the disk. A node has been there since it was made; now it has its name.
fn land(disk: &mut Tree, step: &Step) {
    match step {
        Step::Create { parent, name, ino, .. } => {
            disk.names_mut(*parent).insert(name.clone(), *ino);
        }
        step => disk.apply(step),
    }
}

/// Some of a step reaches the disk.
fn tear(disk: &mut Tree, step: &Step, piece: usize, percent: usize, dice: &Dice) {
    let Step::Write { ino, offset, bytes } = step else {
        if dice.chance(percent) {
            land(disk, step);
        }
        return;
    };
    let end = offset + bytes.len();
    // The length may be there without the bytes.
    if disk.bytes(*ino).is_some_and(|old| old.len() < end) && dice.chance(percent) {
        disk.bytes_mut(*ino).resize(end, 0);
    }
    let mut at = *offset;
    while at < end {
        let next = ((at / piece + 1) * piece).min(end);
        if dice.chance(percent) {
            disk.write(*ino, at, &bytes[at - offset..next - offset]);
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(parent: Ino, name: &str, ino: Ino, directory: bool) -> Step {
        Step::Create { parent, name: name.into(), ino, directory, mode: 0o600 }
    }

    fn write(ino: Ino, offset: usize, bytes: &[u8]) -> Step {
        Step::Write { ino, offset, bytes: bytes.to_vec() }
    }

    fn cut(steps: &[Step], unsynced: Unsynced) -> Tree {
        after_power_cut(&Tree::default(), steps, unsynced, &Dice::new(1), HONEST)
    }

    fn content(tree: &Tree, path: &str) -> Option<Vec<u8>> {
        tree.find(path).and_then(|ino| tree.bytes(ino)).cloned()
    }

    #[test]
    fn bytes_need_a_sync_of_the_file_and_names_one_of_the_directory() {
        let mut steps = vec![
            create(ROOT, "dir", 2, true),
            create(2, "file", 3, false),
            write(3, 0, b"one"),
            Step::Sync { ino: 3 },
        ];
        assert_eq!(cut(&steps, Unsynced::Lost).find("dir"), None);
        steps.push(Step::Sync { ino: ROOT });
        assert_eq!(content(&cut(&steps, Unsynced::Lost), "dir/file"), None);
        steps.push(Step::Sync { ino: 2 });
        steps.push(write(3, 1, b"wo and more"));
        let rename = Step::Rename { parent: 2, from: "file".into(), to: "other".into() };
        steps.push(rename);
        let lost = cut(&steps, Unsynced::Lost);
        assert_eq!(content(&lost, "dir/file").as_deref(), Some(&b"one"[..]));
        assert_eq!(content(&lost, "dir/other"), None);
        let kept = cut(&steps, Unsynced::Kept);
        assert_eq!(content(&kept, "dir/other").as_deref(), Some(&b"owo and more"[..]));
        steps.push(Step::Remove { parent: 2, name: "other".into() });
        assert_eq!(content(&cut(&steps, Unsynced::Lost), "dir/file").as_deref(), Some(&b"one"[..]));
        steps.push(Step::Sync { ino: 2 });
        let gone = cut(&steps, Unsynced::Lost);
        assert_eq!((gone.find("dir/file"), gone.nodes.len()), (None, 2));
    }

    #[test]
    fn a_failed_or_ignored_sync_keeps_nothing_and_neither_does_the_next() {
        let steps = [
            create(ROOT, "file", 2, false),
            Step::Sync { ino: ROOT },
            write(2, 0, b"one"),
            Step::FailedSync { ino: 2 },
            Step::Sync { ino: 2 },
        ];
        for unsynced in Unsynced::ALL {
            assert_eq!(content(&cut(&steps, unsynced), "file").as_deref(), Some(&b""[..]));
        }
        let steps = [&steps[..3], &[Step::Sync { ino: 2 }]].concat();
        assert_eq!(content(&cut(&steps, Unsynced::Lost), "file").as_deref(), Some(&b"one"[..]));
        let ignores: Honours<'_> = &|_, ino| ino != 2;
        let base = Tree::default();
        let ignored = after_power_cut(&base, &steps, Unsynced::Lost, &Dice::new(1), ignores);
        assert_eq!(content(&ignored, "file").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_is_torn_is_torn_at_sectors_and_every_part_may_be_the_one_that_is_there() {
        let steps = [
            create(ROOT, "file", 2, false),
            Step::Sync { ino: ROOT },
            write(2, 100, &[1; 1000]),
            Step::Sync { ino: 2 },
            write(2, 100, &[2; 1000]),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let dice = Dice::new(seed);
            let torn = Unsynced::Torn(512);
            let tree = after_power_cut(&Tree::default(), &steps, torn, &dice, HONEST);
            let bytes = content(&tree, "file").expect("it is there");
            assert_eq!(bytes.len(), 1100);
            let parts = [&bytes[100..512], &bytes[512..1024], &bytes[1024..]];
            assert!(parts.iter().all(|part| part.iter().all(|byte| *byte == part[0])));
            seen.insert(parts.map(|part| part[0]));
        }
        assert_eq!(seen.len(), 8);
    }
}
