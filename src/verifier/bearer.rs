//! The token in an `authorization` header (RFC 6750 section 2.1).

/// Why a request has no token to check.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BearerError {
    /// There is no `authorization`, or one of another scheme.
    #[error("there is no bearer token")]
    Missing,
    /// It is of the scheme and not well formed.
    #[error("the bearer token is malformed")]
    Malformed,
    /// There is more than one.
    #[error("there is more than one authorization")]
    Repeated,
}

/// The one token in the values of `authorization`.
///
/// The scheme is read without regard to case, one space follows it, and the token has the characters of
/// RFC 6750's `b64token` and no others: a comma, a tab or a second token make it malformed.
///
/// # Errors
/// See [`BearerError`].
pub fn bearer<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<&'a str, BearerError> {
    let mut values = values.into_iter();
    let value = values.next().ok_or(BearerError::Missing)?;
    if values.next().is_some() {
        return Err(BearerError::Repeated);
    }
    let (scheme, rest) = value.split_at_checked(6).ok_or(BearerError::Missing)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(BearerError::Missing);
    }
    let token = match rest {
        [b' ', token @ ..] => token,
        [] | [b'\t' | b',', ..] => return Err(BearerError::Malformed),
        _ => return Err(BearerError::Missing),
    };
    let padding = token.iter().rev().take_while(|byte| **byte == b'=').count();
    let (body, _) = token.split_at(token.len() - padding);
    let of_a_token = |byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/')
    };
    if body.is_empty() || !body.iter().all(of_a_token) {
        return Err(BearerError::Malformed);
    }
    std::str::from_utf8(token).map_err(|_| BearerError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_exactly_one_well_formed_token() {
        let one = |value: &'static str| bearer([value.as_bytes()]);
        for value in ["Bearer a.b-c_d~e+f/g==", "bearer a.b-c_d~e+f/g==", "BEARER a.b-c_d~e+f/g=="]
        {
            assert_eq!(one(value), Ok("a.b-c_d~e+f/g=="), "{value}");
        }
        for value in [
            "Bearer",
            "Bearer ",
            "Bearer  a",
            "Bearer\ta",
            "Bearer a,",
            "Bearer a b",
            "Bearer a\0",
            "Bearer a, Bearer b",
            "Bearer,Bearer a",
            "Bearer ==",
            "Bearer a=b",
            "Bearer \u{e9}",
        ] {
            assert_eq!(one(value), Err(BearerError::Malformed), "{value}");
        }
        for value in ["", "Basic YTpi", "Bearers a", "a.b.c", "Beare a"] {
            assert_eq!(one(value), Err(BearerError::Missing), "{value}");
        }
        assert_eq!(bearer([]), Err(BearerError::Missing));
        assert_eq!(bearer([&b"Bearer a"[..], b"Bearer a"]), Err(BearerError::Repeated));
        assert_eq!(bearer([&b"Bearer a"[..], b"Basic b"]), Err(BearerError::Repeated));
        assert_eq!(bearer([&b"Bearer \xff"[..]]), Err(BearerError::Malformed));
    }
}
