//! Clocks of replicas that are wrong. A few lines of C stand between a replica and the machine's time of
//! day; the replica is the one that is shipped.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::net::Node;
use crate::own::run;
use crate::replica::OPS_PORT;

/// How far a replica keeps up with clocks that are ahead of its own, in seconds, as
/// `docs/architecture.md` says.
pub(crate) const LEAD_SECS: i64 = 10;
/// From which difference on a replica is out of service.
pub(crate) const OUT_SECS: i64 = 30;

/// Compiles what is preloaded; where it is.
pub(crate) fn preloaded(directory: &Path) -> PathBuf {
    let into = directory.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/clock.c");
    let output = into.display().to_string();
    run("cc", &["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", &output, source, "-ldl"]);
    into
}

/// The clock of one process: as far from the machine's as is wanted, while it runs.
pub(crate) struct Skew {
    file: File,
    pub(crate) path: PathBuf,
}

impl Skew {
    pub(crate) fn new(directory: &Path) -> Self {
        let path = directory.join("clock.ahead");
        let skew = Self { file: File::create(&path).expect("a file"), path };
        skew.set(0);
        skew
    }

    /// Puts the clock so many milliseconds ahead of the machine's; behind it, below zero.
    pub(crate) fn set(&self, ahead_millis: i64) {
        // It is mapped: it must never be shorter.
        self.file.write_all_at(&ahead_millis.to_ne_bytes(), 0).expect("written");
    }
}

/// How many seconds ahead of those of the others a replica says that its clock is.
pub(crate) async fn ahead(replica: usize) -> Option<f64> {
    let asked = timeout(Duration::from_secs(2), async {
        let address = (Node::Replica(replica).address(), OPS_PORT);
        let mut stream = TcpStream::connect(address).await?;
        let request = "GET /metrics HTTP/1.1\r\nhost: avouch\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    });
    let text = asked.await.ok()?.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("avouch_clock_ahead_seconds "))?;
    line.trim().parse().ok()
}
