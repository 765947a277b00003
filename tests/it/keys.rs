//! The life of the signing keys, as callers and verifiers see it.

use std::collections::BTreeSet;
use std::time::Duration;

use avouch::domain::event::{Reason, Target};
use avouch::domain::key::KeyState;
use avouch::pb::v1 as pb;
use serde_json::Value;
use tonic::Code;

use crate::harness::{Server, bearer, http_get};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn kid(token: &str) -> String {
    use base64::Engine as _;
    let header = token.split('.').next().expect("a header");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header);
    let header: Value = serde_json::from_slice(&bytes.expect("base64url")).expect("JSON");
    header["kid"].as_str().expect("a kid").to_owned()
}

async fn published(server: &Server) -> Vec<String> {
    let (status, _, body) = http_get(server.public, "/.well-known/jwks.json", "").await;
    assert_eq!(status, 200);
    let set: Value = serde_json::from_str(&body).expect("JSON");
    let rpc = server.identity().get_key_set(pb::GetKeySetRequest {}).await.expect("public");
    assert_eq!(rpc.into_inner().jwks_json, body, "both say the same");
    let keys = set["keys"].as_array().expect("keys");
    for key in keys {
        for private in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            assert!(key.get(private).is_none(), "{private} is published");
        }
    }
    keys.iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

struct Bench {
    server: Server,
    operator: pb::ClientAuthentication,
}

impl Bench {
    async fn new() -> Self {
        let server = Server::start().await;
        let operator = server.powerful("operator").await;
        Self { server, operator }
    }

    async fn token(&self) -> String {
        self.server.own_token(&self.operator).await
    }

    async fn active(&self, token: &str) -> bool {
        self.server.introspect(&self.operator, token).await.active
    }
}

#[tokio::test]
async fn an_announced_key_never_signs_and_a_retired_one_verifies_until_it_is_removed() {
    let bench = Bench::new().await;
    let old = bench.token().await;
    let mut admin = bench.server.admin();
    let create = bearer(pb::CreateKeyRequest::default(), &old);
    let next = admin.create_key(create).await.expect("announced").into_inner().key;
    let next = next.and_then(|key| key.public_key).expect("a key").kid;
    assert!(published(&bench.server).await.contains(&next), "published ahead");
    assert_eq!(kid(&bench.token().await), kid(&old), "it does not sign yet");
    let rotate = bearer(pb::RotateKeyRequest {}, &old);
    admin.rotate_key(rotate).await.expect("rotated");
    let fresh = bench.token().await;
    assert_eq!(kid(&fresh), next);
    assert!(bench.active(&old).await && bench.active(&fresh).await);
    bench.server.clock.advance(Duration::from_secs(299));
    assert!(bench.active(&old).await, "to the end of its life");
    assert!(published(&bench.server).await.contains(&kid(&old)));
    bench.server.clock.advance(HOUR + Duration::from_secs(61));
    bench.server.service.roll_keys().await.expect("rolled");
    assert!(!published(&bench.server).await.contains(&kid(&old)), "removed");
    assert!(bench.server.log().is_empty(), "nothing was revoked");
}

/// Verifiers that read the keys seldom know the next signer before anybody has to take the first one back.
#[tokio::test]
async fn the_key_that_signs_after_a_revocation_was_published_before_it() {
    let bench = Bench::new().await;
    let mut admin = bench.server.admin();
    for emergency in 0..3 {
        let before = published(&bench.server).await;
        assert_eq!(before.len(), 2, "the signer and the reserve, from the first start on");
        let token = bench.token().await;
        let stolen = pb::RevokeKeyRequest { kid: kid(&token), reason: 0 };
        admin.revoke_key(bearer(stolen, &token)).await.expect("revoked");
        let fresh = kid(&bench.token().await);
        assert_ne!(fresh, kid(&token));
        assert!(before.contains(&fresh), "emergency {emergency}: {before:?} lacks {fresh}");
    }
    // The reserve may be the one that was stolen.
    let token = bench.token().await;
    let reserve = |keys: Vec<String>| keys.into_iter().find(|key| *key != kid(&token));
    let old = reserve(published(&bench.server).await).expect("a reserve");
    let stolen = pb::RevokeKeyRequest { kid: old.clone(), reason: 0 };
    admin.revoke_key(bearer(stolen, &token)).await.expect("revoked");
    assert_eq!(kid(&bench.token().await), kid(&token), "the signer goes on");
    let next = reserve(published(&bench.server).await).expect("another in its place");
    assert_ne!(next, old);
}

#[tokio::test]
async fn a_revoked_key_takes_its_tokens_with_it_at_once() {
    let bench = Bench::new().await;
    let app = bench.server.first_party("app").await;
    bench.server.add_user("ada").await;
    let session = bench.server.login(&app, "ada").await;
    let old = bench.token().await;
    assert!(bench.active(&old).await, "it is remembered as verified");
    let mut admin = bench.server.admin();
    let message = pb::RevokeKeyRequest { kid: kid(&old), reason: 0 };
    let answer = admin.revoke_key(bearer(message.clone(), &old)).await.expect("revoked");
    let event = answer.into_inner().revoked.expect("an event");
    assert_eq!(event.reason(), pb::RevocationReason::KeyCompromised);
    for token in [&old, &session.access_token] {
        let answer = bench.server.introspect(&bench.operator, token).await;
        assert_eq!(answer, pb::IntrospectResponse::default());
    }
    let status = admin.list_keys(bearer(pb::ListKeysRequest {}, &old)).await.expect_err("dead");
    assert_eq!(status.code(), Code::Unauthenticated);
    let log = bench.server.log();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].cause.reason, Reason::KeyCompromised);
    assert!(matches!(&log[0].target, Target::Key { id } if id.to_string() == kid(&old)));
    assert!(!published(&bench.server).await.contains(&kid(&old)));
    let fresh = bench.token().await;
    assert_ne!(kid(&fresh), kid(&old), "another key signs already");
    assert!(bench.active(&fresh).await);
    let again = admin.revoke_key(bearer(message, &fresh)).await.expect("idempotent").into_inner();
    assert_eq!((again.revoked, bench.server.log().len()), (None, 1));
    bench.server.refresh(&app, &session.refresh_token).await.expect("the session lives on");
    let unknown = pb::RevokeKeyRequest { kid: "unknown".to_owned(), reason: 0 };
    let status = admin.revoke_key(bearer(unknown, &fresh)).await.expect_err("unknown");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn keys_rotate_on_their_own_and_no_live_token_is_lost() {
    let bench = Bench::new().await;
    let mut signers = vec![kid(&bench.token().await)];
    // Two months, an hour at a time.
    for _ in 0..62 * 24 {
        let before = published(&bench.server).await;
        let token = bench.token().await;
        bench.server.clock.advance(Duration::from_secs(299));
        bench.server.service.roll_keys().await.expect("rolled");
        assert!(bench.active(&token).await);
        bench.server.clock.advance(HOUR - Duration::from_secs(299));
        bench.server.service.roll_keys().await.expect("rolled");
        let signer = kid(&bench.token().await);
        assert!(before.contains(&signer), "a key signs only after it was published");
        assert!(before.len() >= 2, "one is in reserve at any time");
        if signers.last() != Some(&signer) {
            assert!(!signers.contains(&signer), "a retired key never signs again");
            signers.push(signer);
        }
    }
    assert!((2..=4).contains(&signers.len()), "{} signers in 62 days", signers.len());
    assert!(published(&bench.server).await.len() <= 3, "old keys go");
    assert!(bench.server.log().is_empty());
}

#[tokio::test]
async fn the_published_keys_have_a_version_that_changes_with_them() {
    let bench = Bench::new().await;
    let path = "/.well-known/jwks.json";
    let etag = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("an ETag");
        line.to_owned()
    };
    let (status, head, _) = http_get(bench.server.public, path, "").await;
    let first = etag(&head);
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/jwk-set+json"), "{head}");
    // The exact spelling: names of versions have capitals, and the test lowers them.
    let raw = bench.server.service.keys().current().etag().to_owned();
    let known = format!("if-none-match: {raw}\r\n");
    let (status, head, body) = http_get(bench.server.public, path, &known).await;
    assert_eq!((status, etag(&head), body.as_str()), (304, first.clone(), ""));
    let rotate = bearer(pb::RotateKeyRequest {}, &bench.token().await);
    bench.server.admin().rotate_key(rotate).await.expect("rotated");
    let (status, head, _) = http_get(bench.server.public, path, &known).await;
    assert_eq!(status, 200, "it has changed");
    assert_ne!(etag(&head), first);
    for path in ["/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"] {
        let (status, _, body) = http_get(bench.server.public, path, "").await;
        let document: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status, 200);
        assert_eq!(document["issuer"], crate::harness::ISSUER);
        let keys = document["jwks_uri"].as_str().expect("a URL");
        assert_eq!(keys, format!("{}/.well-known/jwks.json", crate::harness::ISSUER));
    }
    let (status, _, _) = http_get(bench.server.public, "/metrics", "").await;
    assert_eq!(status, 404, "nothing else is public");
    let (status, _, metrics) = http_get(bench.server.ops, "/metrics", "").await;
    assert_eq!(status, 200, "it is the operators'");
    assert!(!metrics.contains("operator"), "and names no client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_that_are_made_and_rotated_at_once_are_answered_for_what_they_did() {
    let bench = Bench::new().await;
    let token = bench.token().await;
    let creating = {
        let (mut admin, token) = (bench.server.admin(), token.clone());
        tokio::spawn(async move {
            let mut made = BTreeSet::new();
            // A key that is announced is not made again: as many as this were rotated meanwhile.
            while made.len() < 20 {
                let create = bearer(pb::CreateKeyRequest::default(), &token);
                let key = admin.create_key(create).await.expect("announced").into_inner().key;
                let key = key.and_then(|key| key.public_key).expect("a key");
                assert_eq!(key.state(), pb::KeyState::Announced, "as it stood when it was made");
                made.insert(key.kid);
            }
            made
        })
    };
    let mut admin = bench.server.admin();
    // There is one in reserve after each rotation, so that nobody else makes the next.
    let mut announced = BTreeSet::new();
    while !creating.is_finished() {
        let keys = admin.list_keys(bearer(pb::ListKeysRequest {}, &token)).await.expect("a list");
        let keys = keys.into_inner().keys.into_iter().filter_map(|key| key.public_key);
        let reserve: Vec<_> = keys.filter(|k| k.state() == pb::KeyState::Announced).collect();
        assert_eq!(reserve.len(), 1, "{reserve:?}");
        announced.insert(reserve[0].kid.clone());
        let answer = admin.rotate_key(bearer(pb::RotateKeyRequest {}, &token)).await;
        let key = answer.expect("rotated").into_inner().key.and_then(|key| key.public_key);
        let key = key.expect("a key");
        assert_eq!((key.state(), &key.kid), (pb::KeyState::Active, &reserve[0].kid));
    }
    let made = creating.await.expect("every call is answered");
    let stored = bench.server.service.store().ring().await.expect("the ring").keys;
    let last = stored.into_iter().find(|key| key.state == KeyState::Announced);
    announced.insert(last.expect("a reserve").id.to_string());
    assert!(made.is_subset(&announced), "what was answered was announced");
}
