//! `avouch node-agent` as people start it, killed and told to stop, with `avouch watch` at its socket.

use std::path::Path;
use std::process::Stdio;

use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::process::{Addresses, Cast, PATIENCE, Process, identity};

fn avouch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// An agent; what it says goes to a file.
fn start(socket: &str, addresses: &Addresses, data: &Path, log: &Path) -> Child {
    let credentials = data.join("admin-client.json");
    let url = format!("http://{}", addresses.grpc);
    let line = [
        "node-agent",
        "--server",
        &url,
        "--credentials",
        credentials.to_str().expect("text"),
        "--listen",
        socket,
        "--ops",
        "off",
        "--log-level",
        "trace",
    ];
    let log = std::fs::File::options().append(true).create(true).open(log).expect("a file");
    avouch(&line).stdout(Stdio::null()).stderr(log).spawn().expect("it starts")
}

struct Seen(Lines<BufReader<ChildStdout>>);

impl Seen {
    /// The next line of this type; others are skipped.
    async fn next(&mut self, kind: &str) -> Value {
        let found = async {
            loop {
                let line = self.0.next_line().await.expect("readable").expect("it goes on");
                let value: Value = serde_json::from_str(&line).expect("JSON");
                if value["type"] == kind {
                    return value;
                }
            }
        };
        timeout(PATIENCE, found).await.expect("in time")
    }
}

async fn revoke(addresses: &Addresses, cast: &Cast, target: Target) {
    let request = pb::RevokeRequest {
        client: Some(cast.admin.clone()),
        target: Some(target),
        ..Default::default()
    };
    identity(addresses).await.revoke(request).await.expect("revoked");
}

/// Logs ada in, and revokes that session.
async fn revoke_a_session(addresses: &Addresses, cast: &Cast) -> String {
    let request = crate::harness::password_login(&cast.login, "ada", &cast.password);
    let tokens = identity(addresses).await.authenticate(request).await.expect("logged in");
    let session = tokens.into_inner().tokens.expect("tokens").session_id;
    revoke(addresses, cast, Target::SessionId(session.clone())).await;
    session
}

#[tokio::test]
async fn what_watches_at_the_socket_goes_on_when_the_agent_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut server = Process::start(&data, &[]);
    let addresses = server.serving().await;
    let cast = Cast::of(&data);
    let path = directory.path().join("agent.sock");
    let socket = format!("unix://{}", path.display());
    let log = directory.path().join("agent.log");
    let mut agent = start(&socket, &addresses, &data, &log);
    crate::verifier::until("it is ready", || {
        std::fs::read_to_string(&log).unwrap_or_default().contains("is complete")
    })
    .await;
    // Without a credential: the socket says who may.
    let mut watch = avouch(&["watch", "--server", &socket, "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut seen = Seen(BufReader::new(watch.stdout.take().expect("a pipe")).lines());
    seen.next("synced").await;
    let one = revoke_a_session(&addresses, &cast).await;
    assert_eq!(seen.next("revocation").await["session_id"], one);

    agent.kill().await.expect("killed");
    seen.next("lost").await;
    assert!(path.exists(), "whoever is killed leaves its socket");
    revoke_a_session(&addresses, &cast).await;
    let mut agent = start(&socket, &addresses, &data, &log);
    // A set without what happened meanwhile would have one entry.
    assert_eq!(seen.next("synced").await["held"], 2);
    // Everything: the token of the agent, too. It gets another.
    revoke(&addresses, &cast, Target::Everything(true)).await;
    assert_eq!(seen.next("revocation").await["level"], "everything");
    let last = revoke_a_session(&addresses, &cast).await;
    assert_eq!(seen.next("revocation").await["session_id"], last);

    let id = i32::try_from(agent.id().expect("it runs")).expect("a pid");
    kill_process(Pid::from_raw(id).expect("a pid"), Signal::TERM).expect("signalled");
    let status = timeout(PATIENCE, agent.wait()).await.expect("it ends").expect("its status");
    let said = std::fs::read_to_string(&log).expect("what it said");
    assert!(status.success(), "{said}");
    let why = seen.next("lost").await;
    assert!(why["reason"].as_str().expect("text").contains("DRAIN"), "{why}");
    assert!(!path.exists(), "it takes its socket along");
    assert!(!said.contains(&cast.admin.client_secret), "{said}");
    assert!(!said.contains("Bearer ey"), "{said}");
}

#[tokio::test]
async fn what_makes_no_sense_is_a_usage_error() {
    for (arguments, text) in [
        (vec!["--listen", "unix:///tmp/a.sock"], "say who the agent is"),
        (vec!["--listen", "0.0.0.0:7711", "--credentials", "x"], "reachable from other machines"),
        (vec!["--listen", "a.sock"], "unix:///absolute/path"),
        (vec!["--socket-mode", "999"], "octal digits"),
        (vec!["--ops", "nowhere"], "or off"),
    ] {
        let line = [vec!["node-agent"], arguments].concat();
        let output = avouch(&line).output().await.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{line:?}: {said}");
        assert!(said.contains(text), "{line:?}: {said}");
    }
}
