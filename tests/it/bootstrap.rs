//! The first admin client, whose credentials somebody gives: in Kubernetes a Secret that every replica
//! mounts.

use std::path::Path;
use std::sync::Arc;

use avouch::app::bootstrap::given::register;
use avouch::app::{Deps, StoreOptions, build};
use avouch::cli::files::write_private;
use avouch::domain::caller::Right;
use avouch::domain::client::Lifetimes;
use avouch::domain::clock::Timestamp;
use avouch::pb::v1 as pb;
use avouch::service::journal::{Happening, Journal, Origin, Recording};

use crate::harness::{Server, bearer, options};
use crate::process::PATIENCE;

/// 43 characters, as 32 bytes have in base64url.
const SECRET: &str = "0123456789abcdefghijABCDEFGHIJ-_0123456789a";

fn file(dir: &Path, id: &str, secret: &str) -> std::path::PathBuf {
    let path = dir.join("credentials.json");
    let text = format!(r#"{{"client_id": "{id}", "client_secret": "{secret}"}}"#);
    write_private(&path, &text).unwrap();
    path
}

/// A journal that lets nobody change anything before all of them are about to.
struct Gate(tokio::sync::Barrier);

impl Journal for Gate {
    fn record(&self, _: Timestamp, _: &Origin, _: Happening) {}

    fn record_surely<'a>(&'a self, _: Timestamp, _: &'a Origin, _: Happening) -> Recording<'a> {
        Box::pin(async {
            self.0.wait().await;
            Ok(())
        })
    }
}

#[tokio::test]
async fn replicas_that_start_at_once_register_the_given_client_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "root", SECRET);
    let gate = Gate(tokio::sync::Barrier::new(3));
    let bound = build(options(StoreOptions::Memory), Deps::system(Arc::new(gate))).await.unwrap();
    let replica = || register(&bound.service, &path, Lifetimes::default());
    let started = async { tokio::join!(replica(), replica(), replica()) };
    let started = tokio::time::timeout(PATIENCE, started).await.expect("none sees a client yet");
    let mut made = 0;
    for first in [started.0, started.1, started.2] {
        let first = first.expect("every replica starts");
        made += usize::from(first.admin_client.as_deref() == Some(&path));
    }
    assert_eq!(made, 1);
    assert_eq!(bound.service.store().clients(None, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_given_client_may_do_everything_and_later_starts_make_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "root", SECRET);
    let server = Server::start().await;
    let made = register(&server.service, &path, Lifetimes::default()).await.unwrap();
    assert_eq!(made.admin_client, Some(path));
    let root =
        pb::ClientAuthentication { client_id: "root".into(), client_secret: SECRET.to_owned() };
    let token = server.own_token(&root).await;
    let list = bearer(pb::ListClientsRequest::default(), &token);
    let clients = server.admin().list_clients(list).await.unwrap().into_inner().clients;
    let [client] = &clients[..] else { panic!("{clients:?}") };
    assert_eq!((&*client.client_id, client.grants.len()), ("root", Right::ALL.len()));

    // Later starts make nothing, whatever the file says by then.
    let other = file(dir.path(), "other", SECRET);
    let later = register(&server.service, &other, Lifetimes::default()).await.unwrap();
    assert_eq!(later.admin_client, None);
    assert_eq!(server.service.store().clients(None, 9).await.unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn credentials_that_could_be_guessed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start().await;
    let spaces = SECRET.replace('0', " ");
    for (secret, word) in [
        (&SECRET[1..], "43 visible characters or more"),
        (&*spaces, "43 visible characters or more"),
        ("", "43 visible characters or more"),
    ] {
        let path = file(dir.path(), "admin", secret);
        let refused = register(&server.service, &path, Lifetimes::default()).await;
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(word) && said.contains("credentials.json"), "{said}");
        assert!(secret.is_empty() || !said.contains(secret));
    }
    for text in ["{}", "admin", r#"{"client_id": "admin"}"#] {
        let path = dir.path().join("credentials.json");
        write_private(&path, text).unwrap();
        let refused = register(&server.service, &path, Lifetimes::default()).await;
        assert!(refused.is_err(), "{text}");
    }
    let missing = dir.path().join("missing.json");
    assert!(register(&server.service, &missing, Lifetimes::default()).await.is_err());
    assert!(server.service.store().clients(None, 9).await.unwrap().is_empty());
    server.stop().await;
}
