//! How a request is refused: in gRPC's words (design of errors: `google.rpc.ErrorInfo`, domain `avouch`)
//! or in those of HTTP and RFC 6750.

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::body::GuardedBody;
use super::{Denial, Ended, Requirement, Unmet};
use crate::verifier::{BearerError, Refusal};

/// What the caller speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Words {
    Grpc,
    Http,
}

impl Words {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let of_grpc = |rest: &[u8]| matches!(rest, [] | [b'+' | b';', ..]);
        match kind.strip_prefix(b"application/grpc") {
            Some(rest) if of_grpc(rest) => Self::Grpc,
            Some(_) | None => Self::Http,
        }
    }
}

/// What kind of no.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    /// There was no token.
    Missing,
    /// The token is not good, or not for this service.
    InvalidToken,
    /// The token does not allow this.
    InsufficientScope,
    /// Nobody can tell just now.
    Unavailable,
}

const fn kind(denial: Denial) -> Kind {
    match denial {
        Denial::Bearer(BearerError::Missing) => Kind::Missing,
        Denial::Refused(refusal) if refusal.is_unavailable() => Kind::Unavailable,
        Denial::Unmet(Unmet::Scope) => Kind::InsufficientScope,
        Denial::Bearer(BearerError::Malformed | BearerError::Repeated)
        | Denial::Refused(_)
        | Denial::Unmet(Unmet::Audience)
        | Denial::Ended(_) => Kind::InvalidToken,
    }
}

/// The `reason` of an error's ErrorInfo. Why a token is not good is said only where it once was.
const fn reason(denial: Denial) -> &'static str {
    match denial {
        Denial::Bearer(BearerError::Missing) => "TOKEN_MISSING",
        Denial::Refused(Refusal::Stale | Refusal::NotReady) => "REVOCATIONS_UNKNOWN",
        Denial::Unmet(Unmet::Scope) => "INSUFFICIENT_SCOPE",
        Denial::Ended(Ended::Expired) => "TOKEN_EXPIRED",
        Denial::Ended(Ended::Revoked(_)) => "TOKEN_REVOKED",
        Denial::Bearer(BearerError::Malformed | BearerError::Repeated)
        | Denial::Refused(_)
        | Denial::Unmet(Unmet::Audience) => "TOKEN_NOT_ACCEPTED",
    }
}

fn status(denial: Denial) -> Status {
    let (code, message) = match kind(denial) {
        Kind::Missing => (Code::Unauthenticated, "a bearer token is needed"),
        Kind::InvalidToken => (Code::Unauthenticated, "the token is not accepted"),
        Kind::InsufficientScope => (Code::PermissionDenied, "the token does not allow this"),
        Kind::Unavailable => (Code::Unavailable, "revocations are not known up to now"),
    };
    let mut details = ErrorDetails::with_error_info(reason(denial), "avouch", []);
    if code == Code::Unavailable {
        details.set_retry_info(Some(RETRY));
    }
    Status::with_error_details(code, message, details)
}

/// When to try again what nobody could judge.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What ends a gRPC stream.
pub(super) fn trailers(denial: Denial) -> HeaderMap {
    let (mut parts, ()) = status(denial).into_http::<()>().into_parts();
    parts.headers.remove(CONTENT_TYPE);
    parts.headers
}

/// The answer to a request that does not reach the service.
pub(super) fn refuse<B>(
    denial: Denial,
    words: Words,
    requirement: &Requirement,
) -> Response<GuardedBody<B>> {
    match words {
        Words::Grpc => status(denial).into_http::<()>().map(|()| GuardedBody::empty()),
        Words::Http => {
            let mut response = Response::new(GuardedBody::empty());
            let (code, name, value) = http(denial, requirement);
            *response.status_mut() = code;
            response.headers_mut().insert(name, value);
            response
        }
    }
}

/// RFC 6750 section 3: the status, and the header that goes with it.
fn http(denial: Denial, requirement: &Requirement) -> (StatusCode, http::HeaderName, HeaderValue) {
    let challenge = |code, value| (code, WWW_AUTHENTICATE, value);
    match kind(denial) {
        Kind::Missing => challenge(StatusCode::UNAUTHORIZED, HeaderValue::from_static("Bearer")),
        Kind::InvalidToken => challenge(
            StatusCode::UNAUTHORIZED,
            HeaderValue::from_static("Bearer error=\"invalid_token\""),
        ),
        Kind::InsufficientScope => {
            // Scopes have no character that a quoted text would have to escape.
            let value =
                format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", requirement.scope);
            let plain = HeaderValue::from_static("Bearer error=\"insufficient_scope\"");
            challenge(StatusCode::FORBIDDEN, HeaderValue::try_from(value).unwrap_or(plain))
        }
        Kind::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, RETRY_AFTER, HeaderValue::from(RETRY.as_secs()))
        }
    }
}
