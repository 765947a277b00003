//! What a route demands of a token beside being good.

use crate::domain::claims::Claims;
use crate::domain::scope::Names;

/// The audiences and scopes that a token must have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Requirement {
    /// One of these must be in `aud`; none means any audience.
    pub audience: Names,
    /// All of these must be in `scope`.
    pub scope: Names,
}

/// What a token lacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unmet {
    /// It is meant for others: an invalid token here (RFC 9068 section 4), 401.
    Audience,
    /// It does not allow this: `insufficient_scope` (RFC 6750 section 3.1), 403.
    Scope,
}

impl Requirement {
    /// Whether a token with these claims has what it needs.
    ///
    /// # Errors
    /// Says what is missing, the audience first.
    pub fn check(&self, claims: &Claims) -> Result<(), Unmet> {
        let for_us = self.audience.is_empty()
            || self.audience.iter().any(|audience| claims.audience.contains(audience));
        if !for_us {
            return Err(Unmet::Audience);
        }
        if !self.scope.iter().all(|scope| claims.scope.contains(scope)) {
            return Err(Unmet::Scope);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;
    use crate::domain::ids::{Epochs, TokenId};

    fn names(names: &[&str]) -> Names {
        Names::new(names).unwrap()
    }

    #[test]
    fn one_audience_is_enough_and_every_scope_is_needed() {
        let claims = Claims {
            issuer: "https://id.example".into(),
            subject: "u1".parse().unwrap(),
            audience: names(&["orders", "stock"]),
            client: "web".parse().unwrap(),
            scope: names(&["read", "write"]),
            token_id: TokenId::from_bytes([1; 16]),
            session: None,
            issued_at: Timestamp::default(),
            not_before: Timestamp::default(),
            expires_at: Timestamp::MAX,
            authenticated_at: None,
            methods: Names::default(),
            epochs: Epochs::default(),
        };
        for (audience, scope, expected) in [
            (&[][..], &[][..], Ok(())),
            (&["orders"], &["read"], Ok(())),
            (&["other", "stock"], &["read", "write"], Ok(())),
            (&["other"], &["read"], Err(Unmet::Audience)),
            (&["order"], &[], Err(Unmet::Audience)),
            (&["Orders"], &[], Err(Unmet::Audience)),
            (&["orders"], &["read", "admin"], Err(Unmet::Scope)),
            (&["other"], &["admin"], Err(Unmet::Audience)),
        ] {
            let requirement = Requirement { audience: names(audience), scope: names(scope) };
            assert_eq!(requirement.check(&claims), expected, "{requirement:?}");
        }
    }
}
