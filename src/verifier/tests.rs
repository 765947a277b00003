use std::pin::Pin;
use std::task::Poll;

use super::*;
use crate::crypto::OsEntropy;
use crate::domain::claims::Claims;
use crate::domain::clock::ManualClock;
use crate::domain::ids::{Epochs, LogId, Revision, SessionId, TokenId};
use crate::domain::key::{Algorithm, PublicKey};
use crate::domain::scope::Names;
use crate::jwt::SigningKey;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const ISSUER: &str = "https://id.example";

/// A verifier that follows nothing: what happens is told to it.
fn verifier() -> Verifier {
    let settings = VerifierSettings::new(ISSUER, WatchSettings::new(Vec::new()));
    Verifier::start(settings, Arc::new(ManualClock::new(START)), Arc::new(OsEntropy), None)
}

fn fresh() -> Fresh {
    let mut log = [0; 16];
    OsEntropy.fill(&mut log);
    let through = Cursor { log_id: LogId::from_bytes(log), revision: Revision(1) };
    Fresh { through, as_of: START, sent: START, received: Instant::now() }
}

fn jwk(key: &SigningKey) -> v1::JsonWebKey {
    let PublicKey::P256 { x, y } = key.public().unwrap() else { panic!("not P-256") };
    v1::JsonWebKey {
        kid: key.id().to_string(),
        alg: "ES256".to_owned(),
        kty: "EC".to_owned(),
        crv: "P-256".to_owned(),
        x: x.into(),
        y: y.into(),
        state: v1::KeyState::Active.into(),
        ..Default::default()
    }
}

fn claims() -> Claims {
    Claims {
        issuer: ISSUER.into(),
        subject: "u1".parse().unwrap(),
        audience: Names::new(["orders"]).unwrap(),
        client: "web".parse().unwrap(),
        scope: Names::default(),
        token_id: TokenId::from_bytes([1; 16]),
        session: Some(SessionId::from_bytes([2; 16])),
        issued_at: START,
        not_before: START,
        expires_at: START.after(Duration::from_secs(300)),
        authenticated_at: None,
        methods: Names::default(),
        epochs: Epochs::default(),
    }
}

/// The set that takes the place of another may hold what no batch has told.
#[tokio::test]
async fn what_a_new_set_revokes_ends_what_waits() {
    let verifier = verifier();
    let (key, _) = SigningKey::generate(Algorithm::Es256).unwrap();
    let token = VerifiedToken::new(claims(), key.id().clone());
    let mut guard = verifier.guard(&token);
    let session = claims().session.unwrap();
    verifier.0.view.load().insert_session(START.as_secs() + 960, session.key64());
    let waits = std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut guard).poll(context)));
    assert!(waits.await.is_pending(), "nobody has looked yet");
    verifier.0.take(WatchEvent::Synced(fresh()), Some(fresh()));
    assert_eq!(guard.await, Ended::Revoked(RevokedBy::Session));
}

#[tokio::test]
async fn a_key_that_is_no_longer_published_takes_what_is_remembered_along() {
    let verifier = verifier();
    let (old, _) = SigningKey::generate(Algorithm::Es256).unwrap();
    let (new, _) = SigningKey::generate(Algorithm::Es256).unwrap();
    let token = old.encode(&claims()).unwrap().into_exposed();
    let keys = |keys: &[&SigningKey]| {
        WatchEvent::KeySet(v1::KeySet {
            keys: keys.iter().map(|key| jwk(key)).collect(),
            through: None,
        })
    };
    verifier.0.take(WatchEvent::Synced(fresh()), Some(fresh()));
    let unknown = Refusal::Invalid(TokenError::UnknownKey);
    assert!(matches!(verifier.check(&token), Verdict::Refused(refusal) if refusal == unknown));
    verifier.0.take(keys(&[&old]), None);
    assert!(matches!(verifier.check(&token), Verdict::Good(_)));
    verifier.0.take(keys(&[&old, &new]), None);
    assert!(matches!(verifier.check(&token), Verdict::Good(_)));
    verifier.0.take(keys(&[&new]), None);
    assert!(matches!(verifier.check(&token), Verdict::Refused(refusal) if refusal == unknown));
}

#[test]
fn keys_that_contradict_themselves_are_not_used() {
    let (key, _) = SigningKey::generate(Algorithm::Es256).unwrap();
    let good = jwk(&key);
    assert_eq!(read_keys(std::slice::from_ref(&good)).len(), 1);
    let bent: [fn(&mut v1::JsonWebKey); 7] = [
        |jwk| jwk.alg = "HS256".to_owned(),
        |jwk| jwk.alg = "EdDSA".to_owned(),
        |jwk| jwk.kty = "oct".to_owned(),
        |jwk| jwk.crv = "P-384".to_owned(),
        |jwk| jwk.x = jwk.y.clone() + "A",
        |jwk| jwk.kid = String::new(),
        |jwk| jwk.state = v1::KeyState::Revoked.into(),
    ];
    for (n, bend) in bent.into_iter().enumerate() {
        let mut jwk = good.clone();
        bend(&mut jwk);
        assert!(read_keys(&[jwk]).is_empty(), "bent {n}");
    }
}
