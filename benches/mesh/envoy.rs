//! Envoy as a process, with the configuration that the documentation shows, less some filters.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{Failure, appears};

const CONFIG: &str = include_str!("../../docs/envoy/envoy.yaml");

/// The filter that asks about each request.
pub(crate) const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
/// The filter that checks signatures.
pub(crate) const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";

/// Where `tests/run` puts it.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let mut programs = versions.map(|it| it.path().join("site-packages/envoy/_bin/envoy"));
    let found = programs.find(|program| program.is_file());
    found.ok_or_else(|| format!("no Envoy under {}: tests/run gets it", lib.display()).into())
}

/// What stands around it.
pub(crate) struct Places<'a> {
    pub(crate) keys: &'a str,
    pub(crate) authz: &'a Path,
    pub(crate) workload: SocketAddr,
}

/// The documented configuration for these places, with these of its filters and no more.
pub(crate) fn config(places: &Places<'_>, filters: &[&str]) -> Result<String, Failure> {
    let (_, keys) = places.keys.rsplit_once(':').ok_or("a port is missing")?;
    let mut text = CONFIG.to_owned();
    for (from, to) in [
        ("port_value: 9901", "port_value: 0".to_owned()),
        ("port_value: 10000", "port_value: 0".to_owned()),
        ("http://127.0.0.1:7701", format!("http://{}", places.keys)),
        ("port_value: 7701", format!("port_value: {keys}")),
        ("port_value: 8080", format!("port_value: {}", places.workload.port())),
        ("/run/avouch/authz.sock", places.authz.display().to_string()),
        // No request is to end early here.
        ("timeout: 0.05s", "timeout: 5s".to_owned()),
    ] {
        if !text.contains(from) {
            return Err(format!("the configuration does not say {from}").into());
        }
        text = text.replace(from, &to);
    }
    for filter in [EXT_AUTHZ, JWT_AUTHN] {
        if !filters.contains(&filter) {
            text = without(&text, filter)?;
        }
    }
    Ok(text)
}

/// The text without one filter: the line that names it and all that is set in deeper.
fn without(text: &str, filter: &str) -> Result<String, Failure> {
    let name = format!("- name: {filter}");
    let mut kept = Vec::new();
    let mut inside = None;
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        if line.trim_start() == name {
            inside = Some(depth);
            continue;
        }
        if inside.is_some_and(|at| depth > at) {
            continue;
        }
        inside = None;
        kept.push(line);
    }
    let shorter = kept.join("\n");
    if shorter.len() + 1 < text.len() { Ok(shorter) } else { Err(format!("no {filter}").into()) }
}

/// It ends with this.
pub(crate) struct Envoy {
    _child: Child,
    pub(crate) address: SocketAddr,
}

impl Envoy {
    pub(crate) async fn start(program: &Path, dir: &Path, config: &str) -> Result<Self, Failure> {
        std::fs::create_dir(dir)?;
        let (path, admin) = (dir.join("envoy.yaml"), dir.join("admin"));
        std::fs::write(&path, config)?;
        let child = Command::new(program)
            .arg("--config-path")
            .arg(&path)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let admin = appears(&admin).await?;
        let address = loop {
            let ready = get(admin.trim(), "/ready").await?;
            let text = get(admin.trim(), "/listeners").await?;
            let address = text.split_once("ingress::").and_then(|(_, rest)| rest.lines().next());
            if let (true, Some(address)) = (ready.starts_with("HTTP/1.1 200"), address) {
                break address.parse()?;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
        Ok(Self { _child: child, address })
    }
}

async fn get(address: &str, path: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
