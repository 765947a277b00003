//! The headers that tell an upstream who calls. They are worth something only if nobody else can set
//! them, in any spelling that an upstream might take for one of them.

use crate::domain::claims::Claims;

/// Who it is: `sub`.
pub(super) const SUBJECT: &str = "x-avouch-subject";
/// Which application it uses: `client_id`.
const CLIENT_ID: &str = "x-avouch-client-id";
/// What the token allows, with spaces between: `scope`.
const SCOPE: &str = "x-avouch-scope";
/// Which login: `sid`; not there for a token that a client got for itself.
const SESSION_ID: &str = "x-avouch-session-id";
/// Which token: `jti`.
const TOKEN_ID: &str = "x-avouch-token-id";
/// When it expires: `exp`, in seconds since the Unix epoch.
const EXPIRES: &str = "x-avouch-expires";

/// Every header that a sidecar sets.
pub(super) const NAMES: [&str; 6] = [SUBJECT, CLIENT_ID, SCOPE, SESSION_ID, TOKEN_ID, EXPIRES];

/// Names that begin with this are not a client's to send.
const PREFIX: &[u8] = b"x-avouch-";

/// Whether an upstream might take this header for one of ours. Gateways to CGI, WSGI and their like make
/// one name of all that differ in case, and in `-` and `_`; so any character that is neither letter nor
/// digit counts as a hyphen here.
pub(super) fn is_ours(name: &[u8]) -> bool {
    let folded = |byte: &u8| {
        if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
    };
    name.len() >= PREFIX.len()
        && name.iter().map(folded).zip(PREFIX).all(|(own, ours)| own == *ours)
}

/// Our names in every spelling that a proxy keeps apart and an upstream may not: each hyphen may be an
/// underscore.
pub(super) fn spellings() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for name in NAMES {
        let mut of_name = vec![String::new()];
        for char in name.chars() {
            let other: Vec<String> = if char == '-' {
                of_name.iter().map(|begun| format!("{begun}_")).collect()
            } else {
                Vec::new()
            };
            of_name.iter_mut().for_each(|begun| begun.push(char));
            of_name.extend(other);
        }
        all.extend(of_name);
    }
    all
}

/// A claim that cannot stand in a header. It is never escaped: the upstream would read something else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct UnsafeClaim;

/// The headers for one token, in the order of [`NAMES`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Identity(Vec<(&'static str, String)>);

impl Identity {
    pub(super) fn of(claims: &Claims) -> Result<Self, UnsafeClaim> {
        let session = claims.session.map(|session| session.to_string());
        let values = [
            (SUBJECT, Some(claims.subject.to_string())),
            (CLIENT_ID, Some(claims.client.to_string())),
            (SCOPE, Some(claims.scope.to_string()).filter(|scope| !scope.is_empty())),
            (SESSION_ID, session),
            (TOKEN_ID, Some(claims.token_id.to_string())),
            (EXPIRES, Some(claims.expires_at.as_secs().to_string())),
        ];
        let values: Vec<(&'static str, String)> =
            values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        for (name, value) in &values {
            // Only what has many values has spaces between them.
            let is_safe = |b: u8| is_safe(b) || (*name == SCOPE && b == b' ');
            if !value.bytes().all(is_safe) {
                return Err(UnsafeClaim);
            }
        }
        Ok(Self(values))
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// What no header, log, shell or template reads as anything but itself.
const fn is_safe(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b'@' | b'+' | b'=' | b'*' | b'!' | b'|'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;
    use crate::domain::ids::{Epochs, SessionId, TokenId};
    use crate::domain::scope::Names;

    fn claims(subject: &str, client: &str, scope: &str) -> Claims {
        Claims {
            issuer: "https://id.example".into(),
            subject: subject.parse().unwrap(),
            audience: Names::default(),
            client: client.parse().unwrap(),
            scope: scope.parse().unwrap(),
            token_id: TokenId::from_bytes([1; 16]),
            session: Some(SessionId::from_bytes([2; 16])),
            issued_at: Timestamp::default(),
            not_before: Timestamp::default(),
            expires_at: Timestamp::from_secs(1_800_000_000),
            authenticated_at: None,
            methods: Names::default(),
            epochs: Epochs::default(),
        }
    }

    #[test]
    fn every_spelling_is_ours_and_what_only_looks_near_is_not() {
        let all = spellings();
        assert_eq!(all.len(), 4 + 8 + 4 + 8 + 8 + 4);
        assert!(NAMES.iter().all(|name| all.iter().any(|spelling| spelling == name)));
        assert!(all.contains(&"x_avouch-client_id".to_owned()));
        assert!(all.iter().all(|name| is_ours(name.as_bytes())));
        for name in
            ["X-Avouch-Subject", "x_avouch_made_up", "X.AVOUCH SUBJECT", "x-avouch-", "x~avouch\0a"]
        {
            assert!(is_ours(name.as_bytes()), "{name}");
        }
        for name in
            ["x-avouch", "avouch-subject", "xx-avouch-a", "x-avouchsubject", "authorization", ""]
        {
            assert!(!is_ours(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn claims_become_headers_as_they_are_or_not_at_all() {
        let identity = Identity::of(&claims("usr_1", "web", "a:read b")).unwrap();
        let headers: Vec<_> = identity.headers().collect();
        assert_eq!(
            headers,
            [
                (SUBJECT, "usr_1"),
                (CLIENT_ID, "web"),
                (SCOPE, "a:read b"),
                (SESSION_ID, "AgICAgICAgICAgICAgICAg"),
                (TOKEN_ID, "AQEBAQEBAQEBAQEBAQEBAQ"),
                (EXPIRES, "1800000000"),
            ]
        );
        let own = Claims { session: None, ..claims("spiffe://a/b", "w|1", "") };
        assert_eq!(Identity::of(&own).unwrap().headers().count(), 4);
        for (subject, client, scope) in [
            ("a<b", "web", ""),
            ("a%0a", "web", ""),
            ("a", "w{b", ""),
            ("a", "web", "a,b"),
            ("a", "web", "a;b"),
            ("a", "web", "a 'b"),
            ("a", "web", "$(b)"),
        ] {
            let claims = claims(subject, client, scope);
            assert_eq!(Identity::of(&claims), Err(UnsafeClaim), "{subject} {client} {scope}");
        }
    }
}
