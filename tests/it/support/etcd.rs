//! A real etcd: one that all tests of this binary share, each under a prefix of its own, and clusters
//! for those that stop members. Whatever ends this process ends them, too.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What etcd says once it answers.
const READY: &str = "serving client traffic";
/// Ports are picked free and may be taken before etcd has them.
const TRIES: usize = 5;

/// Members that make up one cluster.
pub(crate) struct Etcd {
    members: Vec<Member>,
    _directory: TempDir,
}

struct Member {
    port: u16,
    pid: Pid,
    watchdog: Child,
    /// When it closes, the watchdog kills the member.
    stdin: Option<ChildStdin>,
}

/// Where etcd is: what `AVOUCH_ETCD` names, or what `tests/run` unpacks.
#[expect(clippy::disallowed_methods, reason = "who runs the tests says where etcd is")]
fn program() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/etcd/usr/bin/etcd");
    let program = std::env::var("AVOUCH_ETCD").map_or(unpacked, PathBuf::from);
    assert!(
        program.is_file(),
        "there is no etcd at {}: tests/run unpacks Debian's etcd-server there, or set AVOUCH_ETCD to the path of one",
        program.display(),
    );
    program
}

impl Etcd {
    /// The one that all tests share; it has one member.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Etcd> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(1))
    }

    /// A cluster of its own.
    pub(crate) fn start(members: usize) -> Self {
        (0..TRIES).find_map(|_| Self::try_start(members)).expect("etcd starts")
    }

    fn try_start(count: usize) -> Option<Self> {
        // In memory where that is: what an etcd keeps over a loss of power is for etcd to prove.
        let memory = Path::new("/dev/shm");
        let directory = tempfile::Builder::new().prefix("avouch-etcd-").tempdir_in(memory);
        let directory = directory.or_else(|_| tempfile::tempdir()).expect("a directory");
        let ports = free_ports(2 * count);
        let (clients, peers) = ports.split_at(count);
        let names: Vec<String> = (0..count).map(|n| format!("m{n}")).collect();
        let cluster: Vec<String> = names
            .iter()
            .zip(peers)
            .map(|(name, port)| format!("{name}=http://127.0.0.1:{port}"))
            .collect();
        let mut started = Vec::new();
        for ((name, client), peer) in names.iter().zip(clients).zip(peers) {
            let (client_url, peer_url) =
                (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let data = directory.path().join(name);
            let arguments = [
                "--name",
                name,
                "--data-dir",
                data.to_str().expect("text"),
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
                "--initial-cluster",
                &cluster.join(","),
                "--heartbeat-interval",
                "100",
                "--election-timeout",
                "1000",
                "--quota-backend-bytes",
                "4294967296",
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ];
            started.push(launch(&arguments, *client));
        }
        // All of them first: a member serves only once it has a leader.
        let members: Option<Vec<Member>> =
            started.into_iter().map(|(member, stderr)| ready(stderr).then_some(member)).collect();
        Some(Self { members: members?, _directory: directory })
    }

    /// The URL of a store under this prefix, a name without slashes.
    pub(crate) fn url(&self, prefix: &str) -> String {
        let hosts: Vec<String> =
            self.members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
        format!("etcd://{}/{prefix}", hosts.join(","))
    }

    /// Where a member listens for clients.
    pub(crate) fn address(&self, member: usize) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.members[member].port).into()
    }

    /// Stops a member as if its machine hung.
    pub(crate) fn pause(&self, member: usize) {
        kill_process(self.members[member].pid, Signal::STOP).expect("it runs");
    }

    /// Lets it go on.
    pub(crate) fn resume(&self, member: usize) {
        kill_process(self.members[member].pid, Signal::CONT).expect("it runs");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stdin = None;
        _ = self.watchdog.wait();
    }
}

/// A prefix that nothing else uses.
pub(crate) fn fresh_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn free_ports(count: usize) -> Vec<u16> {
    let bound: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    bound.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}

fn launch(arguments: &[&str], port: u16) -> (Member, std::process::ChildStderr) {
    // The shell reads from this process, and what it reads is its end.
    let script = "\"$@\" & echo $!; exec 2>/dev/null; read -r _; kill -9 $!; wait";
    let mut watchdog = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program())
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut pid = String::new();
    let stdout = watchdog.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut pid).expect("a number");
    let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a pid");
    let (stdin, stderr) = (watchdog.stdin.take(), watchdog.stderr.take().expect("piped"));
    (Member { port, pid, watchdog, stdin }, stderr)
}

/// Waits until a member serves. False when it ended.
fn ready(stderr: std::process::ChildStderr) -> bool {
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let ready = lines.any(|line| line.contains(READY));
    // A pipe that nobody reads would stop it.
    std::thread::spawn(move || lines.for_each(drop));
    ready
}

#[test]
fn an_etcd_starts_and_ends_with_its_owner() {
    let etcd = Etcd::start(1);
    let (pid, port) = (etcd.members[0].pid, etcd.members[0].port);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert!(etcd.url("p").ends_with(&format!(":{port}/p")));
    drop(etcd);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(rustix::process::test_kill_process(pid).is_err());
}
