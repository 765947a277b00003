//! When the server is gone: what each policy says, for a token that nothing known revokes and for one
//! that is known to be revoked.

use avouch::pb::v1 as pb;
use avouch::service::journal::Happening;
use prost::Message as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::rig::{Said, Sidecar, ask, forwarded, question, until};
use crate::harness::{Server, memory, options};
use crate::support::proxy::Proxy;

/// Rules of each policy, and the time after which it decides.
const RULES: &str = r#"
[[rule]]
prefix = "/closed"
policy = "closed"
max_staleness = "1s"
[[rule]]
prefix = "/introspect"
policy = "introspect"
max_staleness = "1s"
[[rule]]
prefix = "/open"
policy = "open"
max_staleness = "1s"
[[rule]]
prefix = "/patient"
policy = "closed"
max_staleness = "1h"
[[rule]]
prefix = "/public"
public = true
"#;

/// A way to the server that can be cut.
struct Way {
    address: std::net::SocketAddr,
    cut: CancellationToken,
}

impl Way {
    async fn to(server: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let cut = CancellationToken::new();
        let until_cut = cut.clone();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = tokio::select! {
                    accepted = listener.accept() => accepted.expect("a connection"),
                    () = until_cut.cancelled() => return,
                };
                let until_cut = until_cut.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        () = until_cut.cancelled() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }
}

#[tokio::test]
async fn without_the_server_each_rule_says_what_its_policy_is() {
    let server = Server::with_system_clock(options(memory())).await;
    let way = Way::to(server.grpc).await;
    let client = server.powerful("sidecar").await;
    let sidecar = Sidecar::start(way.address, client, RULES, &[]).await;
    sidecar.verifier.synced().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    let revoked = server.login(&app, "ada").await.access_token;
    let request = pb::RevokeRequest {
        client: Some(app),
        target: Some(pb::revoke_request::Target::Token(revoked.clone())),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    server.identity().revoke(request).await.expect("revoked");
    for path in ["/closed", "/introspect", "/open", "/patient"] {
        // On a machine that is busy the view may be older for a moment than a rule likes.
        until(path, async || sidecar.check_token("GET", path, &token).await.passes()).await;
        assert_eq!(sidecar.check_token("GET", path, &revoked).await, Said::invalid_token());
    }
    way.cut.cancel();
    let unavailable = Said::Failed(tonic::Code::Unavailable);
    // No answer to Envoy but an error of the call, which is its own to judge.
    until("stale", async || sidecar.check_token("GET", "/closed", &token).await == unavailable)
        .await;
    let nobody_answers =
        async || sidecar.check_token("GET", "/introspect", &token).await == unavailable;
    until("what the server said before is forgotten", nobody_answers).await;
    let (status, head) =
        sidecar.ask("/auth/forwarded", &forwarded("GET", "/closed", Some(&token))).await;
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 1") && !head.contains("www-authenticate"), "{head}");
    assert!(sidecar.check_token("GET", "/open", &token).await.passes());
    assert!(sidecar.check_token("GET", "/patient", &token).await.passes());
    assert!(sidecar.check("GET", "/public", &[]).await.passes());
    // What is known is enforced in every mode, and what is no token stays none.
    for path in ["/closed", "/introspect", "/open", "/patient"] {
        assert_eq!(
            sidecar.check_token("GET", path, &revoked).await,
            Said::invalid_token(),
            "{path}"
        );
        assert_eq!(sidecar.check("GET", path, &[]).await, Said::denied(401, "Bearer"), "{path}");
    }
    let (_, metrics) = sidecar.ops("/metrics").await;
    let counted = |name: &str| crate::process::metric(&metrics, name);
    assert!(counted("avouch_sidecar_opened_total") >= 1.0);
    assert!(counted("avouch_sidecar_view_age_seconds") >= 1.0);
    assert_eq!(counted("avouch_sidecar_view_connected"), 0.0);
    assert_eq!(sidecar.ops("/readyz").await.0, 200, "ready once is ready for what is known");
}

#[tokio::test]
async fn a_stale_token_is_asked_about_where_the_rule_says_so() {
    let server = Server::with_system_clock(options(memory())).await;
    // Nothing is ever fresh enough here: each token is asked about.
    let rules = "[[rule]]\nprefix = \"/\"\npolicy = \"introspect\"\nmax_staleness = \"0s\"\n";
    let sidecar = Sidecar::beside(&server, rules, &[]).await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    // A token just made is fresher than the view.
    let asked = async || {
        assert!(sidecar.check_token("GET", "/", &token).await.passes());
        sidecar.verifier.stats().asked > 0
    };
    until("the server is asked", asked).await;
    let target = pb::revoke_request::Target::Token(token.clone());
    server.revoke(&app, target).await.expect("revoked");
    let refused = async || sidecar.check_token("GET", "/", &token).await == Said::invalid_token();
    until("the server says no", refused).await;
}

#[tokio::test]
async fn who_revokes_everything_does_not_blind_the_sidecar() {
    let server = Server::with_system_clock(options(memory())).await;
    let sidecar = Sidecar::beside(&server, RULES, &[]).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    let passes = async || sidecar.check_token("GET", "/closed", &token).await.passes();
    until("the token passes", passes).await;
    // The sidecar's own token is among what is revoked, and its stream ends.
    server.journal.take();
    let target = pb::revoke_request::Target::Everything(true);
    server.revoke(&operator, target).await.expect("revoked");
    let refused =
        async || sidecar.check_token("GET", "/closed", &token).await == Said::invalid_token();
    until("the old token is refused", refused).await;
    // It logs in again only where its stream has ended.
    let own = |happening: &Happening| {
        matches!(happening, Happening::LoginSucceeded { session: None, .. })
    };
    until("a new token", async || server.journal.take().iter().any(own)).await;
    until("it is followed again", async || sidecar.verifier.status().connected).await;
    let token = server.login(&app, "ada").await.access_token;
    let passes = async || sidecar.check_token("GET", "/closed", &token).await.passes();
    until("the new token passes", passes).await;
}

#[tokio::test]
async fn a_check_that_is_under_way_is_answered_before_the_end() {
    let server = Server::with_system_clock(options(memory())).await;
    let proxy = Proxy::to(server.grpc).await;
    let client = server.powerful("sidecar").await;
    let rules = "[[rule]]\nprefix = \"/\"\npolicy = \"introspect\"\nmax_staleness = \"0s\"\n";
    let sidecar = Sidecar::start(proxy.address, client, rules, &[]).await;
    sidecar.verifier.synced().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    // The server is asked, and its answer does not come.
    proxy.mute(true);
    let asked_before = sidecar.verifier.stats().asked;
    let (envoy, authorization) = (sidecar.envoy.clone(), format!("Bearer {token}"));
    let checks = tokio::spawn(async move {
        loop {
            let question = question("GET", "/", &[("authorization", &authorization)]);
            match ask(&envoy, question.encode_to_vec()).await {
                Ok(answer) => assert!(Said::of(Ok(answer)).passes()),
                Err(status) => return status,
            }
        }
    });
    until("under way", async || sidecar.verifier.stats().asked > asked_before).await;
    assert_eq!(sidecar.stop().await.aborted, 0);
    let status = checks.await.expect("an answer");
    assert_eq!(status.message(), "revocations are not known up to now", "its own: {status:?}");
}
