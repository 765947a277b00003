//! The header and the claims as JSON: written, and read by closed structs.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::claims::Claims;
use crate::domain::clock::Timestamp;
use crate::domain::ids::{Epoch, Epochs};
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
    jti: String,
    client_id: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_time: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    amr: Vec<&'a str>,
    epo: [u32; 3],
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
            jti: claims.token_id.to_string(),
            client_id: claims.client.as_str(),
            scope: claims.scope.to_string(),
            sid: claims.session.map(|sid| sid.to_string()),
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
    aud: AudienceIn,
    exp: u64,
    iat: u64,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<u64>,
    #[serde(borrow)]
    jti: Cow<'a, str>,
    #[serde(borrow)]
    client_id: Cow<'a, str>,
    #[serde(default, deserialize_with = "present")]
    scope: Option<String>,
    #[serde(default, deserialize_with = "present")]
    sid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    auth_time: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    amr: Option<Vec<String>>,
    epo: [u32; 3],
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AudienceIn {
    One(String),
    Many(Vec<String>),
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl ClaimsIn<'_> {
    pub(super) fn into_claims(self) -> Option<Claims> {
        let audience = match self.aud {
            AudienceIn::One(name) => Names::new([name]),
            AudienceIn::Many(names) => Names::new(names),
        };
        let audience = audience.ok().filter(|names| !names.is_empty())?;
        let [global, client, subject] = self.epo.map(Epoch);
        Some(Claims {
            issuer: self.iss.into(),
            subject: self.sub.parse().ok()?,
            audience,
            client: self.client_id.parse().ok()?,
            scope: self.scope.as_deref().unwrap_or_default().parse().ok()?,
            token_id: self.jti.parse().ok()?,
            session: self.sid.map(|sid| sid.parse()).transpose().ok()?,
            issued_at: Timestamp::from_secs(self.iat),
            not_before: Timestamp::from_secs(self.nbf.unwrap_or(self.iat)),
            expires_at: Timestamp::from_secs(self.exp),
            authenticated_at: self.auth_time.map(Timestamp::from_secs),
            methods: Names::new(self.amr.unwrap_or_default()).ok()?,
            epochs: Epochs { global, client, subject },
        })
    }
}
