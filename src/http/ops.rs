//! `/metrics`, `/livez` and `/readyz`, for a listener of their own.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::lifecycle::Readiness;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves the registry and the readiness. `before_scrape` runs before each scrape: it is where
/// gauges that nobody pushes get their values, so keep it quick.
pub fn router(
    registry: Arc<Registry>,
    readiness: Readiness,
    before_scrape: impl Fn() + Send + Sync + 'static,
) -> Router {
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .with_state(Scrape { registry, before: Arc::new(before_scrape) });
    Router::new()
        // Only that the event loop turns: a store that is slow to open must not get us killed.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness)
        .merge(metrics)
}

#[derive(Clone)]
struct Scrape {
    registry: Arc<Registry>,
    before: Arc<dyn Fn() + Send + Sync>,
}

async fn metrics(State(scrape): State<Scrape>) -> Response {
    (scrape.before)();
    let mut text = String::new();
    match encode(&mut text, &scrape.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let status = readiness.status();
    let code = if status.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{status}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::metrics::{FeedLevels, Metrics};

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn lives_at_once_and_is_ready_when_the_latches_are_released() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let readiness = Readiness::default();
        let latch = readiness.register("store");
        let router = router(Arc::new(registry), readiness, move || {
            metrics.feed(FeedLevels { watchers: 3, ..FeedLevels::default() });
        });
        assert_eq!(get(&router, "/livez").await.0, StatusCode::OK);
        let (status, text) = get(&router, "/readyz").await;
        assert_eq!((status.as_u16(), text.as_str()), (503, "waiting for: store\n"));
        latch.release();
        assert_eq!(get(&router, "/readyz").await, (StatusCode::OK, "ready\n".into()));
        let (_, text) = get(&router, "/metrics").await;
        assert!(text.contains("avouch_watchers 3") && text.ends_with("# EOF\n"));
        assert_eq!(get(&router, "/").await.0, StatusCode::NOT_FOUND);
    }
}
