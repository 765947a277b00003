//! Adds `authorization` with the token of a source to each request. It knows neither gRPC methods
//! nor how tokens are got.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

use super::token_source::{TokenError, TokenSource};
use super::transport::BoxError;

/// Wraps a channel, or any HTTP client, so that each request carries a good access token.
#[derive(Clone, Debug)]
pub struct AuthorizationLayer {
    source: TokenSource,
}

impl AuthorizationLayer {
    /// With the tokens of `source`.
    pub const fn new(source: TokenSource) -> Self {
        Self { source }
    }
}

impl<S> Layer<S> for AuthorizationLayer {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { inner, source: self.source.clone() }
    }
}

/// What [`AuthorizationLayer`] makes of a client. Without a token, no request is sent.
#[derive(Clone, Debug)]
pub struct Authorized<S> {
    inner: S,
    source: TokenSource,
}

impl<S, B> Service<http::Request<B>> for Authorized<S>
where
    S: Service<http::Request<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // The one that is ready makes the call; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let source = self.source.clone();
        Box::pin(async move {
            let token = source.token().await.map_err(refused)?;
            request.headers_mut().insert(AUTHORIZATION, token.header());
            inner.call(request).await.map_err(Into::into)
        })
    }
}

/// As a gRPC client is told.
fn refused(error: TokenError) -> BoxError {
    let text = format!("no access token: {error}");
    match error {
        TokenError::Ended(_) => Status::unauthenticated(text).into(),
        _ => Status::unavailable(text).into(),
    }
}
