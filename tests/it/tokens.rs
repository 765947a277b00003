//! Access tokens that somebody made up, bent or found: none of them is worth anything.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::watch::WatchSettings;
use avouch::crypto::{OsEntropy, Sealer};
use avouch::domain::clock::{ManualClock, Timestamp};
use avouch::domain::key::KeyState;
use avouch::pb::v1 as pb;
use avouch::verifier::{Refusal, Verifier, VerifierSettings};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tonic::Code;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::harness::{
    ENCRYPTION_KEY, NOW, OWN_AUDIENCE, Server, bearer, connect, http_get, memory, options, reason,
};
use crate::sidecar::rig::{Said, Sidecar};

/// The key that a server signs with, in the hands of a test.
pub(crate) struct Forge {
    pair: EcdsaKeyPair,
    kid: String,
}

impl Forge {
    pub(crate) async fn of(server: &Server) -> Self {
        let keys = server.service.store().ring().await.expect("a ring").keys;
        let record = keys.into_iter().find(|key| key.state == KeyState::Active).expect("a signer");
        let sealer = Sealer::from_file_contents(ENCRYPTION_KEY.as_bytes()).expect("a key file");
        let purpose = format!("avouch signing key v1|{}|{}", record.algorithm, record.id);
        let pkcs8 = sealer.open(&record.sealed_private, purpose.as_bytes()).expect("it opens");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
            .expect("an ES256 key");
        Self { pair, kid: record.id.to_string() }
    }

    /// The header that the server writes.
    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.kid, "typ": "at+jwt" })
    }

    /// The header with one member set to something else, or taken away.
    fn header_with(&self, name: &str, value: Option<Value>) -> String {
        with(&self.header(), name, value).to_string()
    }

    fn sign(&self, header: &str, payload: &str) -> String {
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn sign_claims(&self, payload: &Value) -> String {
        self.sign(&self.header().to_string(), &payload.to_string())
    }
}

fn with(object: &Value, name: &str, value: Option<Value>) -> Value {
    let mut object = object.clone();
    let members = object.as_object_mut().expect("an object");
    match value {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
    object
}

/// What a token asserts.
pub(crate) fn payload(token: &str) -> Value {
    let segment = token.split('.').nth(1).expect("three segments");
    let bytes = URL_SAFE_NO_PAD.decode(segment).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The clock of the server stands still in these tests, and so does its word.
const ANY_GOOD_TOKEN: &str = "[[rule]]\nprefix = \"/\"\nmax_staleness = \"1h\"\n";

/// A server, who may ask it anything, its signing key, and a good token to start from.
struct Bench {
    server: Server,
    operator: pb::ClientAuthentication,
    /// Good for everything, to ask on one connection without a secret each time.
    credential: String,
    forge: Forge,
    token: String,
    claims: Value,
    /// Checks tokens where they are used.
    verifier: Verifier,
    /// Does so for a proxy.
    sidecar: Sidecar,
}

impl Bench {
    async fn new() -> Self {
        let server = Server::start().await;
        let operator = server.powerful("operator").await;
        let app = server.first_party("app").await;
        server.add_user("ada").await;
        let token = server.login(&app, "ada").await.access_token;
        let claims = payload(&token);
        let credential = server.own_token(&operator).await;
        let forge = Forge::of(&server).await;
        let verifier = verifier(&server, &credential).await;
        let sidecar = Sidecar::beside(&server, ANY_GOOD_TOKEN, &[("sidecar.leeway", "0s")]).await;
        let bench = Self { server, operator, credential, forge, token, claims, verifier, sidecar };
        // The control: what the tests below bend is good unbent, or they would prove nothing.
        let good = bench.forge.sign_claims(&bench.claims);
        assert!(bench.active(&good).await);
        bench.verifier.verify(&good).await.expect("the verifier says so too");
        assert!(bench.sidecar.check_token("GET", "/", &good).await.passes(), "and the sidecar");
        bench
    }

    async fn active(&self, token: &str) -> bool {
        self.server.introspect(&self.operator, token).await.active
    }

    /// Introspect says no and nothing else; as a credential it is nobody's; and whoever verifies it
    /// without asking refuses it too, for itself or for a proxy.
    async fn worthless(&self, token: &str, what: &str) {
        let refused = self.verifier.verify(token).await.map(drop);
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "verifying {what}: {refused:?}");
        let said = self.sidecar.check_token("GET", "/", token).await;
        assert_eq!(said, Said::invalid_token(), "the sidecar on {what}");
        self.worthless_now(token, what).await;
    }

    /// As `worthless`, for what a second of the test turns good: a verifier's time goes on.
    async fn worthless_now(&self, token: &str, what: &str) {
        if !token.is_empty() {
            let answer = self.server.introspect(&self.operator, token).await;
            assert_eq!(answer, pb::IntrospectResponse::default(), "introspecting {what}");
        }
        let Ok(value) = MetadataValue::try_from(format!("Bearer {token}")) else { return };
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value);
        let status = self.call(metadata).await.expect_err(what);
        assert_eq!(status.code(), Code::Unauthenticated, "calling with {what}: {status:?}");
        assert_eq!(reason(&status), "CALLER_NOT_AUTHENTICATED", "{what}");
    }

    async fn call(&self, metadata: MetadataMap) -> Result<(), tonic::Status> {
        let mut request = tonic::Request::new(pb::ListKeysRequest {});
        *request.metadata_mut() = metadata;
        self.server.admin().list_keys(request).await.map(drop)
    }
}

/// A verifier as strict about time as the server is.
async fn verifier(server: &Server, credential: &str) -> Verifier {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.grpc));
    let bearer = format!("Bearer {credential}");
    let watch = WatchSettings {
        authorization: Some(Arc::new(move || bearer.parse().ok())),
        ..WatchSettings::new(vec![endpoint.expect("a URL")])
    };
    let settings = VerifierSettings {
        leeway: Duration::ZERO,
        // The server's clock stands still in these tests, and so does its word.
        max_staleness: Duration::from_secs(3600),
        ..VerifierSettings::new(crate::harness::ISSUER, watch)
    };
    let verifier =
        Verifier::start(settings, Arc::clone(&server.clock) as _, Arc::new(OsEntropy), None);
    tokio::time::timeout(Duration::from_secs(30), verifier.synced()).await.expect("in time");
    verifier
}

#[tokio::test]
async fn a_public_key_is_no_secret_in_any_spelling() {
    let bench = Bench::new().await;
    let (status, _, body) = http_get(bench.server.public, "/.well-known/jwks.json", "").await;
    assert_eq!(status, 200);
    let jwks: Value = serde_json::from_str(&body).expect("JSON");
    let jwk = jwks["keys"].as_array().expect("keys").iter().find(|k| k["kid"] == bench.forge.kid);
    let jwk = jwk.expect("the signer is published");
    let point = bench.forge.pair.public_key().as_ref().to_vec();
    let mut spki = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00".to_vec();
    spki.extend_from_slice(&point);
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&spki)
    );
    let x = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().expect("x")).expect("base64url");
    let secrets: [(&str, Vec<u8>); 7] = [
        ("PEM", pem.clone().into_bytes()),
        ("PEM without the last line break", pem.trim_end().as_bytes().to_vec()),
        ("DER", spki),
        ("the point", point),
        ("x alone", x),
        ("the JWK", jwk.to_string().into_bytes()),
        ("the JWK Set", body.into_bytes()),
    ];
    for (what, secret) in secrets {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let header = bench.forge.header_with("alg", Some(json!("HS256")));
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(&header),
            URL_SAFE_NO_PAD.encode(bench.claims.to_string())
        );
        let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
        bench.worthless(&format!("{message}.{tag}"), &format!("HS256 under {what}")).await;
    }
}

#[tokio::test]
async fn no_algorithm_and_any_other_algorithm_are_refused() {
    let bench = Bench::new().await;
    let payload = URL_SAFE_NO_PAD.encode(bench.claims.to_string());
    let none = ["none", "None", "NONE", "nOnE", "", " none", "null"].map(|alg| Some(json!(alg)));
    let others = ["ES384", "ES512", "RS256", "PS256", "EdDSA", "HS256", "es256", "ES256 "]
        .map(|alg| Some(json!(alg)));
    let odd = [None, Some(Value::Null), Some(json!(1)), Some(json!(["ES256"])), Some(json!({}))];
    for alg in none.into_iter().chain(others).chain(odd) {
        let header = bench.forge.header_with("alg", alg.clone());
        bench.worthless(&bench.forge.sign(&header, &bench.claims.to_string()), &header).await;
        let header_segment = URL_SAFE_NO_PAD.encode(&header);
        bench
            .worthless(&format!("{header_segment}.{payload}."), &format!("unsigned {header}"))
            .await;
        bench.worthless(&format!("{header_segment}.{payload}"), &format!("cut {header}")).await;
    }
    let (message, signature) = bench.token.rsplit_once('.').expect("segments");
    for token in [
        message.to_owned(),
        format!("{message}."),
        format!("{}.{signature}", message.split_once('.').expect("a header").0),
        format!("{}..", message.split_once('.').expect("a header").0),
        "..".to_owned(),
        ".".to_owned(),
        format!("{}.a", bench.token),
        format!("{}.a.b", bench.token),
        format!(".{}", bench.token),
        // DER instead of the fixed form, zeros, the other half's length.
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 64])),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0; 32])),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode([0xff; 96])),
    ] {
        bench.worthless(&token, &token).await;
    }
}

#[tokio::test]
async fn a_key_id_is_only_ever_a_name_in_the_ring() {
    let bench = Bench::new().await;
    let other = Server::start().await;
    let kid = &bench.forge.kid;
    let kids = [
        None,
        Some(json!("")),
        Some(json!("unknown")),
        Some(json!("../../../../etc/passwd")),
        Some(json!("' OR 1=1 --")),
        Some(json!(format!("{kid}\u{0}"))),
        Some(json!(format!(" {kid}"))),
        Some(json!(kid.to_lowercase() + "x")),
        Some(json!("k".repeat(5000))),
        Some(json!(Forge::of(&other).await.kid)),
        Some(json!(0)),
        Some(json!([kid])),
        Some(json!({ "kid": kid })),
        Some(Value::Null),
    ];
    for value in kids {
        let header = bench.forge.header_with("kid", value);
        bench.worthless(&bench.forge.sign(&header, &bench.claims.to_string()), &header).await;
    }
}

#[tokio::test]
async fn keys_in_the_header_are_ignored_and_nothing_is_fetched() {
    let bench = Bench::new().await;
    let canary = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/jwks.json", canary.local_addr().expect("an address"));
    let other = Server::start().await;
    let attacker = Forge::of(&other).await;
    let point = attacker.pair.public_key().as_ref();
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "kid": attacker.kid,
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
    });
    for (name, value) in [
        ("jwk", jwk),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!([STANDARD.encode(point)])),
        ("x5t", json!("AAAA")),
    ] {
        for (kid, signer) in [
            (&bench.forge.kid, &attacker),
            (&attacker.kid, &attacker),
            (&bench.forge.kid, &bench.forge),
        ] {
            let header = json!({ "alg": "ES256", "kid": kid, "typ": "at+jwt", name: value });
            let token = signer.sign(&header.to_string(), &bench.claims.to_string());
            bench.worthless(&token, &header.to_string()).await;
        }
    }
    let visit = tokio::time::timeout(Duration::from_millis(200), canary.accept()).await;
    assert!(visit.is_err(), "somebody fetched {url}");
}

#[tokio::test]
async fn critical_extensions_other_types_and_encryption_are_refused() {
    let bench = Bench::new().await;
    let crit =
        [json!(["b64"]), json!(["exp"]), json!([]), json!(["unknown"]), json!("exp"), Value::Null];
    for value in crit {
        let header = bench.forge.header_with("crit", Some(value));
        bench.worthless(&bench.forge.sign(&header, &bench.claims.to_string()), &header).await;
    }
    let both = with(&bench.forge.header(), "crit", Some(json!(["b64"])));
    let both = with(&both, "b64", Some(json!(false))).to_string();
    bench.worthless(&bench.forge.sign(&both, &bench.claims.to_string()), &both).await;
    let types = [
        "JWT",
        "jwt",
        "refresh+jwt",
        "logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "",
        "at+jwt ",
        "text/at+jwt",
        "application/jwt",
        "application/application/at+jwt",
    ];
    let types = types.map(|typ| Some(json!(typ)));
    for typ in types.into_iter().chain([None, Some(Value::Null), Some(json!(["at+jwt"]))]) {
        let header = bench.forge.header_with("typ", typ);
        bench.worthless(&bench.forge.sign(&header, &bench.claims.to_string()), &header).await;
    }
    for typ in ["AT+JWT", "application/at+jwt", "Application/At+Jwt"] {
        let header = bench.forge.header_with("typ", Some(json!(typ)));
        let token = bench.forge.sign(&header, &bench.claims.to_string());
        assert!(bench.active(&token).await, "{typ} is the same media type");
    }
    for (name, value) in [("zip", json!("DEF")), ("enc", json!("A128GCM")), ("cty", json!("JWT"))] {
        let header = bench.forge.header_with(name, Some(value));
        bench.worthless(&bench.forge.sign(&header, &bench.claims.to_string()), &header).await;
    }
    bench.worthless("a.b.c.d.e", "five segments").await;
}

#[tokio::test]
async fn each_claim_must_be_there_and_of_its_type() {
    let bench = Bench::new().await;
    let strange = [
        None,
        Some(json!(7)),
        Some(json!([])),
        Some(json!([1])),
        Some(json!({})),
        Some(Value::Null),
        Some(json!("")),
        Some(json!(true)),
        Some(json!(1.5)),
        Some(json!(-1)),
    ];
    for claim in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti", "nbf", "epo", "sid"] {
        for value in &strange {
            // Numbers are right for some, a client's own token has no session, and RFC 9068 leaves
            // nbf out.
            let number = value.as_ref().is_some_and(|value| value.as_u64().is_some());
            let right = (matches!(claim, "sid" | "nbf") && value.is_none())
                || (number && matches!(claim, "iat" | "nbf"));
            if right {
                continue;
            }
            let claims = with(&bench.claims, claim, value.clone());
            let token = bench.forge.sign_claims(&claims);
            bench.worthless(&token, &format!("{claim} = {value:?}")).await;
        }
    }
    let iss = bench.claims["iss"].as_str().expect("text").to_owned();
    let issuers = [
        format!("{iss}/"),
        iss.to_uppercase(),
        iss.replace("id", "\u{456}d"),
        iss.replace("https", "http"),
        format!(" {iss}"),
    ];
    for other in issuers {
        bench
            .worthless(
                &bench.forge.sign_claims(&with(&bench.claims, "iss", Some(json!(other)))),
                &other,
            )
            .await;
    }
    let list = with(&bench.claims, "iss", Some(json!([iss])));
    bench.worthless(&bench.forge.sign_claims(&list), "an issuer in an array").await;
    for payload in ["[]", "{}", "null", "\"text\"", "", "{", "not json", "\u{feff}{}"] {
        let token = bench.forge.sign(&bench.forge.header().to_string(), payload);
        bench.worthless(&token, payload).await;
    }
    for (name, header) in
        [("an array", "[]"), ("nothing", ""), ("null", "null"), ("deep", &"[".repeat(3000))]
    {
        bench.worthless(&bench.forge.sign(header, &bench.claims.to_string()), name).await;
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
    bench.worthless(&bench.forge.sign(&bench.forge.header().to_string(), &deep), "deep JSON").await;
}

#[tokio::test]
async fn members_that_stand_twice_are_refused_through_escapes_too() {
    let bench = Bench::new().await;
    let header = bench.forge.header().to_string();
    let claims = bench.claims.to_string();
    for name in ["alg", "kid", "typ", "al\\u0067"] {
        let plain = name.replace("\\u0067", "g");
        let value = &bench.forge.header()[&plain];
        let twice = format!("{},\"{name}\":{value}}}", header.trim_end_matches('}'));
        bench.worthless(&bench.forge.sign(&twice, &claims), &twice).await;
    }
    for name in ["exp", "scope", "client_id", "jti", "sub", "iss", "aud", "epo", "s\\u0075b"] {
        let value = &bench.claims[name.replace("\\u0075", "u")];
        let twice =
            format!("{},\"{name}\":{value}}}", claims.strip_suffix('}').expect("an object"));
        bench.worthless(&bench.forge.sign(&header, &twice), &twice).await;
    }
    for name in ["cnf", "act", "may_act", "unknown"] {
        let claims = with(&bench.claims, name, Some(json!({ "jkt": "x" })));
        bench.worthless(&bench.forge.sign_claims(&claims), name).await;
    }
}

#[tokio::test]
async fn one_changed_character_anywhere_makes_a_token_worthless() {
    let bench = Bench::new().await;
    let mut asked = bench.server.identity();
    for at in 0..bench.token.len() {
        let known = bench.token.as_bytes()[at];
        for other in [if known == b'A' { b'B' } else { b'A' }, b'=', b'+', b' '] {
            let mut bytes = bench.token.clone().into_bytes();
            bytes[at] = other;
            let token = String::from_utf8(bytes).expect("ASCII");
            let request =
                bearer(pb::IntrospectRequest { token, ..Default::default() }, &bench.credential);
            let answer = asked.introspect(request).await.expect("an answer").into_inner();
            assert_eq!(answer, pb::IntrospectResponse::default(), "position {at}");
        }
    }
    for suffix in ["=", "==", " ", "\n", "\r\n", "\0", "A"] {
        bench.worthless(&format!("{}{suffix}", bench.token), suffix).await;
        bench.worthless(&format!("{suffix}{}", bench.token), suffix).await;
        bench.worthless(&bench.token.replacen('.', &format!("{suffix}."), 1), suffix).await;
    }
    assert!(bench.active(&bench.token).await);
}

#[tokio::test]
async fn times_are_exact_and_sane() {
    let bench = Bench::new().await;
    let iat = bench.claims["iat"].as_u64().expect("a number");
    let exp = bench.claims["exp"].as_u64().expect("a number");
    assert_eq!((iat, exp), (NOW.as_secs(), NOW.as_secs() + 300));
    // The clock of another replica may be so far ahead; who has a store alone has the only clock.
    let early = match bench.server.service.store().board() {
        Some(_) => 10,
        None => 0,
    };
    let too_soon = NOW.as_secs() + early + 1;
    for (name, value) in [
        ("exp", json!(NOW.as_secs())),
        ("exp", json!(NOW.as_secs() - 1)),
        ("exp", json!(0)),
        ("exp", json!(NOW.as_secs() + 3601)),
        ("exp", json!(1_000_000_000_000_000_000_u64)),
        ("exp", json!(u64::MAX)),
        ("exp", json!(253_402_300_800_u64)),
        ("exp", json!("123")),
        ("exp", json!(NOW.as_secs() as f64 + 10.5)),
        ("nbf", json!(too_soon)),
        ("nbf", json!(u64::MAX)),
        ("iat", json!(too_soon)),
        ("iat", json!(NOW.as_secs() - 3600)),
        ("iat", json!(0)),
    ] {
        let soon = value == json!(too_soon);
        let claims = with(&bench.claims, name, Some(value));
        let token = bench.forge.sign_claims(&claims);
        if soon {
            bench.worthless_now(&token, &claims.to_string()).await;
        } else {
            bench.worthless(&token, &claims.to_string()).await;
        }
    }
    for name in ["nbf", "iat"] {
        let claims = with(&bench.claims, name, Some(json!(NOW.as_secs() + early)));
        let token = bench.forge.sign_claims(&claims);
        assert!(bench.active(&token).await, "{name} {early} s ahead");
    }
    for raw in ["1e400", "0x10", "1e18", "+5", "1795219500.0", "99999999999999999999"] {
        let claims =
            bench.claims.to_string().replace(&format!("\"exp\":{exp}"), &format!("\"exp\":{raw}"));
        assert!(claims.contains(raw));
        bench.worthless(&bench.forge.sign(&bench.forge.header().to_string(), &claims), raw).await;
    }
    bench.server.clock.set(Timestamp::from_millis(exp * 1000 - 1));
    assert!(bench.active(&bench.token).await, "it lives to its last millisecond");
    bench.server.clock.set(Timestamp::from_millis(exp * 1000));
    bench.worthless_now(&bench.token, "a token at its expiry").await;
    let expires = async {
        while bench.verifier.verify(&bench.token).await.is_ok()
            || bench.sidecar.verifier.verify(&bench.token).await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let heartbeats = Duration::from_secs(30);
    tokio::time::timeout(heartbeats, expires).await.expect("the verifier learns of the time");
    bench.worthless(&bench.token, "a token at its expiry").await;
}

#[tokio::test]
async fn long_tokens_are_bad_tokens_until_the_message_is_too_long() {
    let bench = Bench::new().await;
    for length in [8 * 1024 + 1, 10_000, 16_000] {
        let token = format!("{}{}", bench.token, "A".repeat(length - bench.token.len()));
        let answer = bench.server.introspect(&bench.operator, &token).await;
        assert_eq!(answer, pb::IntrospectResponse::default(), "{length}");
    }
    for length in [16 * 1024, 64 * 1024, 1024 * 1024] {
        let request = pb::IntrospectRequest {
            client: Some(bench.operator.clone()),
            token: "A".repeat(length),
            ..Default::default()
        };
        let status = bench.server.identity().introspect(request).await.expect_err("too long");
        assert_eq!(status.code(), Code::OutOfRange, "{length}: {status:?}");
    }
    assert!(bench.active(&bench.token).await);
}

#[tokio::test]
async fn a_token_of_another_issuer_with_the_same_key_is_worthless() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with(options(crate::harness::sled(&path)), Arc::clone(&clock)).await;
    let operator = server.powerful("operator").await;
    let token = server.own_token(&operator).await;
    assert!(server.introspect(&operator, &token).await.active);
    // The same ring and the same clients under another name.
    let mut other = options(crate::harness::sled(&path));
    other.service.issuer = "https://other.test".into();
    let server = server.restart(other).await;
    assert_eq!(server.introspect(&operator, &token).await, pb::IntrospectResponse::default());
    let own = server.own_token(&operator).await;
    assert!(server.introspect(&operator, &own).await.active);

    let mut elsewhere = options(memory());
    elsewhere.service.issuer = "https://third.test".into();
    let elsewhere = Server::with(elsewhere, clock).await;
    let stranger = elsewhere.powerful("operator").await;
    assert_eq!(elsewhere.introspect(&stranger, &own).await, pb::IntrospectResponse::default());
}

#[tokio::test]
async fn exactly_one_well_formed_authorization_is_accepted() {
    let bench = Bench::new().await;
    let token = &bench.credential;
    let one = |text: String| {
        let mut metadata = MetadataMap::new();
        let value = MetadataValue::try_from(text.into_bytes()).expect("metadata");
        metadata.insert("authorization", value);
        metadata
    };
    for good in [format!("Bearer {token}"), format!("bearer {token}"), format!("BEARER {token}")] {
        bench.call(one(good)).await.expect("it is good");
    }
    let mut twice = one(format!("Bearer {token}"));
    twice.append("authorization", format!("Bearer {token}").parse().expect("metadata"));
    let mut binary = one(format!("Bearer {token}"));
    binary.insert_bin("authorization-bin", MetadataValue::from_bytes(token.as_bytes()));
    let mut only_binary = MetadataMap::new();
    only_binary.insert_bin("authorization-bin", MetadataValue::from_bytes(token.as_bytes()));
    let bad = [
        one(format!("Bearer {token},Bearer {token}")),
        one(format!("Bearer,Bearer {token}")),
        one(format!("Bearer  {token}")),
        one(format!("Bearer\t{token}")),
        one(format!("Bearer {token},")),
        one(format!("Bearer {token} x")),
        one(format!("Basic {token}")),
        one(token.clone()),
        one("Bearer".to_owned()),
        one("Bearer .".to_owned()),
        one(format!("Bearer \"{token}\"")),
        twice,
        binary,
        only_binary,
    ];
    for metadata in bad {
        let what = format!("{:?}", metadata.get("authorization").map(|v| v.len()));
        let status = bench.call(metadata).await.expect_err(&what);
        assert_eq!(status.code(), Code::Unauthenticated, "{what}");
    }
    let status = bench.call(MetadataMap::new()).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_good_token_for_another_audience_calls_nothing_here() {
    let bench = Bench::new().await;
    let request = pb::AuthenticateRequest {
        client: Some(bench.operator.clone()),
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        audiences: vec!["orders".to_owned()],
        ..Default::default()
    };
    let tokens = bench.server.identity().authenticate(request).await.expect("tokens").into_inner();
    let token = tokens.tokens.expect("tokens").access_token;
    assert!(bench.active(&token).await);
    let status = bench
        .server
        .admin()
        .list_keys(bearer(pb::ListKeysRequest {}, &token))
        .await
        .expect_err("not for avouch");
    assert_eq!(status.code(), Code::Unauthenticated);
    for audience in ["Avouch", "avouch/", "avouc", "avouch2"] {
        let claims = payload(&bench.credential);
        assert!(claims["aud"] == OWN_AUDIENCE);
        let token = bench.forge.sign_claims(&with(&claims, "aud", Some(json!(audience))));
        let status = bench
            .server
            .admin()
            .list_keys(bearer(pb::ListKeysRequest {}, &token))
            .await
            .expect_err(audience);
        assert_eq!(status.code(), Code::Unauthenticated, "{audience}");
    }
}

#[tokio::test]
async fn tokens_of_every_connection_are_judged_alike() {
    let bench = Bench::new().await;
    let channel = connect(bench.server.grpc).await;
    let mut other = pb::identity_service_client::IdentityServiceClient::new(channel);
    let target = pb::revoke_request::Target::Token(bench.token.clone());
    bench.server.revoke(&bench.operator, target).await.expect("revoked");
    for _ in 0..20 {
        let request = bearer(
            pb::IntrospectRequest { token: bench.token.clone(), ..Default::default() },
            &bench.credential,
        );
        let answer = other.introspect(request).await.expect("an answer").into_inner();
        assert_eq!(answer, pb::IntrospectResponse::default());
    }
}
