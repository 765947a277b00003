//! Three members of etcd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::access::Access;
use crate::gateway;
use crate::net::Node;
use crate::own::mount;
use crate::process::{PATIENCE, Program};

/// Names another etcd than that in `target/tools`.
const ETCD: &str = "AVOUCH_ETCD";

/// Between one look and the next.
const PAUSE: Duration = Duration::from_millis(50);

/// A member, which may run or not.
pub(crate) struct Member {
    index: usize,
    pub(crate) program: Program,
    disk: PathBuf,
    /// Holds up its syncs.
    slow: Option<Child>,
}

/// How large things may get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// The quota of the database.
    pub(crate) quota_mebibytes: u32,
    /// The disk of each member.
    pub(crate) disk_mebibytes: u32,
    /// Whether etcd forgets by itself what is older than this many minutes.
    pub(crate) compact_after_minutes: Option<u32>,
}

/// The program, which must be there.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration file")]
fn program() -> String {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/etcd/usr/bin/etcd");
    let path = std::env::var(ETCD).unwrap_or_else(|_| unpacked.to_owned());
    assert!(
        Path::new(&path).exists(),
        "there is no etcd at {path}: tests/run unpacks one, or {ETCD} names it"
    );
    path
}

impl Member {
    /// One that does not run yet, with a disk of its own.
    pub(crate) fn new(
        index: usize,
        directory: &Path,
        sizes: Sizes,
        access: Option<&Access>,
    ) -> Self {
        let scheme = if access.is_some() { "https" } else { "http" };
        let url = |node: Node, port: u16| format!("{scheme}://{}:{port}", node.address());
        let node = Node::Member(index);
        let disk = directory.join(node.name());
        mount(&disk, sizes.disk_mebibytes);
        let all: Vec<String> =
            Node::MEMBERS.iter().map(|it| format!("{}={}", it.name(), url(*it, 2380))).collect();
        let mut words = vec![program()];
        let settings = [
            ("name", node.name()),
            ("data-dir", disk.join("data").display().to_string()),
            // The tests themselves come in plaintext.
            (
                "listen-client-urls",
                format!("{},http://{}:{}", url(node, 2379), node.address(), gateway::PORT),
            ),
            ("advertise-client-urls", url(node, 2379)),
            ("listen-peer-urls", url(node, 2380)),
            ("initial-advertise-peer-urls", url(node, 2380)),
            ("initial-cluster", all.join(",")),
            ("initial-cluster-state", "new".to_owned()),
            ("quota-backend-bytes", (u64::from(sizes.quota_mebibytes) << 20).to_string()),
            // A member that was away for a while is sent a snapshot.
            ("snapshot-count", "2000".to_owned()),
            ("max-snapshots", "1".to_owned()),
            ("max-wals", "1".to_owned()),
            ("logger", "zap".to_owned()),
        ];
        words.extend(settings.iter().map(|(name, value)| format!("--{name}={value}")));
        if let Some(minutes) = sizes.compact_after_minutes {
            words.push("--auto-compaction-mode=periodic".to_owned());
            words.push(format!("--auto-compaction-retention={minutes}m"));
        }
        words.extend(access.iter().flat_map(|access| access.of_member(node)));
        let log = directory.join(format!("{}.log", node.name()));
        let program = Program::new(node, words, directory, log);
        Self { index, program, disk, slow: None }
    }

    /// Lets each sync of its disk take so much longer, until [`Self::quicken`].
    pub(crate) fn slow_down(&mut self, by: Duration) {
        let Some(id) = self.program.id() else { return };
        let inject = format!("inject=fdatasync,fsync:delay_enter={}", by.as_micros());
        let child = Command::new("strace")
            .args(["-f", "-q", "-p", &id.to_string(), "-e", "trace=fdatasync,fsync", "-e", &inject])
            .args(["-o", "/dev/null"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("strace runs: tests/run installs it");
        self.slow = Some(child);
    }

    pub(crate) async fn quicken(&mut self) {
        let Some(mut child) = self.slow.take() else { return };
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
            // It lets go of the member, and then ends.
            _ = rustix::process::kill_process(id, Signal::TERM);
        }
        if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
            child.kill().await.expect("killed");
        }
    }

    /// Leaves no room on its disk.
    pub(crate) fn fill(&self) {
        use std::io::Write as _;
        let file = std::fs::File::create(self.disk.join("filler"));
        let Ok(mut file) = file else { return };
        while file.write_all(&[1; 64 << 10]).is_ok() {}
    }

    pub(crate) fn make_room(&self) {
        // It may not be there.
        _ = std::fs::remove_file(self.disk.join("filler"));
    }

    /// Waits until it answers and knows of a leader.
    pub(crate) async fn led(&mut self) {
        let waited = timeout(PATIENCE, async {
            while !gateway::status(self.index).await.is_ok_and(|status| status.is_led()) {
                assert!(self.program.runs(), "it ended: {}", self.program.tail(20));
                sleep(PAUSE).await;
            }
        });
        if waited.await.is_err() {
            panic!("member {} has no leader: {}", self.index, self.program.tail(20));
        }
    }
}
