use std::time::Duration;

use super::*;
use crate::domain::claims::Claims;
use crate::domain::entropy::SeededEntropy;
use crate::domain::ids::Epochs;
use crate::domain::scope::Names;
use crate::jwt::{Rules, TokenError, verify};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn sealer(seed: u64) -> Sealer {
    let entropy: &dyn Entropy = &SeededEntropy::new(seed);
    Sealer::new(&SecretBytes::new(entropy.bytes())).unwrap()
}

fn entropy() -> SeededEntropy {
    SeededEntropy::new(7)
}

fn key(algorithm: Algorithm, state: KeyState) -> KeyRecord {
    generate(algorithm, state, NOW, NOW, &sealer(1), &entropy()).unwrap()
}

fn mac(id: u32, state: MacKeyState) -> MacKeyRecord {
    let entropy = SeededEntropy::new(u64::from(id));
    MacKeyRecord { state, ..generate_mac(MacKeyId(id), NOW, &sealer(1), &entropy).unwrap() }
}

fn open(records: &[KeyRecord]) -> Result<Ring, RingError> {
    Ring::open(records, &[mac(1, MacKeyState::Active)], &sealer(1))
}

fn claims(now: Timestamp) -> Claims {
    Claims {
        issuer: "https://id.example".into(),
        subject: "alice".parse().unwrap(),
        audience: "api".parse().unwrap(),
        client: "web".parse().unwrap(),
        scope: Names::default(),
        token_id: (&entropy() as &dyn Entropy).token_id(),
        session: None,
        issued_at: now,
        not_before: now,
        expires_at: now.after(HOUR),
        authenticated_at: None,
        methods: Names::default(),
        epochs: Epochs::default(),
    }
}

#[test]
fn signs_with_the_active_key_and_accepts_all_but_the_revoked() {
    let mut records = vec![
        key(Algorithm::EdDsa, KeyState::Retired),
        key(Algorithm::Es256, KeyState::Active),
        key(Algorithm::Es256, KeyState::Announced),
        key(Algorithm::Es256, KeyState::Revoked),
    ];
    records[3].sealed_private = Vec::new();
    let ring = open(&records).unwrap();
    assert_eq!(*ring.signing().id(), records[1].id);
    for (record, accepted) in records.iter().zip([true, true, true, false]) {
        assert_eq!(ring.find_key(record.id.as_str()).is_some(), accepted);
    }
    let token = ring.signing().encode(&claims(NOW)).unwrap();
    let rules = Rules::new("https://id.example", HOUR);
    assert_eq!(verify(token.expose(), &ring, &rules, NOW), Ok(claims(NOW)));
    assert!(format!("{ring:?}").contains("published: 3"));
}

#[test]
fn publishes_what_jsonwebtoken_reads_and_verifies_with() {
    let records = [
        key(Algorithm::Es256, KeyState::Announced),
        key(Algorithm::Rs256, KeyState::Retired),
        key(Algorithm::EdDsa, KeyState::Active),
    ];
    let ring = open(&records).unwrap();
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(ring.jwks_json()).unwrap();
    assert_eq!(set.keys.len(), 3);
    assert_eq!(set.keys[0].common.key_id.as_deref(), Some(records[2].id.as_str()));
    for jwk in &set.keys {
        let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap();
        assert_eq!(jwk.common.key_id.as_ref(), Some(&thumbprint), "RFC 7638");
        assert_eq!(jwk.common.public_key_use, Some(jsonwebtoken::jwk::PublicKeyUse::Signature));
    }
    let text = String::from_utf8(ring.jwks_json().to_vec()).unwrap();
    for private in ["\"d\"", "\"p\"", "\"q\"", "\"k\"", "sealed"] {
        assert!(!text.contains(private));
    }
    assert!(ring.etag().starts_with('"') && ring.etag().len() == 24);
    assert_eq!(open(&records).unwrap().etag(), ring.etag());
    assert_ne!(open(&records[1..]).unwrap().etag(), ring.etag());
}

#[test]
fn another_key_file_is_named_as_the_reason() {
    let record = key(Algorithm::Es256, KeyState::Active);
    let macs = [mac(1, MacKeyState::Active)];
    let error = Ring::open(std::slice::from_ref(&record), &macs, &sealer(2)).unwrap_err();
    let message = format!(
        "signing key {} does not open: the key file does not match this database",
        record.id
    );
    assert_eq!(error.to_string(), message);
    let foreign = generate_mac(MacKeyId(9), NOW, &sealer(2), &entropy()).unwrap();
    let error = Ring::open(&[record], &[foreign], &sealer(1)).unwrap_err();
    assert!(error.to_string().starts_with("MAC key 9 does not open: the key file"), "{error}");
}

#[test]
fn a_database_without_the_key_file_cannot_plant_a_key() {
    let good = key(Algorithm::Es256, KeyState::Active);
    let evil = generate(Algorithm::Es256, KeyState::Active, NOW, NOW, &sealer(2), &entropy());
    let evil = evil.unwrap();
    let swapped_public = KeyRecord { public: evil.public.clone(), ..good.clone() };
    assert!(matches!(open(&[swapped_public]), Err(RingError::Mismatch(..))));
    let renamed = KeyRecord { id: evil.id.clone(), public: evil.public, ..good.clone() };
    assert!(matches!(open(&[renamed]), Err(RingError::WrongKeyFile(..))));
    let other = key(Algorithm::Es256, KeyState::Retired);
    let swapped_private =
        KeyRecord { sealed_private: other.sealed_private.clone(), ..good.clone() };
    assert!(matches!(open(&[swapped_private]), Err(RingError::WrongKeyFile(..))));
    let planted = KeyRecord { sealed_private: Vec::new(), ..other };
    assert!(matches!(open(&[good, planted]), Err(RingError::WrongKeyFile(..))));
}

#[test]
fn exactly_one_key_of_each_kind_is_active() {
    let a = key(Algorithm::Es256, KeyState::Active);
    let b = key(Algorithm::Es256, KeyState::Active);
    assert_eq!(open(&[]).unwrap_err(), RingError::Signers(0));
    assert_eq!(open(&[a.clone(), b]).unwrap_err(), RingError::Signers(2));
    assert!(matches!(open(&[a.clone(), a.clone()]), Err(RingError::Duplicate(_))));
    let ring = |macs: &[MacKeyRecord]| Ring::open(std::slice::from_ref(&a), macs, &sealer(1));
    let (one, two) = (mac(1, MacKeyState::Active), mac(2, MacKeyState::Active));
    assert_eq!(ring(&[]).unwrap_err(), RingError::MacKeys(0));
    assert_eq!(ring(&[one.clone(), two]).unwrap_err(), RingError::MacKeys(2));
    assert!(matches!(ring(&[one.clone(), one]), Err(RingError::Duplicate(_))));
}

#[test]
fn refresh_tokens_are_a_pure_function_of_the_session() {
    let macs = [mac(1, MacKeyState::Previous), mac(2, MacKeyState::Active)];
    let ring = Ring::open(&[key(Algorithm::EdDsa, KeyState::Active)], &macs, &sealer(1)).unwrap();
    let sid = SessionId::from_bytes([1; 16]);
    let (nonce, other) = (SecretBytes::new([3; 32]), SecretBytes::new([4; 32]));
    let mint = |generation, mac| {
        ring.mint_refresh(sid, Generation(generation), &nonce, MacKeyId(mac))
            .map(SecretText::into_exposed)
    };
    assert_eq!(ring.active_mac(), MacKeyId(2));
    assert_eq!(mint(5, 1), mint(5, 1));
    assert_ne!(mint(5, 1), mint(5, 2));
    assert_ne!(mint(5, 1), mint(6, 1));
    assert_eq!(mint(5, 3), None);

    let token: RefreshToken = mint(5, 1).unwrap().parse().unwrap();
    assert!(ring.check_refresh(&token, &nonce));
    assert!(!ring.check_refresh(&token, &other));
    let altered = |sid, generation, mac| {
        RefreshToken::new(sid, Generation(generation), MacKeyId(mac), token.tag().clone())
    };
    assert!(ring.check_refresh(&altered(sid, 5, 1), &nonce));
    assert!(!ring.check_refresh(&altered(sid, 6, 1), &nonce));
    assert!(!ring.check_refresh(&altered(sid, 5, 2), &nonce));
    assert!(!ring.check_refresh(&altered(sid, 5, 77), &nonce));
    assert!(!ring.check_refresh(&altered(SessionId::from_bytes([2; 16]), 5, 1), &nonce));
}

/// security.md row 19, with three keys over a virtual clock.
#[test]
fn old_tokens_live_through_a_rotation_and_die_with_their_key() {
    let policy = RingPolicy::new(Algorithm::EdDsa, HOUR);
    let rules = Rules::new("https://id.example", HOUR);
    let roll = |records: &[KeyRecord], now| {
        roll_at(records, &policy, now, &sealer(1), &entropy()).unwrap()
    };
    let first = roll(&[], NOW).unwrap();
    assert!(roll(&first, NOW).is_none());
    let almost_due = NOW.after(30 * DAY).before(Duration::from_millis(1));
    assert!(roll(&first, almost_due).is_none());
    let live = KeyRing::new(open(&first).unwrap());
    let signer = live.current().signing().id().clone();
    let reserve = first.iter().find(|r| r.state == KeyState::Announced).unwrap().id.clone();
    assert_ne!(signer, reserve, "announced keys do not sign");
    assert!(live.current().find_key(reserve.as_str()).is_some(), "they are published");

    let rotated_at = NOW.after(30 * DAY);
    let last = live.current().signing().encode(&claims(rotated_at)).unwrap();
    let rotated = roll(&first, rotated_at).unwrap();
    live.replace(open(&rotated).unwrap());
    assert_eq!(*live.current().signing().id(), reserve);
    let almost = rotated_at.after(HOUR);
    assert!(verify(last.expose(), &*live.current(), &rules, almost).is_ok());

    let removed = roll(&rotated, almost.after(RingPolicy::SKEW)).unwrap();
    live.replace(open(&removed).unwrap());
    let outcome = verify(last.expose(), &*live.current(), &rules, rotated_at);
    assert_eq!(outcome, Err(TokenError::UnknownKey));
}

#[test]
fn a_revoked_key_is_gone_at_once_and_the_next_one_signs() {
    let policy = RingPolicy::new(Algorithm::EdDsa, HOUR);
    let rules = Rules::new("https://id.example", HOUR);
    let first = roll_at(&[], &policy, NOW, &sealer(1), &entropy()).unwrap().unwrap();
    let before = open(&first).unwrap();
    let stolen = before.signing().encode(&claims(NOW)).unwrap();
    let signer = before.signing().id().clone();
    let revoke = |records: &[KeyRecord]| {
        revoke_at(records, &signer, &policy, NOW, &sealer(1), &entropy()).unwrap()
    };
    let after = revoke(&first).unwrap();
    let ring = open(&after).unwrap();
    assert_eq!(verify(stolen.expose(), &ring, &rules, NOW), Err(TokenError::UnknownKey));
    let fresh = ring.signing().encode(&claims(NOW)).unwrap();
    assert!(verify(fresh.expose(), &ring, &rules, NOW).is_ok());
    let jwks = |ring: &Ring| String::from_utf8(ring.jwks_json().to_vec()).unwrap();
    assert!(!jwks(&ring).contains(signer.as_str()));
    assert!(jwks(&before).contains(ring.signing().id().as_str()), "verifiers have it already");
    assert!(revoke(&after).is_none());
}
