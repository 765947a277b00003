//! avouch as its users run it: a process of its own, which can be killed.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// No wait is expected to come near it; it only turns a hang into a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The command line of a server for tests: any port, its data in `directory`. The only
/// place that knows the flags.
fn command_line(directory: &Path, settings: &[(&str, &str)]) -> Vec<String> {
    let path = directory.display().to_string();
    let usual = [
        ("server.listen", "127.0.0.1:0"),
        ("server.public_listen", "127.0.0.1:0"),
        ("server.ops_listen", "127.0.0.1:0"),
        // Whatever the port is, so that tokens outlive a restart.
        ("issuer.url", "http://127.0.0.1"),
        ("store.path", path.as_str()),
        ("store.min_free_bytes", "0"),
        // The quickest that a server takes.
        ("password.memory_kib", "7168"),
        ("password.iterations", "5"),
        // A retry window that no slow machine outlives.
        ("tokens.retry_window", "300s"),
        ("throttle.free_failures", "100"),
        ("sessions.max_per_subject", "100000"),
    ];
    let mut line = vec!["serve".to_owned(), "--dev".to_owned()];
    for (key, value) in usual.iter().chain(settings) {
        line.push(format!("--set={key}={value}"));
    }
    line
}

/// A process that may not have come up.
pub(crate) struct Process {
    child: Child,
    directory: PathBuf,
    stderr: PathBuf,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// Where a process listens.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) grpc: String,
    pub(crate) ops: String,
}

impl Process {
    /// Starts a server on `directory`; its diagnostics go to a file beside it.
    pub(crate) fn start(directory: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_at("info", directory, settings)
    }

    /// The same with a level of diagnostics.
    pub(crate) fn start_at(level: &str, directory: &Path, settings: &[(&str, &str)]) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self::start_telling(
            directory.with_extension(format!("{n}.stderr")),
            level,
            directory,
            settings,
        )
    }

    /// The same with its diagnostics elsewhere.
    pub(crate) fn start_telling(
        stderr: PathBuf,
        level: &str,
        directory: &Path,
        settings: &[(&str, &str)],
    ) -> Self {
        let file = std::fs::File::create(&stderr).expect("a file for stderr");
        let child = Command::new(env!("CARGO_BIN_EXE_avouch"))
            .args(command_line(directory, settings))
            .env_clear()
            .env("AVOUCH_LOG_LEVEL", level)
            .env("RUST_BACKTRACE", "full")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        Self { child, directory: directory.to_owned(), stderr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it said so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).expect("stderr")).into_owned()
    }

    /// Waits until it serves.
    pub(crate) async fn serving(&mut self) -> Addresses {
        match self.outcome().await {
            Ok(addresses) => addresses,
            Err(end) => panic!("it did not start: {end:?}"),
        }
    }

    /// Waits until it serves or has ended.
    pub(crate) async fn outcome(&mut self) -> Result<Addresses, End> {
        let id = self.id();
        let file = self.directory.join("addresses.json");
        let waited = timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().expect("its state") {
                    return Err(End { status, stderr: self.stderr() });
                }
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                // The file of the process before is of no use.
                if json["pid"].as_u64() == Some(u64::from(id)) {
                    let text = |key: &str| json[key].as_str().expect("an address").to_owned();
                    return Ok(Addresses { grpc: text("grpc"), ops: text("ops") });
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("neither up nor down: {}", self.stderr()))
    }

    /// SIGKILL, now.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM; [`Self::end`] waits for what it does then.
    pub(crate) fn terminate(&self) {
        let id = Pid::from_raw(i32::try_from(self.id()).expect("a pid")).expect("a pid");
        kill_process(id, Signal::TERM).expect("signalled");
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> End {
        let status = timeout(PATIENCE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it does not end: {}", self.stderr()));
        End { status: status.expect("its state"), stderr: self.stderr() }
    }

    /// The memory that it holds.
    pub(crate) fn resident_bytes(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).expect("Linux");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
        pages.expect("a number") * 4096
    }
}

/// A connection, if the server is there.
pub(crate) async fn channel(addresses: &Addresses) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", addresses.grpc)).expect("a URL");
    timeout(PATIENCE, endpoint.connect()).await.expect("in time").expect("it listens")
}

/// The same as a client.
pub(crate) async fn identity(addresses: &Addresses) -> IdentityServiceClient<Channel> {
    IdentityServiceClient::new(channel(addresses).await)
}

/// Reads the credentials that the first start wrote.
pub(crate) fn credentials(directory: &Path, name: &str) -> pb::ClientAuthentication {
    let text = std::fs::read_to_string(directory.join(name)).expect("credentials");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let text = |key: &str| json[key].as_str().expect("text").to_owned();
    pb::ClientAuthentication { client_id: text("client_id"), client_secret: text("client_secret") }
}

/// Who may do what on a `--dev` server.
#[derive(Clone)]
pub(crate) struct Cast {
    /// May do anything.
    pub(crate) admin: pb::ClientAuthentication,
    /// May log users in.
    pub(crate) login: pb::ClientAuthentication,
    /// The password of the user `ada`.
    pub(crate) password: String,
}

impl Cast {
    pub(crate) fn of(directory: &Path) -> Self {
        let password = std::fs::read_to_string(directory.join("ada.password")).expect("a password");
        Self {
            admin: credentials(directory, "admin-client.json"),
            login: credentials(directory, "login-client.json"),
            password: password.trim_end().to_owned(),
        }
    }
}

/// What `GET path` on the ops listener answers.
pub(crate) async fn ops(addresses: &Addresses, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut io = tokio::net::TcpStream::connect(&addresses.ops).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, io.read_to_string(&mut answer)).await.expect("in time").expect("text");
    answer
}

/// The value of a metric, over all of its labels; 0 when it is not there.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
