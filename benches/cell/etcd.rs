//! etcd, started for the measurement.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::Failure;

/// The messages of etcd that avouch uses.
#[expect(unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
pub(crate) mod pb {
    tonic::include_proto!("etcdserverpb");

    // The crate writes these by hand, to keep secrets out of them.
    impl std::fmt::Debug for AuthenticateRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AuthenticateRequest")
        }
    }
    impl std::fmt::Debug for AuthenticateResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AuthenticateResponse")
        }
    }
}

/// One member.
struct Member {
    process: Child,
    client: u16,
    data: PathBuf,
}

/// Some members, stopped when this is dropped.
pub(crate) struct Cluster {
    members: Vec<Member>,
    _directory: tempfile::TempDir,
}

/// How large the first member is.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    /// Bytes of its database file.
    pub(crate) file: u64,
    /// Bytes of its memory that are not the pages of a file.
    pub(crate) memory: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may be gone already.
            _ = member.process.kill();
            _ = member.process.wait();
        }
    }
}

/// A port that was free a moment ago.
fn port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn binary() -> Result<PathBuf, Failure> {
    let found = match std::env::var_os("AVOUCH_ETCD") {
        Some(path) => PathBuf::from(path),
        None => {
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/etcd/usr/bin/etcd"))
        }
    };
    match found.exists() {
        true => Ok(found),
        false => Err(format!("no etcd at {}; set AVOUCH_ETCD", found.display()).into()),
    }
}

impl Cluster {
    pub(crate) async fn start(count: usize) -> Result<Self, Failure> {
        let binary = binary()?;
        // On the disk of the build, because /tmp may be memory.
        let at = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tmp");
        std::fs::create_dir_all(at)?;
        let directory = tempfile::tempdir_in(at)?;
        let ports =
            (0..count).map(|_| Ok((port()?, port()?))).collect::<Result<Vec<_>, Failure>>()?;
        let peer = |at: usize| format!("http://127.0.0.1:{}", ports[at].1);
        let all: Vec<_> = (0..count).map(|at| format!("m{at}={}", peer(at))).collect();
        let mut members = Vec::new();
        for (at, (client, _)) in ports.iter().enumerate() {
            let data = directory.path().join(format!("m{at}"));
            let url = format!("http://127.0.0.1:{client}");
            let log = std::fs::File::create(directory.path().join(format!("m{at}.log")))?;
            let process = Command::new(&binary)
                .args(["--name", &format!("m{at}"), "--initial-cluster", &all.join(",")])
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peer(at), "--initial-advertise-peer-urls", &peer(at)])
                .args(["--quota-backend-bytes", "8589934592", "--log-level", "warn"])
                .arg("--data-dir")
                .arg(&data)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()?;
            members.push(Member { process, client: *client, data });
        }
        let cluster = Self { members, _directory: directory };
        for _ in 0..300 {
            if cluster.version().await.is_ok() {
                return Ok(cluster);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err("etcd did not come up in 30 s".into())
    }

    /// Where a member listens for clients, by number.
    pub(crate) fn address(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.members[number % self.members.len()].client)
    }

    /// A connection to a member, by number.
    pub(crate) fn channel(&self, number: usize) -> Result<Channel, Failure> {
        let url = format!("http://{}", self.address(number));
        Ok(Endpoint::from_shared(url)?.tcp_nodelay(true).connect_lazy())
    }

    /// Its version, once it has a leader.
    pub(crate) async fn version(&self) -> Result<String, Failure> {
        let mut kv = pb::kv_client::KvClient::new(self.channel(0)?);
        kv.range(pb::RangeRequest { key: vec![0].into(), ..Default::default() }).await?;
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel(0)?);
        Ok(client.status(pb::StatusRequest {}).await?.into_inner().version)
    }

    /// The CPU that all members have taken so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        /// Linux shows these times in hundredths of a second, whatever the kernel counts in.
        const TICK: Duration = Duration::from_millis(10);
        let mut ticks = 0;
        for member in &self.members {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.process.id()))?;
            // After the name: state, and from there utime is the 12th field, stime the 13th.
            let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
            for field in fields.split_whitespace().skip(11).take(2) {
                ticks += field.parse::<u32>()?;
            }
        }
        Ok(TICK * ticks)
    }

    pub(crate) fn size(&self) -> Result<Size, Failure> {
        let member = &self.members[0];
        let file = std::fs::metadata(member.data.join("member/snap/db"))?.len();
        let status = std::fs::read_to_string(format!("/proc/{}/status", member.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: u64 =
            line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?.parse()?;
        Ok(Size { file, memory: kib << 10 })
    }
}
