//! The example service, and the examples of the README for verifier and layer.

use std::sync::Arc;

use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::pb::v1 as pb;
use avouch::verifier::{VerifiedToken, Verifier};
use pb::revoke_request::Target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::harness::{ISSUER, client, http_get};
use crate::support::readme::assert_shown;
use crate::verifier::{LONG, Scene};

#[path = "../../examples/orders.rs"]
#[expect(dead_code, reason = "its main is for the command line")]
mod orders;

/// A client with the rights that the README names, and its credentials as the command line saves them.
async fn watcher(scene: &Scene) -> pb::ClientAuthentication {
    let grants = [Right::Watch, Right::Introspect].map(Grant::unlimited).into();
    let registration = Client { first_party: false, grants, ..client("orders") };
    scene.server.add_client(registration).await
}

#[tokio::test]
async fn the_example_service_ends_an_open_answer_when_its_session_is_revoked() {
    let scene = Scene::new().await;
    let own = watcher(&scene).await;
    let saved = serde_json::json!({
        "client_id": own.client_id, "client_secret": own.client_secret,
    });
    let avouch = format!("http://localhost:{}", scene.server.grpc.port());
    let verifier = orders::verifier(&avouch, ISSUER, saved.to_string().as_bytes()).await;
    let verifier = verifier.expect("it follows");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(orders::serve(listener, verifier.clone()));

    let ada = scene.login("ada").await;
    let authorization = format!("authorization: Bearer {}\r\n", ada.access_token);
    let (status, _, body) = http_get(address, "/orders", &authorization).await;
    assert_eq!((status, body.contains(&ada.subject)), (200, true), "{body}");
    assert_eq!(http_get(address, "/orders", "").await.0, 401);

    let mut live = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET /orders/live HTTP/1.1\r\nhost: orders\r\n{authorization}\r\n");
    live.write_all(request.as_bytes()).await.expect("it is sent");
    let mut begun = Vec::new();
    while !begun.ends_with(b"order 1\n\r\n") {
        begun.push(timeout(LONG, live.read_u8()).await.expect("in time").expect("a byte"));
    }
    scene.revoke(&verifier, Target::SessionId(ada.session_id)).await;
    let mut rest = Vec::new();
    let _broken = timeout(LONG, live.read_to_end(&mut rest)).await.expect("it ends");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it is broken, not complete");
    assert_eq!(http_get(address, "/orders", &authorization).await.0, 401);
}

#[rustfmt::skip]
async fn verify(
    avouch: &str, issuer: &str, id: &str, secret: &str, token: &str,
) -> Result<(Verifier, Arc<VerifiedToken>), Box<dyn std::error::Error>> {
    // README: begin verifier
    use avouch::client::{balance::Target, identity::ClientCredential, watch::WatchSettings};
    use avouch::verifier::{Verifier, VerifierSettings};

    let own = ClientCredential::secret(id, secret); // with the rights watch and introspect
    let settings = VerifierSettings::new(issuer, WatchSettings::new(Vec::new()));
    let verifier = Verifier::connect(Target::plaintext(avouch)?, own, "avouch", settings).await?;
    verifier.synced().await; // every revocation is here; from now on they are pushed
    let verified = verifier.verify(token).await?; // without a call; verified.claims says whose it is
    // README: end verifier
    Ok((verifier, verified))
}

#[rustfmt::skip]
fn protect(verifier: Verifier) -> Result<axum::Router, Box<dyn std::error::Error>> {
    // README: begin layer
    use avouch::{domain::scope::Names, layer::VerifyLayer, verifier::*};
    use axum::{Extension, Router, routing::get};
    use std::sync::Arc;

    async fn orders(Extension(token): Extension<Arc<VerifiedToken>>) -> String {
        format!("the orders of {}", token.claims.subject)
    }
    let required = Requirement { audience: Names::new(["orders"])?, scope: Names::new(["read"])? };
    let layer = VerifyLayer::new(verifier, required);
    let routes = Router::new().route("/orders", get(orders)).layer(layer);
    // README: end layer
    Ok(routes)
}

#[tokio::test]
async fn the_examples_of_the_readme_for_verifier_and_layer_work_and_are_these() {
    for example in ["verifier", "layer"] {
        assert_shown(include_str!("examples.rs"), example);
    }
    let scene = Scene::new().await;
    let own = watcher(&scene).await;
    let ada = scene.login("ada").await;
    let avouch = format!("http://localhost:{}", scene.server.grpc.port());
    let token = &ada.access_token;
    let shown = verify(&avouch, ISSUER, &own.client_id, &own.client_secret, token).await;
    let (verifier, verified) = shown.expect("it works");
    assert_eq!(verified.claims.subject.as_str(), ada.subject);

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let routes = protect(verifier).expect("routes");
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let authorization = format!("authorization: Bearer {token}\r\n");
    let (status, _, body) = http_get(address, "/orders", &authorization).await;
    assert_eq!((status, body.contains(&ada.subject)), (200, true), "{body}");
    assert_eq!(http_get(address, "/orders", "").await.0, 401);
}
