use std::collections::HashMap;
use std::sync::LazyLock;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::signing::Pair;
use super::*;
use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Epoch, Epochs, SessionId, TokenId};
use crate::domain::key::{Algorithm, PublicKey};
use crate::domain::scope::Names;

const NOW_SECS: u64 = 1_800_000_000;
const NOW: Timestamp = Timestamp::from_secs(NOW_SECS);
const ISSUER: &str = "https://id.example";

struct Keys {
    ec: SigningKey,
    ed: SigningKey,
    rsa: SigningKey,
    known: HashMap<Box<str>, VerifyingKey>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let key = |algorithm| SigningKey::generate(algorithm).unwrap().0;
    let (ec, ed, rsa) = (key(Algorithm::Es256), key(Algorithm::EdDsa), key(Algorithm::Rs256));
    let known = [&ec, &ed, &rsa].map(|key| {
        let id = key.id().clone();
        (id.as_str().into(), VerifyingKey::new(id, &key.public().unwrap()).unwrap())
    });
    Keys { ec, ed, rsa, known: known.into() }
});

fn rules() -> Rules {
    Rules::new(ISSUER, Duration::from_secs(3_600))
}

fn check(token: &str) -> Result<Claims, TokenError> {
    verify(token, &KEYS.known, &rules(), NOW)
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of these very bytes, signed for real.
fn signed_by(key: &SigningKey, header: &str, payload: &str) -> String {
    let message = format!("{}.{}", b64(header), b64(payload));
    let signature = key.sign(message.as_bytes()).unwrap();
    format!("{message}.{}", b64(signature))
}

fn header() -> Value {
    json!({ "alg": "ES256", "kid": KEYS.ec.id().as_str(), "typ": "at+jwt" })
}

fn payload() -> Value {
    json!({
        "iss": ISSUER, "sub": "alice", "aud": "api", "client_id": "web",
        "exp": NOW_SECS + 300, "iat": NOW_SECS, "nbf": NOW_SECS,
        "jti": "AQEBAQEBAQEBAQEBAQEBAQ", "sid": "AgICAgICAgICAgICAgICAg",
        "scope": "read write", "auth_time": NOW_SECS, "amr": ["pwd"], "epo": [1, 2, 3],
    })
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    object[name] = value;
    object
}

fn without(mut object: Value, name: &str) -> Value {
    object.as_object_mut().unwrap().remove(name);
    object
}

fn check_header(header: &Value) -> Result<Claims, TokenError> {
    check(&signed_by(&KEYS.ec, &header.to_string(), &payload().to_string()))
}

fn check_payload(payload: &Value) -> Result<Claims, TokenError> {
    check_raw_payload(&payload.to_string())
}

fn check_raw_payload(payload: &str) -> Result<Claims, TokenError> {
    check(&signed_by(&KEYS.ec, &header().to_string(), payload))
}

fn claims() -> Claims {
    Claims {
        issuer: ISSUER.into(),
        subject: "alice".parse().unwrap(),
        audience: "api".parse().unwrap(),
        client: "web".parse().unwrap(),
        scope: "read write".parse().unwrap(),
        token_id: TokenId::from_bytes([1; 16]),
        session: Some(SessionId::from_bytes([2; 16])),
        issued_at: NOW,
        not_before: NOW,
        expires_at: NOW.after(Duration::from_secs(300)),
        authenticated_at: Some(NOW),
        methods: "pwd".parse().unwrap(),
        epochs: Epochs { global: Epoch(1), client: Epoch(2), subject: Epoch(3) },
    }
}

#[test]
fn every_algorithm_signs_what_it_verifies() {
    for key in [&KEYS.ec, &KEYS.ed, &KEYS.rsa] {
        let token = key.encode(&claims()).unwrap();
        assert_eq!(check(token.expose()), Ok(claims()), "{}", key.algorithm());
        assert_eq!(key.self_test(&key.public().unwrap()), Ok(()));
    }
}

#[test]
fn claims_on_the_wire() {
    let token = KEYS.ec.encode(&claims()).unwrap();
    let parts: Vec<&str> = token.expose().split('.').collect();
    let read = |part: &str| -> Value {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    assert_eq!((read(parts[0]), read(parts[1])), (header(), payload()));

    let mut own = claims();
    own.session = None;
    own.authenticated_at = None;
    own.scope = Names::default();
    own.methods = Names::default();
    own.audience = "a b".parse().unwrap();
    let token = KEYS.ec.encode(&own).unwrap();
    let wire = read(token.expose().split('.').nth(1).unwrap());
    assert_eq!(wire["aud"], json!(["a", "b"]));
    for absent in ["sid", "auth_time", "scope", "amr"] {
        assert!(wire.get(absent).is_none(), "{absent}");
    }
    assert_eq!(check(token.expose()), Ok(own));
}

#[test]
fn another_library_accepts_our_tokens() {
    for key in [&KEYS.ec, &KEYS.ed, &KEYS.rsa] {
        let (decoding, algorithm) = match key.public().unwrap() {
            PublicKey::Ed25519 { x } => (
                jsonwebtoken::DecodingKey::from_ed_components(&x).unwrap(),
                jsonwebtoken::Algorithm::EdDSA,
            ),
            PublicKey::P256 { x, y } => (
                jsonwebtoken::DecodingKey::from_ec_components(&x, &y).unwrap(),
                jsonwebtoken::Algorithm::ES256,
            ),
            PublicKey::Rsa { n, e } => (
                jsonwebtoken::DecodingKey::from_rsa_components(&n, &e).unwrap(),
                jsonwebtoken::Algorithm::RS256,
            ),
        };
        let mut validation = jsonwebtoken::Validation::new(algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&["api"]);
        let token = key.encode(&claims()).unwrap();
        let read = jsonwebtoken::decode::<Value>(token.expose(), &decoding, &validation).unwrap();
        assert_eq!(read.claims, payload());
        assert_eq!(read.header.typ.as_deref(), Some("at+jwt"));
        assert_eq!(read.header.kid.as_deref(), Some(key.id().as_str()));
    }
}

#[test]
fn row_1_a_public_key_is_no_hmac_secret() {
    let PublicKey::P256 { x, y } = KEYS.ec.public().unwrap() else { panic!("not P-256") };
    let raw = [URL_SAFE_NO_PAD.decode(&*x).unwrap(), URL_SAFE_NO_PAD.decode(&*y).unwrap()].concat();
    let Pair::Ec(pair) = &KEYS.ec.pair else { panic!("not P-256") };
    let spki = pair.public_key().as_der().unwrap().as_ref().to_vec();
    let body = base64::engine::general_purpose::STANDARD.encode(&spki);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y }).to_string();
    let secrets =
        [pem.into_bytes(), spki, raw[..32].to_vec(), [vec![4], raw].concat(), jwk.into_bytes()];
    for secret in secrets {
        for alg in ["HS256", "ES256"] {
            let header = with(header(), "alg", json!(alg)).to_string();
            let message = format!("{}.{}", b64(header), b64(payload().to_string()));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let token = format!("{message}.{}", b64(hmac::sign(&key, message.as_bytes())));
            assert!(matches!(check(&token), Err(TokenError::Algorithm | TokenError::Signature)));
        }
    }
}

#[test]
fn row_2_no_signature_is_never_enough() {
    let payload = b64(payload().to_string());
    for alg in ["none", "None", "NONE", "nOnE", "", "es256", " ES256", "ES256\0"] {
        let header = with(header(), "alg", json!(alg));
        assert_eq!(check_header(&header), Err(TokenError::Algorithm), "{alg}");
        assert!(check(&format!("{}.{payload}.", b64(header.to_string()))).is_err());
    }
    assert_eq!(check_header(&with(header(), "alg", Value::Null)), Err(TokenError::Header));
    assert_eq!(check_header(&without(header(), "alg")), Err(TokenError::Header));
    let header = b64(header().to_string());
    assert_eq!(check(&format!("{header}.{payload}.")), Err(TokenError::Signature));
    assert_eq!(check(&format!("{header}.{payload}")), Err(TokenError::Segments));
    for zeros in [vec![0; 64], vec![0; 63], vec![0; 65], vec![0xff; 64]] {
        let token = format!("{header}.{payload}.{}", b64(zeros));
        assert_eq!(check(&token), Err(TokenError::Signature));
    }
}

#[test]
fn row_3_a_key_has_one_algorithm() {
    let all = ["ES256", "ES384", "ES512", "ES256K", "EdDSA", "RS256", "RS384", "PS256", "HS256"];
    for key in [&KEYS.ec, &KEYS.ed, &KEYS.rsa] {
        for alg in all.iter().filter(|alg| **alg != key.algorithm().as_str()) {
            let header = json!({ "alg": alg, "kid": key.id().as_str(), "typ": "at+jwt" });
            let token = signed_by(key, &header.to_string(), &payload().to_string());
            assert_eq!(check(&token), Err(TokenError::Algorithm), "{alg}");
        }
        // The right algorithm and another key's name.
        for other in [&KEYS.ec, &KEYS.ed, &KEYS.rsa] {
            let alg = other.algorithm().as_str();
            let header = json!({ "alg": alg, "kid": other.id().as_str(), "typ": "at+jwt" });
            let token = signed_by(key, &header.to_string(), &payload().to_string());
            assert_eq!(check(&token).is_ok(), key.id() == other.id());
        }
    }
}

#[test]
fn row_3_pss_is_not_pkcs1() {
    let Pair::Rsa(pair) = &KEYS.rsa.pair else { panic!("not RSA") };
    let header = json!({ "alg": "RS256", "kid": KEYS.rsa.id().as_str(), "typ": "at+jwt" });
    let message = format!("{}.{}", b64(header.to_string()), b64(payload().to_string()));
    let mut signature = vec![0; pair.public_modulus_len()];
    let pss = &aws_lc_rs::signature::RSA_PSS_SHA256;
    pair.sign(pss, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    assert_eq!(check(&format!("{message}.{}", b64(signature))), Err(TokenError::Signature));
}

#[test]
fn row_4_a_key_name_is_only_a_name() {
    let stranger = SigningKey::generate(Algorithm::Es256).unwrap().0;
    let long = "k".repeat(5_000);
    for kid in ["", "x", "../../etc/passwd", "' OR 1=1 --", "a\0b", "\u{2028}", &long] {
        assert_eq!(check_header(&with(header(), "kid", json!(kid))), Err(TokenError::UnknownKey));
    }
    let suffixed = format!("{}\0", KEYS.ec.id());
    assert_eq!(check_header(&with(header(), "kid", json!(suffixed))), Err(TokenError::UnknownKey));
    for kid in [json!(1), json!([KEYS.ec.id().as_str()]), json!({}), Value::Null, json!(true)] {
        assert_eq!(check_header(&with(header(), "kid", kid)), Err(TokenError::Header));
    }
    assert_eq!(check_header(&without(header(), "kid")), Err(TokenError::Header));
    let token = stranger.encode(&claims()).unwrap();
    assert_eq!(check(token.expose()), Err(TokenError::UnknownKey));
    let forged = signed_by(&stranger, &header().to_string(), &payload().to_string());
    assert_eq!(check(&forged), Err(TokenError::Signature));
}

#[test]
fn rows_5_6_17_headers_that_bring_or_change_anything_are_refused() {
    let evil = SigningKey::generate(Algorithm::Es256).unwrap().0;
    let PublicKey::P256 { x, y } = evil.public().unwrap() else { panic!("not P-256") };
    for (name, value) in [
        ("jwk", json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })),
        ("jku", json!("http://127.0.0.1:1/keys")),
        ("x5u", json!("http://127.0.0.1:1/cert")),
        ("x5c", json!(["MIIB"])),
        ("x5t", json!("AQ")),
        ("x5t#S256", json!("AQ")),
        ("crit", json!(["b64"])),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("crit", json!(["unknown"])),
        ("crit", Value::Null),
        ("crit", json!("b64")),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("cty", json!("JWT")),
        ("p2c", json!(1_000_000_000)),
        ("unknown", json!(1)),
    ] {
        let header = with(header(), name, value);
        assert_eq!(check_header(&header), Err(TokenError::Header), "{name}");
        let token = signed_by(&evil, &header.to_string(), &payload().to_string());
        assert_eq!(check(&token), Err(TokenError::Header), "{name}");
    }
    let crit = json!({ "crit": ["b64"], "b64": false });
    let mut both = header();
    both.as_object_mut().unwrap().append(&mut crit.as_object().unwrap().clone());
    assert_eq!(check_header(&both), Err(TokenError::Header));
    let token = KEYS.ec.encode(&claims()).unwrap();
    assert_eq!(check(&format!("{}.AA.AA", token.expose())), Err(TokenError::Segments));
    for text in ["", ".", "..", "...", "....", "a", "a.b", "a.b.c.d", "a.b.c.d.e"] {
        let error = check(text).unwrap_err();
        assert!(
            matches!(error, TokenError::Segments | TokenError::Header | TokenError::Encoding),
            "{text}"
        );
    }
}

#[test]
fn row_7_only_access_tokens() {
    for typ in ["at+jwt", "AT+JWT", "At+Jwt", "application/at+jwt", "Application/AT+JWT"] {
        assert!(check_header(&with(header(), "typ", json!(typ))).is_ok(), "{typ}");
    }
    for typ in [
        "JWT",
        "jwt",
        "",
        "refresh+jwt",
        "logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "at+jwt ",
        " at+jwt",
        "at+jwt;v=1",
        "application/application/at+jwt",
        "x/at+jwt",
        "at-jwt",
        "at+jw",
    ] {
        assert_eq!(
            check_header(&with(header(), "typ", json!(typ))),
            Err(TokenError::Type),
            "{typ}"
        );
    }
    for typ in [Value::Null, json!(1), json!(["at+jwt"])] {
        assert_eq!(check_header(&with(header(), "typ", typ)), Err(TokenError::Header));
    }
    assert_eq!(check_header(&without(header(), "typ")), Err(TokenError::Header));
}

#[test]
fn row_8_every_required_claim_is_there_and_well_formed() {
    assert_eq!(check_payload(&payload()), Ok(claims()));
    for name in ["iss", "exp", "aud", "sub", "client_id", "iat", "jti", "epo"] {
        let missing = check_payload(&without(payload(), name));
        assert_eq!(missing, Err(TokenError::Claims), "{name} missing");
        let number = matches!(name, "exp" | "iat");
        for value in [
            json!(7),
            json!(7.5),
            json!([]),
            json!(["x", 1]),
            json!({}),
            Value::Null,
            json!(""),
            json!(true),
            json!("1800000300"),
            json!([[]]),
            json!({ "a": "b" }),
        ] {
            // Seven seconds after 1970 is a well-formed time; it is refused for what it says.
            let says_wrong_time = number && value == json!(7);
            let fits = matches!(name, "sub" | "client_id" | "aud") && value == json!("1800000300");
            let outcome = check_payload(&with(payload(), name, value.clone()));
            if says_wrong_time {
                assert!(matches!(outcome, Err(TokenError::Expired | TokenError::Lifetime)));
            } else if name == "iss" && value.is_string() {
                assert_eq!(outcome, Err(TokenError::Issuer));
            } else if fits {
                assert!(outcome.is_ok());
            } else {
                assert_eq!(outcome, Err(TokenError::Claims), "{name} = {value}");
            }
        }
    }
}

#[test]
fn optional_claims_are_absent_or_well_formed() {
    for name in ["nbf", "scope", "sid", "auth_time", "amr"] {
        assert!(check_payload(&without(payload(), name)).is_ok(), "{name}");
        for value in [Value::Null, json!({}), json!(1.5), json!(true), json!([1]), json!(-1)] {
            let outcome = check_payload(&with(payload(), name, value));
            assert_eq!(outcome, Err(TokenError::Claims), "{name}");
        }
    }
    let absent = check_payload(&without(payload(), "nbf")).unwrap();
    assert_eq!(absent.not_before, absent.issued_at);
    for (name, value) in [
        ("scope", json!("a  b")),
        ("scope", json!("a a")),
        ("scope", json!("a\nb")),
        ("sid", json!("short")),
        ("jti", json!("AQEBAQEBAQEBAQEBAQEBAR")),
        ("sub", json!("a\r\nx-admin: 1")),
        ("client_id", json!("a,b")),
        ("aud", json!(["a", "a"])),
        ("amr", json!("pwd")),
        ("epo", json!([1, 2])),
        ("epo", json!([1, 2, 3, 4])),
        ("epo", json!([1, 2, -3])),
        ("epo", json!([1, 2, 4_294_967_296_u64])),
        ("epo", json!([1, 2, 3.0])),
        ("cnf", json!({ "jkt": "x" })),
        ("act", json!({ "sub": "x" })),
        ("admin", json!(true)),
    ] {
        assert_eq!(check_payload(&with(payload(), name, value)), Err(TokenError::Claims), "{name}");
    }
}

#[test]
fn row_9_the_audience_is_handed_to_the_caller() {
    for (aud, names) in
        [(json!("other"), "other"), (json!(["api"]), "api"), (json!(["z", "api"]), "api z")]
    {
        let claims = check_payload(&with(payload(), "aud", aud)).unwrap();
        assert_eq!(claims.audience.to_string(), names);
    }
}

#[test]
fn rows_10_18_the_issuer_is_exact() {
    for iss in [
        "https://id.example/",
        "HTTPS://id.example",
        "https://ID.example",
        "https://id.exampl",
        "https://id.example.evil",
        "https://\u{456}d.example",
        " https://id.example",
        "",
    ] {
        let outcome = check_payload(&with(payload(), "iss", json!(iss)));
        assert_eq!(outcome, Err(TokenError::Issuer), "{iss}");
    }
    let outcome = check_payload(&with(payload(), "iss", json!([ISSUER])));
    assert_eq!(outcome, Err(TokenError::Claims));
}

#[test]
fn row_11_boundaries_to_the_millisecond() {
    let token = signed_by(&KEYS.ec, &header().to_string(), &payload().to_string());
    let at = |rules: &Rules, millis: u64| {
        verify(&token, &KEYS.known, rules, Timestamp::from_millis(millis)).err()
    };
    let (start, end) = (NOW_SECS * 1_000, (NOW_SECS + 300) * 1_000);
    let rules = rules();
    assert_eq!(at(&rules, end + 4_999), None);
    assert_eq!(at(&rules, end + 5_000), Some(TokenError::Expired));
    assert_eq!(at(&rules, end + 6_000), Some(TokenError::Expired));
    assert_eq!(at(&rules, u64::MAX), Some(TokenError::Expired));
    assert_eq!(at(&rules, start - 5_000), None);
    assert_eq!(at(&rules, start - 5_001), Some(TokenError::NotYetValid));
    assert_eq!(at(&rules, 0), Some(TokenError::NotYetValid));
    let strict = rules.clone().with_leeway(Duration::ZERO);
    assert_eq!(at(&strict, end - 1), None);
    assert_eq!(at(&strict, end), Some(TokenError::Expired));
    assert_eq!(at(&strict, start), None);
    assert_eq!(at(&strict, start - 1), Some(TokenError::NotYetValid));
    let generous = rules.with_leeway(Duration::from_secs(3_600));
    assert_eq!(at(&generous, end + 5_000), Some(TokenError::Expired), "never more than 5 s");
}

#[test]
fn row_12_issued_neither_in_the_future_nor_too_long_ago() {
    let issued = |iat: u64, exp: u64| {
        let payload = with(with(without(payload(), "nbf"), "iat", json!(iat)), "exp", json!(exp));
        check_payload(&with(payload, "nbf", json!(0))).err()
    };
    assert_eq!(issued(NOW_SECS + 5, NOW_SECS + 300), None);
    assert_eq!(issued(NOW_SECS + 6, NOW_SECS + 300), Some(TokenError::IssuedInFuture));
    assert_eq!(issued(NOW_SECS, NOW_SECS + 3_600), None);
    assert_eq!(issued(NOW_SECS, NOW_SECS + 3_601), Some(TokenError::Lifetime));
    assert_eq!(issued(NOW_SECS - 3_605, NOW_SECS + 300), Some(TokenError::Lifetime));
    assert_eq!(issued(NOW_SECS - 3_605, NOW_SECS - 5), Some(TokenError::Expired));
    assert_eq!(issued(0, NOW_SECS + 300), Some(TokenError::Lifetime));
    assert_eq!(issued(u64::MAX, u64::MAX), Some(TokenError::IssuedInFuture));
}

#[test]
fn row_13_absurd_times() {
    let base = payload().to_string();
    let raw = |name: &str, value: &str| {
        let old = format!("\"{name}\":{}", payload()[name]);
        assert!(base.contains(&old));
        check_raw_payload(&base.replace(&old, &format!("\"{name}\":{value}"))).unwrap_err()
    };
    for value in ["1000000000000000000", "253402300801", "18446744073709551615"] {
        assert_eq!(raw("exp", value), TokenError::Lifetime, "{value}");
        assert_eq!(raw("iat", value), TokenError::IssuedInFuture, "{value}");
        assert_eq!(raw("nbf", value), TokenError::NotYetValid, "{value}");
    }
    for value in [
        "1e18",
        "1e400",
        "-1",
        "-0",
        "1.5",
        "1800000300.0",
        "1.8e9",
        "\"1800000300\"",
        "0x10",
        "01800000300",
        "+1800000300",
        "18446744073709551616",
        "NaN",
        "Infinity",
        "1_800",
        "null",
    ] {
        for name in ["exp", "iat", "nbf"] {
            assert_eq!(raw(name, value), TokenError::Claims, "{name} {value}");
        }
    }
}

#[test]
fn row_14_no_member_stands_twice() {
    let escaped = |name: &str| format!("\\u{:04x}{}", name.as_bytes()[0], &name[1..]);
    for name in ["alg", "kid", "typ"] {
        for spelling in [name.to_owned(), escaped(name)] {
            let object = header();
            let double =
                object.to_string().replacen('{', &format!("{{\"{spelling}\":{},", object[name]), 1);
            let token = signed_by(&KEYS.ec, &double, &payload().to_string());
            assert_eq!(check(&token), Err(TokenError::Header), "{spelling}");
        }
    }
    let object = payload();
    for name in object.as_object().unwrap().keys() {
        for spelling in [name.clone(), escaped(name)] {
            let double =
                object.to_string().replacen('{', &format!("{{\"{spelling}\":{},", object[name]), 1);
            assert_eq!(check_raw_payload(&double), Err(TokenError::Claims), "{spelling}");
        }
    }
    let cnf = object.to_string().replacen('{', "{\"cnf\":{},\"cnf\":{},", 1);
    assert_eq!(check_raw_payload(&cnf), Err(TokenError::Claims));
}

#[test]
fn json_that_is_no_object_is_refused() {
    let values = json!([KEYS.ec.id().as_str(), "ES256", "at+jwt"]).to_string();
    for text in [&values, "", "null", "1", "\"x\"", "[]", "{}", "{", " {}", "{}x", "\u{feff}{}"] {
        let token = signed_by(&KEYS.ec, text, &payload().to_string());
        assert_eq!(check(&token), Err(TokenError::Header), "{text}");
        assert_eq!(check_raw_payload(text), Err(TokenError::Claims), "{text}");
    }
    let in_order = json!([
        ISSUER,
        "alice",
        "api",
        NOW_SECS + 300,
        NOW_SECS,
        NOW_SECS,
        "AQEBAQEBAQEBAQEBAQEBAQ",
        "web",
        "read",
        "AgICAgICAgICAgICAgICAg",
        NOW_SECS,
        ["pwd"],
        [1, 2, 3],
    ]);
    assert_eq!(check_payload(&in_order), Err(TokenError::Claims));
    let trailing = format!("{}{}", payload(), payload());
    assert_eq!(check_raw_payload(&trailing), Err(TokenError::Claims));
    let surrogate = payload().to_string().replace("alice", "\\ud800");
    assert_eq!(check_raw_payload(&surrogate), Err(TokenError::Claims));
    let message = [b64(header().to_string()), b64(b"{\"iss\":\"\xff\"}")].join(".");
    let signature = b64(KEYS.ec.sign(message.as_bytes()).unwrap());
    assert_eq!(check(&format!("{message}.{signature}")), Err(TokenError::Claims));
}

#[test]
fn row_15_one_changed_character_anywhere() {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let others = b"=+/ \r\n\0.%~";
    for key in [&KEYS.ec, &KEYS.ed] {
        let token = key.encode(&claims()).unwrap().into_exposed();
        for at in 0..token.len() {
            // All of the alphabet at the end, where bits may go unused; a sample elsewhere.
            let last = at + 2 >= token.len() || token.as_bytes()[at + 1] == b'.';
            let step = if last { 1 } else { 21 };
            for &new in alphabet.iter().skip(at % step).step_by(step).chain(others) {
                let mut changed = token.clone().into_bytes();
                if changed[at] == new {
                    continue;
                }
                changed[at] = new;
                let changed = String::from_utf8(changed).unwrap();
                assert!(check(&changed).is_err(), "{at} {new}");
            }
        }
    }
}

#[test]
fn row_15_nothing_may_be_added_or_left_out() {
    let token = KEYS.ec.encode(&claims()).unwrap().into_exposed();
    for at in 0..=token.len() {
        for extra in ["=", " ", "\n", "\r\n", "\0", "A", ".", "é"] {
            let changed = format!("{}{extra}{}", &token[..at], &token[at..]);
            assert!(check(&changed).is_err(), "{at} {extra:?}");
        }
        assert_eq!(check(&token[..at]).is_ok(), at == token.len());
    }
}

#[test]
fn row_16_size_first() {
    let token = KEYS.ec.encode(&claims()).unwrap().into_exposed();
    for len in [MAX_TOKEN_BYTES + 1, 64 << 10, 1 << 20, 4 << 20] {
        assert_eq!(check(&"A".repeat(len)), Err(TokenError::TooLarge));
        let padded = format!("{token}{}", "A".repeat(len - token.len()));
        assert_eq!(check(&padded), Err(TokenError::TooLarge));
    }
    let deep = format!("{}{}", "[".repeat(2_500), "]".repeat(2_500));
    for name in ["aud", "amr", "epo", "sub", "unknown"] {
        let nested = payload().to_string().replacen('{', &format!("{{\"{name}2\":{deep},"), 1);
        assert_eq!(check_raw_payload(&nested), Err(TokenError::Claims));
        let value = without(payload(), name).to_string();
        let nested = value.replacen('{', &format!("{{\"{name}\":{deep},"), 1);
        assert_eq!(check_raw_payload(&nested), Err(TokenError::Claims));
    }
    let header = header().to_string().replacen('{', &format!("{{\"x\":{deep},"), 1);
    let token = signed_by(&KEYS.ec, &header, "{}");
    assert_eq!(check(&token), Err(TokenError::Header));
}

#[test]
fn what_no_verifier_would_accept_is_not_signed() {
    let name = |i: usize| format!("{i:0>250}");
    let mut large = claims();
    large.scope = Names::new((0..64).map(name)).unwrap();
    assert_eq!(KEYS.ec.encode(&large).unwrap_err(), EncodeError::TooLarge);
    for key in [&KEYS.ec, &KEYS.ed, &KEYS.rsa] {
        let mut accepted = 0;
        for count in 1..40 {
            large.scope = Names::new((0..count).map(name)).unwrap();
            if let Ok(token) = key.encode(&large) {
                assert!(token.expose().len() <= MAX_TOKEN_BYTES);
                assert!(check(token.expose()).is_ok());
                accepted += 1;
            }
        }
        assert!((15..30).contains(&accepted));
    }
}

#[test]
fn keys_that_are_none_are_refused() {
    let id = || KEYS.ec.id().clone();
    let PublicKey::P256 { x, y } = KEYS.ec.public().unwrap() else { panic!("not P-256") };
    let PublicKey::Rsa { n, e } = KEYS.rsa.public().unwrap() else { panic!("not RSA") };
    let zeros: Box<str> = b64([0; 32]).into();
    let short: Box<str> = b64([0xff; 256]).into();
    for public in [
        PublicKey::P256 { x: x.clone(), y: x.clone() },
        PublicKey::P256 { x: "".into(), y: y.clone() },
        PublicKey::P256 { x: format!("{x}=").into(), y },
        PublicKey::P256 { x: zeros.clone(), y: zeros },
        PublicKey::Ed25519 { x: "AQ".into() },
        PublicKey::Ed25519 { x: b64([1; 44]).into() },
        PublicKey::Rsa { n: short, e: e.clone() },
        PublicKey::Rsa { n: "".into(), e },
        PublicKey::Rsa { n, e: "".into() },
    ] {
        assert!(VerifyingKey::new(id(), &public).is_err(), "{public:?}");
    }
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256] {
        assert_eq!(SigningKey::from_pkcs8(algorithm, b"").unwrap_err(), KeyError::Malformed);
        let (key, private) = SigningKey::generate(algorithm).unwrap();
        let again = SigningKey::from_pkcs8(algorithm, &private).unwrap();
        assert_eq!(again.id(), key.id());
        for other in [Algorithm::EdDsa, Algorithm::Es256, Algorithm::Rs256] {
            assert_eq!(SigningKey::from_pkcs8(other, &private).is_ok(), other == algorithm);
        }
    }
    let short = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = short.as_der().unwrap();
    let error = SigningKey::from_pkcs8(Algorithm::Rs256, der.as_ref()).unwrap_err();
    assert_eq!(error, KeyError::TooShort);
    let stranger = SigningKey::generate(Algorithm::Es256).unwrap().0.public().unwrap();
    assert_eq!(KEYS.ec.self_test(&stranger), Err(KeyError::SelfTest));
}

#[test]
fn thumbprint_of_rfc_8037_appendix_a_3() {
    let public = PublicKey::Ed25519 { x: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into() };
    let expected = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
    assert_eq!(thumbprint(&public).unwrap().as_str(), expected);
}

#[test]
fn nothing_shows_a_key() {
    let shown = format!("{:?} {:?}", KEYS.ec, KEYS.known[KEYS.ec.id().as_str()]);
    let id = KEYS.ec.id();
    assert_eq!(
        shown,
        format!(
            "SigningKey {{ id: {id:?}, algorithm: Es256, .. }} \
             VerifyingKey {{ id: {id:?}, algorithm: Es256, .. }}"
        )
    );
}

fn any_claims() -> impl Strategy<Value = Claims> {
    let id = "[!#-&(-+./-:<-\\[\\]-~-]{1,40}";
    let names = || prop::collection::btree_set("[a-z:/.]{1,12}", 0..6);
    let audience = prop::collection::btree_set("[!#-\\[\\]-~]{1,20}", 1..4);
    let text = (id, id, audience, names(), names());
    let bits = (any::<[u8; 16]>(), any::<Option<[u8; 16]>>(), any::<[u32; 3]>());
    let times = (0_u64..3_600, 1_u64..3_600, any::<Option<u32>>());
    (text, bits, times).prop_map(|(text, bits, (ago, lives, auth))| {
        let issued_at = Timestamp::from_secs(NOW_SECS - ago);
        let [global, client, subject] = bits.2.map(Epoch);
        Claims {
            issuer: ISSUER.into(),
            subject: text.0.parse().unwrap(),
            audience: Names::new(text.2).unwrap(),
            client: text.1.parse().unwrap(),
            scope: Names::new(text.3).unwrap(),
            token_id: TokenId::from_bytes(bits.0),
            session: bits.1.map(SessionId::from_bytes),
            issued_at,
            not_before: issued_at,
            expires_at: issued_at.after(Duration::from_secs(lives)),
            authenticated_at: auth.map(|at| Timestamp::from_secs(at.into())),
            methods: Names::new(text.4).unwrap(),
            epochs: Epochs { global, client, subject },
        }
    })
}

proptest! {
    #[test]
    fn any_claims_come_back(claims in any_claims(), which in 0_usize..3) {
        let key = [&KEYS.ec, &KEYS.ed, &KEYS.rsa][which];
        let token = key.encode(&claims).unwrap();
        let outcome = verify(token.expose(), &KEYS.known, &rules(), claims.issued_at);
        prop_assert_eq!(outcome, Ok(claims));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*|[A-Za-z0-9_.-]{0,200}|[A-Za-z0-9_-]*\\.[A-Za-z0-9_-]*\\.[A-Za-z0-9_-]*") {
        prop_assert!(check(&text).is_err());
    }

    /// Signed by the right key, so that the payload is read: still no panic, and no claims from noise.
    #[test]
    fn no_signed_bytes_make_it_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let message = format!("{}.{}", b64(header().to_string()), b64(payload));
        let token = format!("{message}.{}", b64(KEYS.ec.sign(message.as_bytes()).unwrap()));
        prop_assert_eq!(check(&token), Err(TokenError::Claims));
    }

    /// A payload that is right but for a piece of other text somewhere in it.
    #[test]
    fn no_spliced_payload_makes_it_panic(at in 0_usize..300, len in 0_usize..20, piece in "[\\[\\]{}\",:0-9a-z\\\\-]{0,20}") {
        let text = payload().to_string();
        let (from, to) = (at.min(text.len()), (at + len).min(text.len()));
        let spliced = format!("{}{piece}{}", &text[..from], &text[to..]);
        let _ = check_raw_payload(&spliced);
    }
}
