//! What operators see beside gRPC, on a store in a directory.

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::clock::ManualClock;
use avouch::pb::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{NOW, Server, bearer, options, sled};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: avouch\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    text
}

#[tokio::test]
async fn operators_find_the_keys_the_readiness_and_the_session() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(sled(dir.path())), clock).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let tokens = server.login(&app, "ada").await;
    assert!(!server.journal.take().is_empty());
    let keys = get(server.public, "/.well-known/jwks.json").await;
    server.clock.advance(Duration::from_secs(60));
    let ready = get(server.ops, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("ready\n"), "{ready}");
    let again = get(server.public, "/.well-known/jwks.json").await;
    let body = |text: &str| text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    assert_eq!(body(&keys), body(&again));
    assert!(body(&keys).is_some_and(|body| body.contains("\"kid\"")));

    let own = server.own_token(&operator).await;
    let user = pb::GetUserRequest { username: "ada".to_owned(), ..Default::default() };
    let user = server.admin().get_user(bearer(user, &own)).await.expect("she is there");
    let subject = user.into_inner().user.expect("a user").subject;
    assert_eq!(subject, tokens.subject);
    let list = pb::ListSessionsRequest { subject, ..Default::default() };
    let list = server.sessions().list_sessions(bearer(list, &own)).await.expect("a page");
    let sessions = list.into_inner().sessions;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].session_id, tokens.session_id);
    server.refresh(&app, &tokens.refresh_token).await.expect("it is current");
    server.stop().await;
}
