//! Envoy and nginx as processes, with the configurations that the documentation shows.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::parts;
use crate::process::PATIENCE;
use crate::raw::{Ask, Place, ask};

/// What `docs` shows for Envoy.
pub(crate) const ENVOY: &str = include_str!("../../docs/envoy/envoy.yaml");
/// What `docs` shows for nginx.
pub(crate) const NGINX: &str = include_str!("../../docs/nginx/avouch.conf");

/// Which proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Envoy,
    Nginx,
}

/// What stands behind a proxy.
pub(crate) struct Behind<'a> {
    /// The issuer that the tokens name.
    pub(crate) issuer: &'a str,
    /// Where the public keys are.
    pub(crate) keys: &'a str,
    /// The sidecar's sockets.
    pub(crate) ext_authz: &'a Path,
    pub(crate) forward_auth: &'a Path,
    pub(crate) workload: &'a str,
    /// What else to change in the documented text.
    pub(crate) changes: Changes<'a>,
}

/// Each of the first to each of the second.
pub(crate) type Changes<'a> = &'a [(&'a str, &'a str)];

/// A proxy that runs. It ends with this.
pub(crate) struct Proxy {
    _child: Child,
    log: PathBuf,
    /// Where it takes HTTP/1.1.
    pub(crate) http: Place,
    /// Where it takes gRPC.
    pub(crate) grpc: Place,
}

impl Proxy {
    pub(crate) async fn start(kind: Kind, dir: &Path, behind: &Behind<'_>) -> Self {
        match kind {
            Kind::Envoy => Self::envoy(dir, behind).await,
            Kind::Nginx => Self::nginx(dir, behind).await,
        }
    }

    async fn envoy(dir: &Path, behind: &Behind<'_>) -> Self {
        let (config, admin) = (dir.join("envoy.yaml"), dir.join("envoy.admin"));
        let text = replaced(&envoy_config(behind), behind.changes);
        std::fs::write(&config, text).expect("a configuration");
        // One that another Envoy wrote would do for this one.
        let _ = std::fs::remove_file(&admin);
        let log = dir.join("envoy.log");
        let mut command = Command::new(parts::envoy());
        command.arg("--config-path").arg(&config).arg("--admin-address-path").arg(&admin).args([
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
        ]);
        let mut child = spawn(command, &log);
        let admin = until(&mut child, &log, || {
            let text = std::fs::read_to_string(&admin).ok()?;
            text.trim().parse().ok().map(Place::Tcp)
        });
        let admin = admin.await;
        // It listens once it has the public keys.
        let http = timeout(PATIENCE, async {
            loop {
                let text = ask(&admin, &Ask::get("/listeners")).await.body;
                let address =
                    text.split_once("ingress::").and_then(|(_, rest)| rest.lines().next());
                if let Some(address) = address.and_then(|address| address.parse().ok()) {
                    let ready = ask(&admin, &Ask::get("/ready")).await;
                    if ready.status == 200 {
                        return Place::Tcp(address);
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        let http = http.await.unwrap_or_else(|_| panic!("Envoy is not ready: {}", read(&log)));
        Self { _child: child, log, grpc: http.clone(), http }
    }

    async fn nginx(dir: &Path, behind: &Behind<'_>) -> Self {
        let path = |name: &str| dir.join(name);
        let (http, grpc) = (path("nginx.sock"), path("nginx-grpc.sock"));
        let text = replaced(&nginx_config(behind, &http, &grpc), behind.changes);
        std::fs::write(path("avouch.conf"), text).expect("written");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path(name).display()))
            .concat();
        // What a distribution's own nginx.conf does around the files in conf.d. The user is the one
        // that the sidecar runs as, who may use its socket. A master that is killed would leave its
        // workers behind.
        let main = format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {};\nworker_processes 1;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}include {};\n}}\n",
            path("nginx.pid").display(),
            path("avouch.conf").display(),
        );
        std::fs::write(path("nginx.conf"), main).expect("written");
        let log = path("nginx.log");
        let mut command = Command::new(parts::nginx());
        command.arg("-e").arg("stderr").arg("-c").arg(path("nginx.conf")).arg("-p").arg(dir);
        let mut child = spawn(command, &log);
        // Written once it listens.
        until(&mut child, &log, || {
            let text = std::fs::read_to_string(path("nginx.pid")).ok()?;
            (!text.trim().is_empty()).then_some(())
        })
        .await;
        Self { _child: child, log, http: Place::Unix(http), grpc: Place::Unix(grpc) }
    }

    /// What it said last.
    pub(crate) fn log(&self) -> String {
        let text = read(&self.log);
        text.lines().rev().take(10).collect::<Vec<_>>().join("\n")
    }
}

fn spawn(mut command: Command, log: &Path) -> Child {
    let file = std::fs::File::create(log).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn read(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

/// Waits until `found` finds what it looks for, or fails when the process ends before.
async fn until<T>(child: &mut Child, log: &Path, found: impl Fn() -> Option<T>) -> T {
    let waited = timeout(PATIENCE, async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            if let Some(status) = child.try_wait().expect("its state") {
                panic!("it ended, {status}: {}", read(log));
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it does not come up: {}", read(log)))
}

/// The documented text with what it says about places, and nothing else, changed.
fn envoy_config(behind: &Behind<'_>) -> String {
    let (_, keys) = behind.keys.rsplit_once(':').expect("a port");
    let (_, workload) = behind.workload.rsplit_once(':').expect("a port");
    replaced(
        ENVOY,
        &[
            ("address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 0"),
            ("address: 127.0.0.1, port_value: 10000", "address: 127.0.0.1, port_value: 0"),
            ("issuer: http://127.0.0.1:7701\n", &format!("issuer: {}\n", behind.issuer)),
            ("uri: http://127.0.0.1:7701/", &format!("uri: http://{}/", behind.keys)),
            ("port_value: 7701", &format!("port_value: {keys}")),
            ("port_value: 8080", &format!("port_value: {workload}")),
            ("/run/avouch/authz.sock", &behind.ext_authz.display().to_string()),
        ],
    )
}

fn nginx_config(behind: &Behind<'_>, http: &Path, grpc: &Path) -> String {
    let unix = |path: &Path| format!("unix:{}", path.display());
    replaced(
        NGINX,
        &[
            ("listen 127.0.0.1:10080", &format!("listen {}", unix(http))),
            ("listen 127.0.0.1:10081", &format!("listen {}", unix(grpc))),
            ("server 127.0.0.1:8080", &format!("server {}", behind.workload)),
            ("unix:/run/avouch/forward-auth.sock", &unix(behind.forward_auth)),
        ],
    )
}

/// `text` with each of these replaced, which must be there once.
fn replaced(text: &str, changes: Changes<'_>) -> String {
    let mut text = text.to_owned();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        text = text.replace(from, to);
    }
    text
}
