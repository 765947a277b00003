//! Who passes and who does not, and what the workload is told of those who do.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use crate::process::PATIENCE;
use crate::proxy::Kind;
use crate::raw::Ask;
use crate::rig::Rig;

#[tokio::test]
async fn envoy_lets_through_who_may_pass() {
    who_may_pass(Kind::Envoy).await;
}

#[tokio::test]
async fn nginx_lets_through_who_may_pass() {
    who_may_pass(Kind::Nginx).await;
}

async fn who_may_pass(kind: Kind) {
    let rig = Rig::start(kind).await;
    let tokens = rig.server.login(&[]).await;
    let good = &tokens.access_token;

    let (answer, seen) = rig.ask(&Ask::get("/orders/7?full=1").bearer(good)).await;
    let seen = seen.unwrap_or_else(|| panic!("{answer:?}\n{}", rig.sidecar.stderr()));
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/orders/7?full=1"));
    let subject: &str = &tokens.subject;
    assert_eq!(seen.header("x-avouch-subject"), [subject]);
    assert_eq!(seen.header("x-avouch-client-id"), ["login"]);
    assert_eq!(seen.header("x-avouch-scope"), ["orders:read orders:write"]);
    let session: &str = &tokens.session_id;
    assert_eq!(seen.header("x-avouch-session-id"), [session]);
    for name in ["x-avouch-token-id", "x-avouch-expires"] {
        assert_eq!(seen.header(name).len(), 1, "{name} in {seen:?}");
    }

    // Nobody, in the words of RFC 6750: a challenge that names no error.
    let (answer, _) = rig.ask(&Ask::get("/orders/7")).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer") && !challenge.contains("error="), "{challenge}");

    let forged = mutate_signature(good);
    let refresh = &tokens.refresh_token;
    for bad in ["x", "a.b.c", forged.as_str(), refresh.as_str()] {
        let (answer, _) = rig.ask(&Ask::get("/orders/7").bearer(bad)).await;
        assert_eq!(answer.status, 401, "{bad}: {answer:?}");
        // Envoy needs nobody for this: it has the public keys.
        assert!(kind == Kind::Nginx || answer.body.starts_with("Jwt"), "{bad}: {answer:?}");
    }
    let twice = Ask::get("/orders/7").bearer(good).bearer(good);
    let (answer, _) = rig.ask(&twice).await;
    assert!([400, 401].contains(&answer.status), "two of them: {answer:?}");

    // A token that is good, and not good enough.
    let narrow = rig.server.login(&["orders:write"]).await.access_token;
    let (answer, _) = rig.ask(&Ask::get("/orders/7").bearer(&narrow)).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains("error=\"insufficient_scope\""), "{challenge}");
    assert_eq!(rig.status(&Ask::get("/orders/7").method("POST").bearer(&narrow)).await, 200);

    // A path that is open to everybody, and one of which the rules say nothing.
    let (answer, seen) = rig.ask(&Ask::get("/public/hello")).await;
    assert!(seen.is_some(), "{answer:?}");
    assert_eq!(rig.status(&Ask::get("/elsewhere").bearer(good)).await, 403);
    assert_eq!(rig.status(&Ask::get("/elsewhere")).await / 100, 4);
}

/// The same token with another signature of the same form.
fn mutate_signature(token: &str) -> String {
    let (rest, signature) = token.rsplit_once('.').expect("a JWT");
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{rest}.{first}{}", &signature[1..])
}

#[tokio::test]
async fn envoy_takes_forged_identities_away() {
    forged_identities(&Rig::start(Kind::Envoy).await, Forged::Refused).await;
}

/// An Envoy that lets underscores pass, as it does unless it is told otherwise.
#[tokio::test]
async fn an_envoy_that_takes_underscores_takes_forged_identities_away_too() {
    let change = [("_underscores_action: REJECT_REQUEST", "_underscores_action: ALLOW")];
    let rig = Rig::start_with(Kind::Envoy, &[], &change).await;
    forged_identities(&rig, Forged::Removed).await;
}

#[tokio::test]
async fn nginx_takes_forged_identities_away() {
    // It can remove what it knows by name alone, so the sidecar refuses the rest.
    forged_identities(&Rig::start(Kind::Nginx).await, Forged::Removed).await;
}

/// What becomes of a forged identity whose name has an underscore.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Forged {
    Refused,
    Removed,
}

async fn forged_identities(rig: &Rig, with_underscore: Forged) {
    const FORGED: &str = "usr_forged";
    let kind = rig.kind;
    let tokens = rig.server.login(&[]).await;
    let names = [
        "x-avouch-subject",
        "X-Avouch-Subject",
        "X-AVOUCH-SUBJECT",
        "x_avouch_subject",
        "X_Avouch-Subject",
        "x-avouch_subject",
        "x-avouch-client-id",
        "x-avouch-client_id",
        "x-avouch-scope",
        "x-avouch-session-id",
        "x-avouch-token-id",
        "x-avouch-expires",
        "X-Avouch-Expires",
    ];
    let (mut passed, mut refused) = (0, 0);
    for name in names {
        for target in ["/orders/7", "/public/hello"] {
            for times in [1, 2] {
                let mut ask = Ask::get(target);
                if target == "/orders/7" {
                    ask = ask.bearer(&tokens.access_token);
                }
                for _ in 0..times {
                    ask = ask.header(name, FORGED);
                }
                let (answer, seen) = rig.ask(&ask).await;
                let Some(seen) = seen else {
                    let status = if kind == Kind::Envoy { 400 } else { 403 };
                    assert_eq!(answer.status, status, "{ask:?}: {answer:?}");
                    refused += 1;
                    continue;
                };
                passed += 1;
                let forged = seen.headers.iter().any(|(_, value)| value.contains(FORGED));
                assert!(!forged, "{ask:?}: {seen:?}");
                let subject: Vec<&str> = match target {
                    "/orders/7" => vec![&tokens.subject],
                    _ => vec![],
                };
                assert_eq!(seen.header("x-avouch-subject"), subject, "{ask:?}: {seen:?}");
            }
        }
    }
    let underscored = names.iter().filter(|name| name.contains('_')).count() * 4;
    let others = names.len() * 4 - underscored;
    let expected = match (kind, with_underscore) {
        (Kind::Envoy, Forged::Refused) => (others, underscored),
        (Kind::Envoy, Forged::Removed) => (others + underscored, 0),
        (Kind::Nginx, _) => (underscored, others),
    };
    assert_eq!((passed, refused), expected);
    // Nor is a name an identity that avouch has not taken yet.
    let later = Ask::get("/public/hello").header("x-avouch-roles", FORGED);
    let (answer, seen) = rig.ask(&later).await;
    match seen {
        Some(seen) => assert_eq!(seen.header("x-avouch-roles"), Vec::<&str>::new()),
        None => assert_eq!((kind, answer.status), (Kind::Nginx, 403)),
    }
    // Where the sidecar looks for the request is not for a caller to say.
    let private = Ask::get("/orders/7")
        .header("x-original-uri", "/public/hello")
        .header("x-original-method", "GET")
        .header("x-forwarded-uri", "/public/hello")
        .header("x-forwarded-method", "GET")
        .header("x-envoy-original-path", "/public/hello");
    assert_eq!(rig.status(&private).await, 401);
    // Nor is the sidecar itself there to be asked.
    if kind == Kind::Nginx {
        let sidecar = Ask::get("/avouch-sidecar").bearer(&tokens.access_token);
        assert_eq!(rig.status(&sidecar).await, 404);
    }
}

#[tokio::test]
async fn envoy_refuses_what_is_revoked() {
    revoked(Kind::Envoy).await;
}

#[tokio::test]
async fn nginx_refuses_what_is_revoked() {
    revoked(Kind::Nginx).await;
}

async fn revoked(kind: Kind) {
    let rig = Rig::start(kind).await;
    let mut waits = Vec::new();
    for _ in 0..5 {
        let tokens = rig.server.login(&[]).await;
        let ask = Ask::get("/orders/7").bearer(&tokens.access_token);
        assert_eq!(rig.status(&ask).await, 200);
        rig.server.revoke(&tokens, None).await;
        let returned = Instant::now();
        rig.until(&ask, 401).await;
        waits.push(returned.elapsed());
    }
    waits.sort();
    println!("{kind:?}: from the return of Revoke to the first 401: {waits:?}");

    // Who waits for the watchers needs no patience after that.
    for _ in 0..5 {
        let tokens = rig.server.login(&[]).await;
        let ask = Ask::get("/orders/7").bearer(&tokens.access_token);
        assert_eq!(rig.status(&ask).await, 200);
        rig.server.revoke(&tokens, Some(PATIENCE.min(Duration::from_secs(30)))).await;
        let (answer, _) = rig.ask(&ask).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        let challenge = answer.header("www-authenticate").expect("a challenge");
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    }
}

/// Envoy reads the public keys every 300 s, and takes tokens by a key that is taken back until then. The
/// next one it has already, if that was announced before.
#[tokio::test]
async fn a_key_that_is_taken_back_is_worth_nothing_though_envoy_still_has_it() {
    let mut rig = Rig::start(Kind::Envoy).await;
    rig.server.avouch(&["key", "create"]).await;
    rig.start_proxy_again().await;
    let tokens = rig.server.login(&[]).await;
    let ask = Ask::get("/orders/7").bearer(&tokens.access_token);
    assert_eq!(rig.status(&ask).await, 200);
    rig.server.avouch(&["key", "revoke", &key_of(&tokens.access_token)]).await;
    rig.until(&ask, 401).await;
    let (answer, _) = rig.ask(&ask).await;
    assert!(!answer.body.starts_with("Jwt"), "Envoy does not have the key: {answer:?}");
    let next = rig.server.login(&[]).await;
    assert_ne!(key_of(&next.access_token), key_of(&tokens.access_token));
    let (answer, _) = rig.ask(&Ask::get("/orders/7").bearer(&next.access_token)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The `kid` of a token.
fn key_of(token: &str) -> String {
    let header = token.split('.').next().expect("a JWT");
    let header = URL_SAFE_NO_PAD.decode(header).expect("base64url");
    let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
    header["kid"].as_str().expect("a key").to_owned()
}
