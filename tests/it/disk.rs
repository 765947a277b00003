//! Disks that lose power, fill up, fail and hang: what was acknowledged is there when the server
//! starts again (invariant 3), and what was not kept was not acknowledged.
//!
//! The disk is a file system in user space (`fuse`), which writes down everything that is done to
//! it. From that record `image` makes what a disk may hold after a power cut at any moment.

mod engine;
mod faults;
mod full;
mod fuse;
mod image;
mod runbook;
mod server;
mod trace;

use std::path::{Path, PathBuf};
use std::process::Command;

use avouch::domain::entropy::{Entropy, SeededEntropy};

use self::image::Tree;

/// Leaves out what needs the right to mount file systems and to trace processes.
pub(crate) const WITHOUT: &str = "AVOUCH_TESTS_UNPRIVILEGED";
/// How many times as long the tests here take.
const ROUNDS: &str = "AVOUCH_DISK_ROUNDS";
/// The first seed.
const SEED: &str = "AVOUCH_DISK_SEED";

/// The word by which a process knows that its mounts are its own. As a filter it matches no test.
const MARK: &str = "with-mounts-of-its-own";

/// Whether what this process mounts is seen by it alone, and goes when it ends. If not, runs
/// `test` in one for which that is so; it must succeed.
fn with_own_mounts(test: &str) -> bool {
    if std::env::args().any(|argument| argument == MARK) {
        return true;
    }
    if variable(WITHOUT).is_some_and(|value| !value.is_empty()) {
        eprintln!("{test} is left out: {WITHOUT} is set");
        return false;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let output = unshare
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, MARK, "--nocapture", "--test-threads=1"])
        .output()
        .expect("unshare, of util-linux, runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let more = String::from_utf8_lossy(&output.stderr);
    print!("{text}");
    assert!(
        output.status.success(),
        "{text}{more}\nThis test mounts file systems, with root's rights or in a user namespace, and \
         needs /dev/fuse. {WITHOUT}=1 leaves such tests out."
    );
    assert!(text.contains("1 passed"), "{test} is the name of a test: {text}");
    false
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    variable(name).map_or(default, |text| text.parse().expect("the variable holds a number"))
}

#[expect(clippy::disallowed_methods, reason = "tests have no configuration file")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Choices that the same seed makes again.
struct Dice(SeededEntropy);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(SeededEntropy::new(seed))
    }

    /// A number below `limit`.
    fn below(&self, limit: usize) -> usize {
        let entropy: &dyn Entropy = &self.0;
        let drawn = u64::from_le_bytes(entropy.bytes());
        usize::try_from(drawn % limit.max(1) as u64).expect("below a usize")
    }

    /// True `percent` times in a hundred.
    fn chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A file system in memory, of a size, for as long as this lives.
struct Shelf {
    home: tempfile::TempDir,
    taken: usize,
}

impl Shelf {
    fn new(mebibytes: u32) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(home.path())
            .status();
        assert!(mounted.expect("mount, of util-linux, runs").success(), "a tmpfs can be mounted");
        Self { home, taken: 0 }
    }

    /// A directory on it.
    fn path(&self) -> &Path {
        self.home.path()
    }

    /// Puts what a disk holds into a new directory.
    fn put(&mut self, disk: &Tree) -> PathBuf {
        self.taken += 1;
        let place = self.path().join(self.taken.to_string());
        std::fs::create_dir(&place).expect("a directory");
        disk.write_to(&place);
        place
    }

    fn clear(&self, place: &Path) {
        std::fs::remove_dir_all(place).expect("removed");
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        // Nothing is lost if it does not come off: the mount ends with this process.
        _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
