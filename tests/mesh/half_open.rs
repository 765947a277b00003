//! A network that falls silent: a router drops every packet and tells nobody, so that TCP at both ends
//! believes in the connection for many minutes. Needs root, for three network namespaces.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use avouch::crypto::OsEntropy;
use avouch::domain::entropy::Entropy;
use base64::Engine as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, sleep, timeout};

use crate::parts;
use crate::process::PATIENCE;

const SERVER: &str = "10.77.1.2";
const URL: &str = "http://10.77.1.2:7700";

/// server - router - watcher, each in a namespace.
struct Network {
    server: String,
    router: String,
    watcher: String,
}

impl Network {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let name = |role: &str| format!("avouch-{}-{role}", std::process::id());
        let it = Self { server: name("s"), router: name("r"), watcher: name("w") };
        for namespace in [&it.server, &it.router, &it.watcher] {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        it.join(&it.server, "10.77.1.2/24", "south", "10.77.1.1/24");
        it.join(&it.watcher, "10.77.2.2/24", "north", "10.77.2.1/24");
        ip(&["-n", &it.server, "route", "add", "default", "via", "10.77.1.1"]);
        ip(&["-n", &it.watcher, "route", "add", "default", "via", "10.77.2.1"]);
        it.forward(true);
        it
    }

    /// Connects `namespace` with the router.
    fn join(&self, namespace: &str, address: &str, port: &str, gateway: &str) {
        let router = &self.router;
        let link = ["link", "add", "up0", "netns", namespace, "type", "veth"];
        ip(&[&link[..], &["peer", "name", port, "netns", router]].concat());
        ip(&["-n", namespace, "address", "add", address, "dev", "up0"]);
        ip(&["-n", namespace, "link", "set", "up0", "up"]);
        ip(&["-n", router, "address", "add", gateway, "dev", port]);
        ip(&["-n", router, "link", "set", port, "up"]);
    }

    /// Whether packets pass. Where they do not, no ICMP says so.
    fn forward(&self, on: bool) {
        let write = format!("echo {} > /proc/sys/net/ipv4/ip_forward", u8::from(on));
        ip(&["netns", "exec", &self.router, "sh", "-c", &write]);
    }

    /// avouch with these arguments, in a namespace.
    fn avouch(namespace: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(parts::ip());
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_avouch")]);
        command.args(arguments).env_clear().stdin(Stdio::null());
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.router, &self.watcher] {
            // What is left over is in the way of nobody: the names are this process's.
            let _ = Command::new(parts::ip()).args(["netns", "del", namespace]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new(parts::ip()).args(arguments).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {text}", arguments.join(" "));
}

#[tokio::test]
async fn a_watcher_notices_a_network_that_falls_silent_and_misses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let network = Network::new();
    let data = dir.path().join("data");
    let _server = serve(&network, dir.path(), &data).await;
    let credentials = data.join("admin-client.json").display().to_string();
    let admin = |words: &[&str]| {
        let global = ["--server", URL, "--credentials", &credentials];
        let output = Network::avouch(&network.server, &[words, &global].concat()).output();
        let output = output.expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {text}");
    };
    admin(&["client", "create", "shop", "--audience", "shop"]);

    let arguments = ["watch", "--json", "--server", URL, "--credentials", &credentials];
    let mut command = tokio::process::Command::from(Network::avouch(&network.watcher, &arguments));
    let mut child =
        command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("the binary starts");
    let mut watch = Watch(BufReader::new(child.stdout.take().expect("its output")).lines());
    watch.next("synced").await;
    admin(&["revoke", "--client", "shop"]);
    let first = watch.next("revocation").await;
    assert_eq!(first["client_id"], "shop", "{first}");

    for round in 1..=2 {
        network.forward(false);
        let silent = Instant::now();
        let lost = watch.next("lost").await;
        let reason = lost["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("three heartbeats"), "{lost}");
        println!("round {round}: noticed {:?} after the network fell silent", silent.elapsed());

        // The server does not wait for a watcher that it cannot reach.
        admin(&["revoke", "--client", "shop"]);
        network.forward(true);
        let back = Instant::now();
        let missed = watch.next("revocation").await;
        assert_eq!(missed["client_id"], "shop", "{missed}");
        let revision = |event: &Value| event["revision"].as_u64().expect("a revision");
        assert!(revision(&missed) > revision(&first), "{first} {missed}");
        println!("round {round}: resumed {:?} after the network was back", back.elapsed());
        admin(&["revoke", "--client", "shop"]);
        let live = watch.next("revocation").await;
        assert_eq!(revision(&live), revision(&missed) + 1, "{live}");
    }
}

/// What `avouch watch --json` says.
struct Watch(Lines<BufReader<ChildStdout>>);

impl Watch {
    /// The next line of this type. Never is the set begun anew: it resumes.
    async fn next(&mut self, kind: &str) -> Value {
        let found = timeout(PATIENCE, async {
            loop {
                let line = self.0.next_line().await.expect("text").expect("it goes on");
                let value: Value = serde_json::from_str(&line).expect("JSON");
                assert_ne!(value["type"], "reset", "{line}");
                if value["type"] == kind {
                    return value;
                }
                // Something else that matters must not be passed over.
                assert_ne!(value["type"], "revocation", "{line} in place of {kind}");
            }
        });
        found.await.unwrap_or_else(|_| panic!("nothing of type {kind}"))
    }
}

/// A server that listens beyond its namespace, once it is ready.
async fn serve(network: &Network, dir: &Path, data: &Path) -> Child {
    let key = dir.join("encryption.key");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&key).expect("a file");
    let random: [u8; 32] = (&OsEntropy as &dyn Entropy).bytes();
    let text = base64::engine::general_purpose::STANDARD.encode(random);
    std::io::Write::write_all(&mut &file, text.as_bytes()).expect("written");
    let settings = [
        format!("server.listen={SERVER}:7700"),
        "server.public_listen=127.0.0.1:0".to_owned(),
        "server.ops_listen=127.0.0.1:0".to_owned(),
        "server.plaintext_mesh=true".to_owned(),
        "issuer.url=https://id.example.com".to_owned(),
        format!("store.path={}", data.display()),
        "store.min_free_bytes=0".to_owned(),
        format!("keys.encryption_key_file={}", key.display()),
    ];
    let settings: Vec<String> = settings.iter().map(|it| format!("--set={it}")).collect();
    let arguments: Vec<&str> =
        std::iter::once("serve").chain(settings.iter().map(String::as_str)).collect();
    let log = dir.join("server.stderr");
    let file = std::fs::File::create(&log).expect("a log");
    let mut command = tokio::process::Command::from(Network::avouch(&network.server, &arguments));
    let command = command.stdout(Stdio::null()).stderr(file).kill_on_drop(true);
    let mut child = command.spawn().expect("the binary starts");
    let up = timeout(PATIENCE, async {
        while !data.join("addresses.json").exists() {
            let ended = child.try_wait().expect("its state");
            let text = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "it ended: {}", text());
            sleep(Duration::from_millis(5)).await;
        }
    });
    up.await.expect("it comes up");
    child
}
