//! Everything at once: avouch, the sidecar, a proxy, and the workload behind it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::{Addresses, Cast, PATIENCE, Process, identity};
use crate::proxy::{Behind, Changes, Kind, Proxy};
use crate::raw::{Answer, Ask, Place, ask};
use crate::relay::{Mode, Relay};
use crate::workload::{MARK, Seen, Workload};

/// What the tokens name, whatever the port is.
pub(crate) const ISSUER: &str = "http://127.0.0.1";
/// Between one try and the next.
const PAUSE: Duration = Duration::from_millis(2);
/// The rules that the documentation shows, which the tests go by.
pub(crate) const RULES: &str = include_str!("../../docs/sidecar/rules.toml");

/// All of it.
pub(crate) struct Rig {
    pub(crate) kind: Kind,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Server,
    /// Between the sidecar and avouch.
    pub(crate) upward: Relay,
    /// Between the proxy and the sidecar.
    pub(crate) beside: Relay,
    pub(crate) sidecar: Sidecar,
    pub(crate) proxy: Proxy,
    pub(crate) workload: Workload,
}

/// `avouch serve`, which can end and begin again.
pub(crate) struct Server {
    data: PathBuf,
    process: Option<Process>,
    pub(crate) addresses: Addresses,
    pub(crate) public: String,
    pub(crate) cast: Cast,
}

impl Server {
    async fn start(data: &Path) -> Self {
        let (process, addresses, public) = Self::serve(data).await;
        let cast = Cast::of(data);
        Self { data: data.to_owned(), process: Some(process), addresses, public, cast }
    }

    async fn serve(data: &Path) -> (Process, Addresses, String) {
        let mut process = Process::start(data, &[]);
        let addresses = process.serving().await;
        let text = std::fs::read_to_string(data.join("addresses.json")).expect("addresses");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        (process, addresses, json["public"].as_str().expect("an address").to_owned())
    }

    pub(crate) fn place(&self) -> Place {
        Place::Tcp(self.addresses.grpc.parse().expect("an address"))
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.process.take().expect("it runs").kill().await;
    }

    /// On the same data, on other ports.
    pub(crate) async fn start_again(&mut self) {
        let (process, addresses, public) = Self::serve(&self.data).await;
        (self.process, self.addresses, self.public) = (Some(process), addresses, public);
    }

    /// Runs a command of avouch as the admin client.
    pub(crate) async fn avouch(&self, words: &[&str]) {
        let credentials = self.data.join("admin-client.json");
        avouch(&self.addresses.grpc, words, &[("--credentials", &credentials)]).await;
    }

    /// Logs ada in, for these scopes or all that she may have.
    pub(crate) async fn login(&self, scopes: &[&str]) -> pb::TokenSet {
        let password =
            pb::PasswordGrant { username: "ada".to_owned(), password: self.cast.password.clone() };
        let request = pb::AuthenticateRequest {
            client: Some(self.cast.login.clone()),
            grant: Some(pb::authenticate_request::Grant::Password(password)),
            audiences: vec!["orders".to_owned()],
            scopes: scopes.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let answer = identity(&self.addresses).await.authenticate(request).await.expect("tokens");
        answer.into_inner().tokens.expect("tokens")
    }

    /// Revokes a session; with `wait` not before every watcher has applied it.
    pub(crate) async fn revoke(&self, tokens: &pb::TokenSet, wait: Option<Duration>) {
        let wait = wait.map(|wait| prost_types::Duration::try_from(wait).expect("short"));
        let request = pb::RevokeRequest {
            client: Some(self.cast.admin.clone()),
            target: Some(Target::SessionId(tokens.session_id.clone())),
            wait,
            ..Default::default()
        };
        let answer = identity(&self.addresses).await.revoke(request).await.expect("it is revoked");
        if wait.is_some() {
            let result = answer.into_inner().wait_result.expect("what came of the wait");
            assert_eq!((result.watchers_applied, result.complete), (1, true), "{result:?}");
        }
    }
}

/// `avouch sidecar`.
pub(crate) struct Sidecar {
    child: Child,
    stderr: PathBuf,
    ext_authz: PathBuf,
}

impl Sidecar {
    /// Starts one, which may become ready.
    fn start(dir: &Path, server: &Relay, more: &[&str]) -> Self {
        let Place::Tcp(server) = &server.place else { panic!("avouch is on a port") };
        let path = |name: &str| dir.join(name);
        let unix = |name: &str| format!("unix://{}", path(name).display());
        std::fs::write(path("rules.toml"), RULES).expect("the rules");
        let stderr = path("sidecar.stderr");
        let file = std::fs::File::create(&stderr).expect("a file for stderr");
        let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
        command
            .args(["sidecar", "--server", &format!("http://{server}"), "--issuer", ISSUER])
            .arg("--credentials")
            .arg(path("sidecar.json"))
            .arg("--rules")
            .arg(path("rules.toml"))
            .args(["--ext-authz", &unix("authz.sock")])
            .args(["--forward-auth", &unix("forward-auth.sock")])
            .args(["--ops", &unix("ops.sock")])
            .args(more)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true);
        let child = command.spawn().expect("the binary starts");
        let ext_authz = path("authz.sock");
        Self { child, stderr, ext_authz }
    }

    /// Waits until it says that it serves.
    pub(crate) async fn ready(&mut self) {
        let waited = timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().expect("its state") {
                    panic!("the sidecar ended, {status}: {}", self.stderr());
                }
                if self.serves().await {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("the sidecar is not ready: {}", self.stderr()));
    }

    async fn serves(&self) -> bool {
        let channel = over_unix(&self.ext_authz).await;
        let Ok(channel) = channel else { return false };
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
    }

    /// How many requests it judged so, by the reason that it counts them under.
    async fn judged(&self, reason: &str) -> f64 {
        let ops = Place::Unix(self.ext_authz.with_file_name("ops.sock"));
        let text = ask(&ops, &Ask::get("/metrics")).await.body;
        let label = format!("reason=\"{reason}\"");
        let lines = text.lines().filter(|line| line.starts_with("avouch_sidecar_requests_total{"));
        let counts = lines.filter(|line| line.contains(&label));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until it has judged so many so.
    pub(crate) async fn until_judged(&self, reason: &str, count: f64) {
        let judged = timeout(PATIENCE, async {
            while self.judged(reason).await < count {
                sleep(PAUSE).await;
            }
        });
        judged.await.unwrap_or_else(|_| panic!("never {count} {reason}: {}", self.stderr()));
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).expect("stderr")).into_owned()
    }

    /// SIGSTOP, and until each of its threads stands still.
    pub(crate) async fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id().expect("it runs"));
        let still = || {
            let tasks = std::fs::read_dir(&tasks).expect("Linux").map(|task| task.expect("a task"));
            let stats = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")));
            // The state comes after the name, which is in parentheses.
            let states = stats.map(|stat| stat.is_ok_and(|stat| stat.contains(") T ")));
            states.fold((true, 0), |(all, count), stopped| (all && stopped, count + 1))
        };
        let stopped = timeout(PATIENCE, async {
            while !matches!(still(), (true, 1..)) {
                sleep(PAUSE).await;
            }
        });
        stopped.await.expect("it stops");
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let id = Pid::from_raw(i32::try_from(id).expect("a pid")).expect("a pid");
        kill_process(id, signal).expect("signalled");
    }

    /// SIGKILL, and its end.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }
}

/// A connection over a Unix socket.
pub(crate) async fn over_unix(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://workload").connect_with_connector(connector).await
}

impl Rig {
    pub(crate) async fn start(kind: Kind) -> Self {
        Self::start_with(kind, &[], &[]).await
    }

    /// With more arguments for the sidecar, and with changes to what is documented for the proxy.
    pub(crate) async fn start_with(kind: Kind, sidecar: &[&str], changes: Changes<'_>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        let server = Server::start(&data).await;
        let path = |name: &str| dir.path().join(name);
        let saved = path("sidecar.json").display().to_string();
        let create = ["client", "create", "sidecar", "--audience", "avouch", "--save", &saved];
        let grants = ["--grant", "watch:audience=orders", "--grant", "introspect"];
        server.avouch(&[&create[..], &grants].concat()).await;
        let upward = Relay::tcp(Mode::Pass(server.place())).await;
        let mut sidecar = Sidecar::start(dir.path(), &upward, sidecar);
        sidecar.ready().await;
        let workload = Workload::start().await;
        let own = match kind {
            Kind::Envoy => path("authz.sock"),
            Kind::Nginx => path("forward-auth.sock"),
        };
        let beside = Relay::unix(&path("relay.sock"), Mode::Pass(Place::Unix(own)));
        let proxy = start_proxy(kind, dir.path(), &server, &workload, changes).await;
        Self { kind, dir, server, upward, beside, sidecar, proxy, workload }
    }

    /// Another proxy in the place of this one, as it is documented.
    pub(crate) async fn start_proxy_again(&mut self) {
        let Self { kind, dir, server, workload, .. } = &*self;
        self.proxy = start_proxy(*kind, dir.path(), server, workload, &[]).await;
    }

    /// Another sidecar on the sockets that the last one left behind. It may become ready.
    pub(crate) fn start_sidecar_again(&mut self) {
        self.sidecar = Sidecar::start(self.dir.path(), &self.upward, &[]);
    }

    /// Where the proxy should find the sidecar.
    pub(crate) fn sidecar_place(&self) -> Place {
        let name = match self.kind {
            Kind::Envoy => "authz.sock",
            Kind::Nginx => "forward-auth.sock",
        };
        Place::Unix(self.dir.path().join(name))
    }

    /// Asks the proxy once. Whoever is not let through has not been seen by the workload, and whoever
    /// is, once.
    pub(crate) async fn once(&self, what: &Ask) -> (Answer, Option<Seen>) {
        let answer = ask(&self.proxy.http, what).await;
        let mut seen = self.workload.take();
        let passed = answer.header(MARK).is_some();
        assert_eq!(seen.len(), usize::from(passed), "{what:?}, {answer:?}, {seen:?}");
        (answer, seen.pop())
    }

    /// Asks until the sidecar was quick enough: on a machine that has much to do, 50 ms may not be
    /// enough for it, and then the proxy lets nothing through.
    pub(crate) async fn ask(&self, what: &Ask) -> (Answer, Option<Seen>) {
        let decided = async {
            loop {
                let (answer, seen) = self.once(what).await;
                if answer.status != 503 {
                    return (answer, seen);
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, decided).await.unwrap_or_else(|_| {
            panic!("never decided: {what:?}\n{}\n{}", self.proxy.log(), self.sidecar.stderr())
        })
    }

    /// The status that comes of it.
    pub(crate) async fn status(&self, what: &Ask) -> u16 {
        self.ask(what).await.0.status
    }

    /// Asks until the sidecar says that it knows too little, which to a caller looks like a sidecar that
    /// was too slow.
    pub(crate) async fn until_stale(&self, what: &Ask) {
        let stale = timeout(PATIENCE, async {
            let before = self.sidecar.judged("stale").await;
            loop {
                let (answer, _) = self.once(what).await;
                if answer.status == 503 && self.sidecar.judged("stale").await > before {
                    return;
                }
                sleep(PAUSE).await;
            }
        });
        stale.await.unwrap_or_else(|_| panic!("never stale: {}", self.sidecar.stderr()));
    }

    /// Asks until the answer has this status.
    pub(crate) async fn until(&self, what: &Ask, status: u16) {
        let mut last = None;
        let reached = timeout(PATIENCE, async {
            loop {
                let (answer, _) = self.once(what).await;
                if answer.status == status {
                    return;
                }
                last = Some(answer);
                sleep(PAUSE).await;
            }
        });
        if reached.await.is_err() {
            panic!("never {status}: {what:?}, {last:?}\n{}", self.sidecar.stderr());
        }
    }
}

async fn start_proxy(
    kind: Kind,
    dir: &Path,
    server: &Server,
    workload: &Workload,
    changes: Changes<'_>,
) -> Proxy {
    let relay = dir.join("relay.sock");
    let behind = Behind {
        issuer: ISSUER,
        keys: &server.public,
        ext_authz: &relay,
        forward_auth: &relay,
        workload: &workload.address.to_string(),
        changes,
    };
    Proxy::start(kind, dir, &behind).await
}

/// Runs a command of avouch against a server, which must succeed.
async fn avouch(server: &str, words: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
    command.arg("--server").arg(format!("http://{server}")).args(words).env_clear();
    for (flag, file) in files {
        command.arg(flag).arg(file);
    }
    let output = timeout(PATIENCE, command.output()).await.expect("in time").expect("it runs");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
