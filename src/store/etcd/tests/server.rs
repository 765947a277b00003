//! A real etcd of one member, for one test.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::domain::ids::LogId;
use crate::store::OpenError;
use crate::store::codec::SCHEMA_VERSION;
use crate::store::etcd::{EtcdEngine, EtcdSettings};

/// An etcd. It ends with the test, however that ends.
pub(super) struct Etcd {
    data: TempDir,
    /// Where it serves clients.
    pub(super) port: u16,
    peer_port: u16,
    arguments: Vec<String>,
    scheme: &'static str,
    shell: Option<Child>,
    prefixes: AtomicU32,
}

fn program() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "where the tests find an etcd")]
    let named = std::env::var("AVOUCH_ETCD").map(PathBuf::from);
    let program = named.unwrap_or_else(|_| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/etcd/usr/bin/etcd")
    });
    assert!(
        program.exists(),
        "{} is missing: name an etcd by AVOUCH_ETCD, or let tests/run unpack one",
        program.display()
    );
    program
}

/// A program that comes with etcd.
fn beside(name: &str) -> PathBuf {
    program().with_file_name(name)
}

/// Runs one of them to its end.
fn tool(name: &str, with: impl FnOnce(&mut Command) -> &mut Command) {
    let program = beside(name);
    assert!(
        program.exists(),
        "{} is missing: tests/run unpacks Debian's etcd-client beside etcd",
        program.display()
    );
    let mut command = Command::new(program);
    with(command.env("ETCDCTL_API", "3"));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    pub(super) fn start() -> Self {
        Self::start_with("http", &[])
    }

    /// One with these arguments besides.
    pub(super) fn start_with(scheme: &'static str, arguments: &[&str]) -> Self {
        let port = free_port();
        // It syncs each change; in memory that takes nothing.
        let memory = Path::new("/dev/shm");
        let data = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let mut etcd = Self {
            data: data.unwrap(),
            port,
            peer_port: free_port(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            scheme,
            shell: None,
            prefixes: AtomicU32::new(0),
        };
        etcd.run();
        etcd
    }

    /// Starts it, or again after [`Etcd::kill`].
    pub(super) fn run(&mut self) {
        let client = format!("{}://127.0.0.1:{}", self.scheme, self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        // The shell outlives it only until the test's end of the pipe is closed.
        let script = "\"$@\" & echo; read -r _; kill -9 $!; wait";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(program());
        command.arg("--data-dir").arg(self.data.path().join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.args(["--log-level", "fatal", "--logger", "zap"]).args(&self.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().unwrap();
        let mut started = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut started).unwrap();
        self.shell = Some(shell);
    }

    /// Ends it by SIGKILL.
    pub(super) fn kill(&mut self) {
        if let Some(mut shell) = self.shell.take() {
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
    }

    /// Forgets all that it stored, while it is not running.
    pub(super) fn wipe(&self) {
        std::fs::remove_dir_all(self.data.path().join("etcd")).unwrap();
    }

    /// Takes a snapshot, as an operator does.
    pub(super) fn snapshot(&self, to: &Path) {
        let endpoint = format!("--endpoints=http://127.0.0.1:{}", self.port);
        tool("etcdctl", |command| command.args([&endpoint, "snapshot", "save"]).arg(to));
    }

    /// Puts a snapshot in the place of all that is stored, while it is not running: under the same name,
    /// URL and token, so the cluster keeps its id. `arguments` come besides.
    pub(super) fn restore(&self, from: &Path, arguments: &[&str]) {
        self.wipe();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        // From 3.6 on only etcdutl restores; before 3.5 there is none.
        let restorer = if beside("etcdutl").exists() { "etcdutl" } else { "etcdctl" };
        tool(restorer, |command| {
            command.args(["snapshot", "restore"]).arg(from);
            command.arg("--data-dir").arg(self.data.path().join("etcd"));
            command.args(["--initial-cluster", &format!("default={peer}")]);
            command.args(["--initial-advertise-peer-urls", &peer]).args(arguments)
        });
    }

    /// Where it stores what it stores.
    pub(super) fn data(&self) -> PathBuf {
        self.data.path().join("etcd")
    }

    /// Settings with a prefix that was not used before.
    pub(super) fn settings(&self) -> EtcdSettings {
        let number = self.prefixes.fetch_add(1, Ordering::Relaxed);
        self.settings_at(self.port, &format!("/test{number}/"))
    }

    pub(super) fn settings_at(&self, port: u16, prefix: &str) -> EtcdSettings {
        let endpoint = format!("{}://127.0.0.1:{port}", self.scheme);
        EtcdSettings {
            // The machine may be busy.
            request_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            ..EtcdSettings::new(vec![endpoint], prefix.to_owned(), SCHEMA_VERSION)
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The name of the log of tests.
pub(super) const LOG: LogId = LogId::from_bytes([7; 16]);

pub(super) async fn try_open(settings: &EtcdSettings) -> Result<EtcdEngine, OpenError> {
    EtcdEngine::open(settings.clone(), LOG, super::entropy()).await
}

/// Opens it as soon as etcd has started, however hasty the settings are.
pub(super) async fn open(settings: &EtcdSettings) -> EtcdEngine {
    for _ in 0..30 {
        match try_open(settings).await {
            Ok(engine) => return engine,
            Err(OpenError::Unreachable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    try_open(settings).await.unwrap()
}
