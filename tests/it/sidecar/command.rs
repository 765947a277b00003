//! `avouch sidecar` as people start it, and what it says of a file of rules that is wrong.

use std::path::Path;
use std::process::Stdio;

use avouch::pb::v1 as pb;
use tokio::process::Command;

use super::rig::{question, unix_channel, until};
use crate::process::{Cast, PATIENCE, Process, identity};

fn avouch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(arguments: &[&str]) -> (i32, String) {
    let output = avouch(arguments).output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it ends by itself"), text)
}

fn write(directory: &Path, text: &str) -> String {
    let path = directory.join("rules.toml");
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("text").to_owned()
}

#[tokio::test]
async fn every_mistake_in_the_rules_is_told_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let rules = write(
        directory.path(),
        r#"
[sidecar]
isuer = "https://id.test"
ext_authz = "0.0.0.0:9191"
policy = "perhaps"

[[rule]]
prefix = "/a/../b"
[[rule]]
path = "/a"
prefix = "/a"
[[rule]]
public = true
[[rule]]
prefix = "/c"
scopes = "read"
methods = "GET, POST"
[[rule]]
prefix = "/d"
public = true
scope = "read"
literal_paths = true
[[rule]]
grpc = "/orders.v1.Orders/Get"
[[rule]]
prefix = "/e"
max_staleness = "soon"
[[rule]]
prefix = "/f"
audience = "orders"
[[rule]]
prefix = "/f/"
methods = "GET"
audience = "orders"
[[rule]]
prefix = "/f/"
audience = "orders"
[[rule]]
prefix = "/g"
[rules]
x = 1
"#,
    );
    let (code, text) = run(&["sidecar", "--rules", &rules, "--check"]).await;
    assert_eq!(code, 64, "{text}");
    for mistake in [
        ":3: sidecar.isuer is not known; did you mean sidecar.issuer?",
        ":5: sidecar.policy must be one of: closed, introspect, open",
        "sidecar.issuer is missing",
        "sidecar.ext_authz 0.0.0.0:9191 is reachable from other machines",
        "rule.prefix is not in normal form",
        "a rule has exactly one of path, prefix and grpc",
        "rule.scopes is not known; did you mean scope?",
        "rule.methods must be methods",
        "rule.scope has no effect: the rule is public",
        "rule.literal_paths must not be set where the rule is public",
        "rule.grpc is not the path of a request: write package.Service/Method",
        "rule.max_staleness must be a duration",
        "the rule for /f/* is for what the rule for /f/* at",
        "the rule for /g/* takes tokens for anybody",
        "section [rules] is not known; did you mean rule?",
    ] {
        assert!(text.contains(mistake), "{mistake} not in\n{text}");
    }
    assert_eq!(text.matches("a rule has exactly one of").count(), 2, "{text}");
    let good = write(directory.path(), super::rig::RULES);
    let flags = [
        "--issuer",
        "https://id.test",
        "--audience",
        "orders",
        "--ext-authz",
        "unix:///tmp/a.sock",
    ];
    let line = [&["sidecar", "--rules", &good, "--check"][..], &flags].concat();
    let (code, text) = run(&line).await;
    assert_eq!(code, 0, "{text}");
    // Without a file there is one rule, which needs an audience and somebody to ask.
    let (code, text) = run(&["sidecar", "--issuer", "https://id.test", "--check"]).await;
    assert_eq!(code, 64);
    assert!(
        text.contains("nobody can ask") && text.contains("/* takes tokens for anybody"),
        "{text}"
    );
    let (code, text) = run(&line[..line.len() - 2]).await;
    assert_eq!(code, 64);
    assert!(text.contains("nobody can ask"), "{text}");
    let line = [
        "sidecar",
        "--issuer",
        "https://id.test",
        "--audience",
        "a",
        "--forward-auth",
        "127.0.0.1:0",
    ];
    let (code, text) = run(&line).await;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("say who the sidecar is"), "{text}");
}

#[tokio::test]
async fn the_environment_goes_over_the_file_and_a_flag_over_both() {
    let directory = tempfile::tempdir().expect("a directory");
    let rules = write(
        directory.path(),
        "[sidecar]\nissuer = \"https://id.test\"\naudience = \"a\"\nforward_auth = \"127.0.0.1:0\"\npolicy = \"closed\"\nmax_staleness = \"1s\"\n[[rule]]\nprefix = \"/\"\n",
    );
    let mut command = avouch(&["sidecar", "--check", "--max-staleness", "3s"]);
    command
        .env("AVOUCH_SIDECAR_RULES", &rules)
        .env("AVOUCH_SIDECAR_POLICY", "open")
        .env("AVOUCH_SIDECAR_MAX_STALENESS", "2s")
        .env("AVOUCH_STORE_PATH", "/nobody/cares")
        // Kubernetes sets these for a service called avouch-sidecar.
        .env("AVOUCH_SIDECAR_SERVICE_HOST", "10.0.0.1")
        .env("AVOUCH_SIDECAR_PORT_9191_TCP_ADDR", "10.0.0.1");
    let output = command.output().await.expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        text,
        "1 rules; tokens of https://id.test; open when revocations are older than 3s\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (code, text) = {
        let mut command = avouch(&["sidecar", "--check", "--rules", &rules]);
        command.env("AVOUCH_SIDECAR_POLICI", "open");
        let output = command.output().await.expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(code, Some(64));
    assert!(text.contains("AVOUCH_SIDECAR_POLICI: sidecar.polici is not known"), "{text}");
}

fn own_token(client: pb::ClientAuthentication) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest {
        client: Some(client),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    }
}

#[tokio::test]
async fn the_program_serves_until_it_is_told_to_stop() {
    use prost::Message as _;
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut server = Process::start(&data, &[]);
    let addresses = server.serving().await;
    let cast = Cast::of(&data);
    let request = crate::harness::password_login(&cast.login, "ada", &cast.password);
    let tokens = identity(&addresses).await.authenticate(request).await.expect("logged in");
    let token = tokens.into_inner().tokens.expect("tokens").access_token;

    let socket = directory.path().join("authz.sock");
    let ext_authz = format!("unix://{}", socket.display());
    let url = format!("http://{}", addresses.grpc);
    let credentials = data.join("admin-client.json");
    let rules = write(directory.path(), "[[rule]]\nprefix = \"/\"\nscope = \"orders:read\"\n");
    let line = [
        "sidecar",
        "--server",
        &url,
        "--credentials",
        credentials.to_str().expect("text"),
        "--rules",
        &rules,
        "--issuer",
        "http://127.0.0.1",
        "--audience",
        "orders",
        "--ext-authz",
        &ext_authz,
        "--ops",
        "127.0.0.1:0",
        "--log-level",
        "trace",
    ];
    let log = directory.path().join("stderr");
    // Into a file: a pipe that nobody reads would stop it.
    let mut command = avouch(&line);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).expect("a file"));
    let mut child = command.spawn().expect("it starts");
    until("its socket", async || socket.exists()).await;
    let channel = unix_channel(socket.clone()).await;
    let bearer = format!("Bearer {token}");
    let question = question("GET", "/x", &[("authorization", &bearer)]).encode_to_vec();
    until("ready", async || super::rig::passes(&channel, question.clone()).await).await;
    // Turned away, and on the log for it: with a token that is bad, and with one for another audience.
    let own = cast.admin.clone();
    let own = identity(&addresses).await.authenticate(own_token(own)).await.expect("logged in");
    let own = own.into_inner().tokens.expect("tokens").access_token;
    let bent = format!("{}x", token);
    for token in [&own, &bent] {
        let bearer = format!("Bearer {token}");
        let question = super::rig::question("GET", "/x?secret=1", &[("authorization", &bearer)]);
        assert!(!super::rig::passes(&channel, question.encode_to_vec()).await);
    }
    let id = i32::try_from(child.id().expect("it runs")).expect("a pid");
    let id = rustix::process::Pid::from_raw(id).expect("a pid");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signalled");
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends");
    let said = std::fs::read(&log).expect("what it said");
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(status.expect("its status").success(), "{said}");
    assert!(!socket.exists(), "it takes its socket along");
    for line in ["serving", "draining", "stopped"] {
        assert!(said.contains(line), "{line} not in {said}");
    }
    for reason in ["reason=\"audience\" status=401 rule=\"/*\"", "reason=\"invalid\" status=401"] {
        assert!(said.contains(reason), "{reason} not in {said}");
    }
    // Not even at TRACE: neither the tokens nor their signatures, nor the secret, nor a query.
    let secret = cast.admin.client_secret;
    let signature = |token: &str| token.rsplit('.').next().map(str::to_owned).expect("segments");
    for secret in [&token, &own, &bent, &signature(&token), &signature(&own), &secret] {
        assert!(!said.contains(secret.as_str()), "{secret} in {said}");
    }
    assert!(!said.contains("secret=1"), "{said}");
    drop(server);
}
