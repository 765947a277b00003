//! The public keys and the issuer's metadata, for verifiers that know no avouch: Envoy, Istio, API
//! gateways, JWT libraries.
//!
//! The metadata says only what is true. avouch issues tokens over gRPC, so RFC 8414's endpoints are
//! not there; `response_types_supported` is, because it must, and is empty. OpenID Connect demands
//! an authorization endpoint and ID tokens, which avouch has not: `openid-configuration` is the
//! part of it that verifiers read to find the keys, as Kubernetes serves it for service accounts.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;

/// How long a verifier may keep the keys. Far shorter than a key is announced before it signs.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// Where the published keys come from.
pub trait KeySetSource: Send + Sync + 'static {
    /// The JWK Set as it is now.
    fn current(&self) -> KeySetDocument;
}

impl<F: Fn() -> KeySetDocument + Send + Sync + 'static> KeySetSource for F {
    fn current(&self) -> KeySetDocument {
        self()
    }
}

/// A JWK Set (RFC 7517 section 5) and what tells it from others.
#[derive(Clone, Debug)]
pub struct KeySetDocument {
    /// The JSON.
    pub body: Bytes,
    /// Something that changes when the JSON does: a digest, without quotes.
    pub etag: String,
}

/// What the metadata says.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// The `iss` of the tokens.
    pub issuer: String,
    /// How they are signed: the `alg` of every published key.
    pub algorithms: Vec<&'static str>,
}

impl Metadata {
    fn jwks_uri(&self) -> String {
        format!("{}/.well-known/jwks.json", self.issuer)
    }

    /// RFC 8414.
    fn oauth(&self) -> Bytes {
        json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri(),
            "response_types_supported": [],
            "grant_types_supported": ["client_credentials", "password", "refresh_token"],
        })
        .to_string()
        .into()
    }

    /// As much of OpenID Connect Discovery 1.0 as a verifier needs.
    fn openid(&self) -> Bytes {
        json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri(),
            "response_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.algorithms,
        })
        .to_string()
        .into()
    }
}

/// Serves the keys and the metadata under `/.well-known/`.
pub fn router(keys: impl KeySetSource, metadata: &Metadata) -> Router {
    let keys: Arc<dyn KeySetSource> = Arc::new(keys);
    let fixed = |body: Bytes| get(move |headers| document(headers, etag_of(&body), body, JSON));
    Router::new()
        .route("/.well-known/jwks.json", get(jwks))
        .with_state(keys)
        .route("/.well-known/oauth-authorization-server", fixed(metadata.oauth()))
        .route("/.well-known/openid-configuration", fixed(metadata.openid()))
}

const JSON: &str = "application/json";

async fn jwks(State(keys): State<Arc<dyn KeySetSource>>, headers: HeaderMap) -> Response {
    let current = keys.current();
    document(headers, current.etag, current.body, "application/jwk-set+json").await
}

/// The metadata never changes while the process runs; its version tells it from that of another.
fn etag_of(body: &Bytes) -> String {
    let sum = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{sum:016x}")
}

async fn document(headers: HeaderMap, etag: String, body: Bytes, kind: &'static str) -> Response {
    let etag = format!("\"{etag}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().any(|value| matches(value, &etag));
    let Ok(etag) = HeaderValue::from_str(&etag) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let common = [(CACHE_CONTROL, CACHE), (ETAG, etag)];
    if known {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(CONTENT_TYPE, kind)], Body::from(body)).into_response()
}

/// Whether `If-None-Match` names this version (RFC 9110 section 13.1.2: weak comparison).
fn matches(value: &HeaderValue, etag: &str) -> bool {
    value.to_str().is_ok_and(|list| {
        list.split(',')
            .map(str::trim)
            .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn service() -> Router {
        let metadata =
            Metadata { issuer: "https://id.example.com".into(), algorithms: vec!["ES256"] };
        let keys = || KeySetDocument { body: "{\"keys\":[]}".into(), etag: "v1".into() };
        router(keys, &metadata)
    }

    async fn call(method: &str, path: &str, known: Option<&str>) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known);
        }
        service().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn serves_the_keys_with_a_version_that_saves_the_next_transfer() {
        let path = "/.well-known/jwks.json";
        let response = call("GET", path, None).await;
        assert_eq!(response.headers()[ETAG], "\"v1\"");
        assert_eq!(response.headers()[CACHE_CONTROL], "public, max-age=300");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "{\"keys\":[]}");
        for known in ["\"v1\"", "W/\"v1\"", "\"v0\", \"v1\"", "*"] {
            assert_eq!(call("GET", path, Some(known)).await.status(), 304, "{known}");
        }
        assert_eq!(call("GET", path, Some("\"v2\"")).await.status(), 200);
        let head = call("HEAD", path, None).await;
        assert_eq!(
            (head.status().as_u16(), &head.headers()[ETAG]),
            (200, &HeaderValue::from_static("\"v1\""))
        );
        assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
        assert_eq!(call("POST", path, None).await.status(), 405);
    }

    #[tokio::test]
    async fn metadata_leads_to_the_keys_and_claims_no_endpoint() {
        for path in ["/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"]
        {
            let response = call("GET", path, None).await;
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["issuer"], "https://id.example.com");
            assert_eq!(json["jwks_uri"], "https://id.example.com/.well-known/jwks.json");
            assert_eq!(json["response_types_supported"], json!([]));
            assert!(json.as_object().unwrap().keys().all(|key| !key.ends_with("_endpoint")));
        }
    }
}
