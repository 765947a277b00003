//! `avouch top` for pipes, against the real binary.

use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::password_login;
use crate::process::{Addresses, Cast, PATIENCE, Process, identity};

async fn top(ops: &str, line: &[&str]) -> std::process::Output {
    let command = Command::new(env!("CARGO_BIN_EXE_avouch"))
        .args(["top", "--ops", ops])
        .args(line)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, command).await.expect("in time").expect("it runs")
}

async fn serve() -> (tempfile::TempDir, Process, Addresses) {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let login = password_login(&cast.login, "ada", &cast.password);
    identity(&addresses).await.authenticate(login).await.expect("in");
    (home, process, addresses)
}

#[tokio::test]
async fn top_prints_an_object_for_pipes_and_a_list_for_eyes() {
    let (_home, process, addresses) = serve().await;
    let ops = format!("http://{}/", addresses.ops);
    let output = top(&ops, &["--once", "--json", "--interval", "100ms"]).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let seen: serde_json::Value = serde_json::from_str(&text).expect("one object");
    let methods: Vec<_> =
        seen["calls"].as_array().expect("calls").iter().map(|call| &call["method"]).collect();
    assert_eq!(methods, ["Authenticate"], "{text}");
    assert_eq!(seen["watchers"]["open"], 0);
    assert_eq!(seen["warnings"], serde_json::json!([]));
    assert!(seen["process"]["resident_bytes"].as_f64().expect("bytes") > 1e6, "{text}");
    assert!(seen["store"]["bytes"].as_f64().expect("bytes") > 0.0, "{text}");
    let output = top(&ops, &["--once", "--interval", "100ms"]).await;
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    for part in ["watchers   0 open", "METHOD", "Authenticate"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.lines().all(|line| line.len() < 80), "{text}");
    // Nobody would see a screen here.
    let output = top(&ops, &[]).await;
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code() == Some(1) && text.contains("--once"), "{text}");
    process.kill().await;
}

#[tokio::test]
async fn top_says_what_is_wrong_with_the_server_that_it_was_given() {
    let other = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = other.local_addr().expect("an address");
    tokio::spawn(async move {
        for answer in ["HTTP/1.1 404 Not Found\r\n\r\n", "not \u{fffd} HTTP"] {
            let (mut io, _) = other.accept().await.expect("a connection");
            let mut request = [0; 1024];
            // All of it comes at once: it is one small write.
            assert!(io.read(&mut request).await.expect("a request") > 0);
            io.write_all(answer.as_bytes()).await.expect("answered");
        }
    });
    for (ops, says) in [
        ("https://127.0.0.1:7702".to_owned(), "must be http://"),
        (format!("http://{address}"), "404 Not Found"),
        (format!("http://{address}/"), "does not speak HTTP"),
        ("http://127.0.0.1:1".to_owned(), "refused"),
    ] {
        let output = top(&ops, &["--once"]).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&ops) && text.contains(says), "{text}");
    }
}
