//! The header and the claims as JSON: written, and read by closed structs.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Epoch, Epochs, SessionId, TokenId};
use crate::domain::scope::Names;

/// Reads a JSON object. serde would read a struct from an array too.
pub(super) fn from_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if json.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// The header. Only avouch signs these tokens, so a member that avouch does not write (`crit`, `jwk`,
/// `jku`, `x5u`, `x5c`, `zip`, `enc`, `b64` or any other) means that something is wrong.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header<'a> {
    #[serde(borrow)]
    pub(super) alg: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) kid: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) typ: Cow<'a, str>,
}

/// The claims as written.
#[derive(Serialize)]
pub(super) struct ClaimsOut<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: AudienceOut<'a>,
    exp: u64,
    iat: u64,
    nbf: u64,
    jti: Shown<TokenId>,
    client_id: &'a str,
    #[serde(skip_serializing_if = "is_none")]
    scope: Shown<&'a Names>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<Shown<SessionId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_time: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amr: Vec<&'a str>,
    epo: [u32; 3],
}

/// Written as it is shown, without a text of its own.
struct Shown<T>(T);

impl<T: fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

fn is_none(names: &Shown<&Names>) -> bool {
    names.0.is_empty()
}

#[derive(Serialize)]
#[serde(untagged)]
enum AudienceOut<'a> {
    One(&'a str),
    Many(Vec<&'a str>),
}

impl<'a> From<&'a Claims> for ClaimsOut<'a> {
    fn from(claims: &'a Claims) -> Self {
        let mut audience: Vec<&str> = claims.audience.iter().collect();
        Self {
            iss: &claims.issuer,
            sub: claims.subject.as_str(),
            aud: match (audience.len(), audience.pop()) {
                (1, Some(only)) => AudienceOut::One(only),
                _ => AudienceOut::Many(claims.audience.iter().collect()),
            },
            exp: claims.expires_at.as_secs(),
            iat: claims.issued_at.as_secs(),
            nbf: claims.not_before.as_secs(),
            jti: Shown(claims.token_id),
            client_id: claims.client.as_str(),
            scope: Shown(&claims.scope),
            sid: claims.session.map(Shown),
            auth_time: claims.authenticated_at.map(Timestamp::as_secs),
            amr: claims.methods.iter().collect(),
            epo: [claims.epochs.global.0, claims.epochs.client.0, claims.epochs.subject.0],
        }
    }
}

/// The claims as read. The struct is closed: a claim that this version does not know may narrow what the
/// token is good for (`cnf`, `act`), so it must not be passed over. Duplicates are errors, and so is
/// null where a claim may be absent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimsIn<'a> {
    #[serde(borrow)]
    pub(super) iss: Cow<'a, str>,
    #[serde(borrow)]
    sub: Cow<'a, str>,
    #[serde(borrow)]
    aud: AudienceIn<'a>,
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
    #[serde(borrow)]
    jti: Cow<'a, str>,
    #[serde(borrow)]
    client_id: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    scope: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    sid: Option<Text<'a>>,
    #[serde(default, deserialize_with = "present")]
    auth_time: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    amr: Option<Vec<Text<'a>>>,
    epo: [u32; 3],
}

/// A text, borrowed unless it has escapes. Within an option or a list serde borrows no bare `Cow`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// One text or a list of them (RFC 7519 section 4.1.3).
struct AudienceIn<'a>(Vec<Text<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for AudienceIn<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AudienceVisitor(PhantomData))
    }
}

struct AudienceVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for AudienceVisitor<'a> {
    type Value = AudienceIn<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an audience or a list of audiences")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(AudienceIn(vec![Text(text.into())]))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(AudienceIn(vec![Text(text.to_owned().into())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(AudienceIn(names))
    }
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl ClaimsIn<'_> {
    pub(super) fn into_claims(self) -> Option<Claims> {
        let audience = Names::new(self.aud.0).ok().filter(|names| !names.is_empty())?;
        let [global, client, subject] = self.epo.map(Epoch);
        Some(Claims {
            issuer: self.iss.into(),
            subject: self.sub.parse().ok()?,
            audience,
            client: self.client_id.parse().ok()?,
            scope: self.scope.as_ref().map_or("", Text::as_ref).parse().ok()?,
            token_id: self.jti.parse().ok()?,
            session: self.sid.map(|sid| sid.as_ref().parse()).transpose().ok()?,
            issued_at: Timestamp::from_secs(self.iat),
            not_before: Timestamp::from_secs(self.nbf.unwrap_or(self.iat)),
            expires_at: Timestamp::from_secs(self.exp),
            authenticated_at: self.auth_time.map(Timestamp::from_secs),
            methods: Names::new(self.amr.unwrap_or_default()).ok()?,
            epochs: Epochs { global, client, subject },
        })
    }
}
