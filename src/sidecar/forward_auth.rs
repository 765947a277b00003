//! The question as nginx (`auth_request`), Traefik (`ForwardAuth`) and Caddy (`forward_auth`) ask it: a
//! request with the headers of the client, and what it wants in headers that the proxy sets.
//!
//! Each dialect has a path of its own, which reads the headers of that dialect and no others. One that
//! read both would take `X-Original-URI` from a client whose proxy sets `X-Forwarded-Uri`.
//!
//! A proxy that asks this way keeps the client's headers and copies ours over them. What it does not
//! copy it would let through, so a request with a header that is not a client's to send is denied.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::gate::{Answer, Asked, Gate};
use super::identity::is_ours;
use crate::metrics::sidecar::{Entry, Reason};

/// The headers by which a proxy tells what the client wants.
#[derive(Clone, Copy)]
struct Dialect {
    method: &'static str,
    target: &'static str,
}

/// nginx, as its documentation has it.
const NGINX: Dialect = Dialect { method: "x-original-method", target: "x-original-uri" };
/// Traefik and Caddy.
const FORWARDED: Dialect = Dialect { method: "x-forwarded-method", target: "x-forwarded-uri" };

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Answers at `/auth/nginx` and `/auth/forwarded`, whatever the method.
pub fn router(gate: Arc<Gate>) -> Router {
    let ask = |dialect: Dialect| {
        any(move |State(gate): State<Arc<Gate>>, headers: HeaderMap| async move {
            answer(&gate, dialect, &headers).await
        })
    };
    Router::new()
        .route("/auth/nginx", ask(NGINX))
        .route("/auth/forwarded", ask(FORWARDED))
        .with_state(gate)
}

async fn answer(gate: &Gate, dialect: Dialect, headers: &HeaderMap) -> Response {
    match gate.judge(Entry::ForwardAuth, asked(dialect, headers)).await {
        Answer::Allow(allowed) => {
            let mut response = StatusCode::OK.into_response();
            response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
            for (name, value) in allowed.identity.iter().flat_map(|identity| identity.headers()) {
                // Its characters were looked at; were one wrong, nobody may pass without it.
                let Ok(value) = HeaderValue::from_str(value) else {
                    return StatusCode::FORBIDDEN.into_response();
                };
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
            response
        }
        Answer::Deny(denied) => {
            let status = StatusCode::from_u16(denied.status()).unwrap_or(StatusCode::FORBIDDEN);
            let mut response = status.into_response();
            response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
            let challenge = denied.challenge();
            if let Some(Ok(value)) = challenge.as_deref().map(HeaderValue::from_str) {
                response.headers_mut().insert(WWW_AUTHENTICATE, value);
            }
            response
        }
        Answer::Unavailable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(CACHE_CONTROL, NO_STORE), (RETRY_AFTER, HeaderValue::from_static("1"))],
        )
            .into_response(),
    }
}

fn asked(dialect: Dialect, headers: &HeaderMap) -> Result<Asked<'_>, Reason> {
    for (name, value) in headers {
        if is_ours(name.as_str().as_bytes()) {
            return Err(Reason::IdentityHeader);
        }
        if std::str::from_utf8(value.as_bytes()).is_err() {
            return Err(Reason::Malformed);
        }
    }
    Ok(Asked {
        method: only(headers, dialect.method)?,
        target: only(headers, dialect.target)?,
        authorization: headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes).collect(),
    })
}

/// A header that is there once. A second one is not from the proxy.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a [u8], Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value.as_bytes()),
        _ => Err(Reason::Malformed),
    }
}
