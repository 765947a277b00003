//! All nodes and the network between them.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use avouch::crypto::OsEntropy;
use avouch::domain::entropy::Entropy;
use base64::Engine as _;
use tokio::time::{Instant, sleep, timeout};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::access::Access;
use crate::calls::endpoint;
use crate::clock::{Skew, preloaded};
use crate::etcd::{Member, Sizes};
use crate::gateway;
use crate::net::Network;
use crate::process::{Patience, Program};
use crate::replica::{Store, replica};

pub(crate) struct Rig {
    pub(crate) network: Network,
    pub(crate) members: Vec<Member>,
    pub(crate) replicas: Vec<Program>,
    /// How far the clock of each replica is off.
    pub(crate) skews: Vec<Arc<Skew>>,
    pub(crate) sizes: Sizes,
    /// The replicas that ended though nobody ended them, and what they said last.
    pub(crate) fallen: Vec<String>,
    directory: tempfile::TempDir,
    seed: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs(&kept(self.seed));
        }
    }
}

/// Where the report of a run is, and the logs if something was wrong.
pub(crate) fn kept(seed: u64) -> std::path::PathBuf {
    let into = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster/{seed}"));
    std::fs::create_dir_all(&into).expect("a directory");
    into
}

/// The key file that all replicas share.
fn key_file(directory: &Path) {
    let mut options = std::fs::OpenOptions::new();
    let path = directory.join("encryption.key");
    let file = options.write(true).create_new(true).mode(0o600).open(path).expect("a file");
    let random: [u8; 32] = (&OsEntropy as &dyn Entropy).bytes();
    let text = base64::engine::general_purpose::STANDARD.encode(random);
    std::io::Write::write_all(&mut &file, text.as_bytes()).expect("written");
}

impl Rig {
    /// Starts all of them; they serve then. With `secured`, all who talk to etcd have certificates, and
    /// replicas log in.
    pub(crate) async fn start(store: Store, sizes: Sizes, secured: bool, seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let network = Network::new(seed);
        key_file(path);
        let access = (secured && store == Store::Etcd).then(|| Access::new(path));
        let access = access.as_ref();
        let mut members = Vec::new();
        if store == Store::Etcd {
            members.extend((0..3).map(|index| Member::new(index, path, sizes, access)));
            members.iter_mut().for_each(|member| member.program.start());
            for member in &mut members {
                member.led().await;
            }
            if let Some(access) = access {
                access.require().await;
            }
        }
        let preloaded = preloaded(path);
        let replica = |index| replica(index, store, access, path, &preloaded);
        let (replicas, skews): (Vec<_>, Vec<_>) = (0..store.replicas()).map(replica).unzip();
        let skews = skews.into_iter().map(Arc::new).collect();
        let fallen = Vec::new();
        let mut rig = Self { network, members, replicas, skews, sizes, fallen, directory, seed };
        // All at once: one of them makes what the first start makes.
        rig.replicas.iter_mut().for_each(Program::start);
        rig.serving().await.expect("they all serve");
        rig
    }

    /// Where the first start has written the credentials: with several replicas, one of them has.
    pub(crate) fn files(&self) -> std::path::PathBuf {
        let places = (0..self.replicas.len()).map(|n| self.path().join(format!("r{n}/data")));
        let mut made = places.filter(|place| place.join("admin-client.json").exists());
        made.next().expect("somebody has made the first client")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until every replica says that it serves; how long that took.
    ///
    /// # Errors
    /// When one does not, with what it said last.
    pub(crate) async fn serving(&mut self) -> Result<Duration, String> {
        let began = Instant::now();
        let mut patience = Patience::new();
        for index in 0..self.replicas.len() {
            while !serves(index).await {
                self.start_the_fallen();
                if patience.is_over() {
                    let members = self.members_say().await;
                    let said = self.replicas[index].tail(30);
                    return Err(format!("replica {index} does not serve: {said}\n{members}"));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(began.elapsed())
    }

    /// Starts whoever does not run. A replica that nobody has ended is written
    /// down.
    pub(crate) fn start_the_fallen(&mut self) {
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            if !replica.runs() {
                self.fallen.push(format!("replica {index} ended: {}", replica.tail(15)));
                replica.start();
            }
        }
        // A disk that is full ends a member, as etcd's documentation says.
        self.members.iter_mut().for_each(|member| member.program.start());
    }

    /// The panics that replicas told of.
    pub(crate) fn panics(&self) -> Vec<String> {
        self.replicas.iter().filter_map(Program::panicked).collect()
    }

    /// How far each member is, and what it holds.
    pub(crate) async fn members_say(&self) -> String {
        let mut text = String::new();
        for member in 0..self.members.len() {
            let (status, hash) = (gateway::status(member).await, gateway::hash(member, 0).await);
            text += &format!("member {member}: {status:?}, {hash:?}\n");
        }
        text
    }

    /// What everybody said, kept where it can be read after the end.
    pub(crate) fn keep_logs(&self, into: &Path) {
        std::fs::create_dir_all(into).expect("a directory");
        let entries = std::fs::read_dir(self.path()).expect("the directory");
        for entry in entries.map(|entry| entry.expect("an entry")) {
            if entry.path().extension().is_some_and(|it| it == "log") {
                std::fs::copy(entry.path(), into.join(entry.file_name())).expect("copied");
            }
        }
        for index in 0..self.replicas.len() {
            let audit = self.path().join(format!("r{index}/audit.jsonl"));
            // It may not have been made.
            _ = std::fs::copy(audit, into.join(format!("r{index}.audit.jsonl")));
        }
    }
}

/// Whether a replica says that it serves.
pub(crate) async fn serves(replica: usize) -> bool {
    let asked = timeout(Duration::from_secs(2), async {
        let channel = endpoint(replica).connect().await.ok()?;
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.ok()
    });
    let answer = asked.await.ok().flatten();
    answer.is_some_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
}
