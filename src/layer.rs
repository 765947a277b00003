//! A tower layer for the services that tokens open: it verifies the token of each request, checks the
//! audience and the scopes, and ends what a token opened when the token ends.
//!
//! It serves tonic and axum alike: a gRPC call is refused in gRPC's words, any other in those of
//! RFC 6750. The handler finds the [`VerifiedToken`] in the request's extensions, as an `Arc`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::verifier::{
    BearerError, Ended, Guard, Policy, Refusal, Requirement, Unmet, VerifiedToken, Verifier, bearer,
};

mod body;
mod refuse;

pub use body::GuardedBody;
use refuse::{Words, refuse};

/// Why a request does not reach the service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Denial {
    Bearer(BearerError),
    Refused(Refusal),
    Unmet(Unmet),
    Ended(Ended),
}

/// Lets requests with a good token through.
#[derive(Clone)]
pub struct VerifyLayer {
    verifier: Verifier,
    requirement: Arc<Requirement>,
    policy: Option<(Policy, Duration)>,
}

impl VerifyLayer {
    /// Requests whose token `verifier` accepts and that has what is required. Name an audience: without
    /// one, a token for any other service opens this one.
    pub fn new(verifier: Verifier, requirement: Requirement) -> Self {
        Self { verifier, requirement: Arc::new(requirement), policy: None }
    }

    /// The same with a policy and a limit of staleness of its own, in place of the verifier's.
    #[must_use]
    pub const fn with_policy(mut self, policy: Policy, max_staleness: Duration) -> Self {
        self.policy = Some((policy, max_staleness));
        self
    }
}

impl<S> Layer<S> for VerifyLayer {
    type Service = VerifyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        VerifyService { layer: self.clone(), inner }
    }
}

/// A service behind a [`VerifyLayer`].
#[derive(Clone)]
pub struct VerifyService<S> {
    layer: VerifyLayer,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for VerifyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<GuardedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let layer = self.layer.clone();
        // The one that was ready is used; the clone has its turn next.
        let inner = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, inner);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let words = Words::of(&parts.headers);
            let verified = match layer.admit(&parts.headers).await {
                Ok(verified) => verified,
                Err(denial) => return Ok(refuse(denial, words, &layer.requirement)),
            };
            parts.extensions.insert(Arc::clone(&verified));
            let handler = inner.call(Request::from_parts(parts, body));
            let opened = Opened::by(layer.verifier.clone(), verified);
            let answer = Guarded { handler, opened };
            match answer.await {
                (Ok(response), opened) => {
                    Ok(response.map(|body| GuardedBody::new(body, opened, words)))
                }
                (Err(Stopped::Error(error)), _) => Err(error),
                (Err(Stopped::Ended(ended)), _) => {
                    Ok(refuse(Denial::Ended(ended), words, &layer.requirement))
                }
            }
        })
    }
}

impl VerifyLayer {
    async fn admit(&self, headers: &HeaderMap) -> Result<Arc<VerifiedToken>, Denial> {
        let values = headers.get_all(AUTHORIZATION).iter().map(|value| value.as_bytes());
        let token = bearer(values).map_err(Denial::Bearer)?;
        let verified = match self.policy {
            None => self.verifier.verify(token).await,
            Some((policy, limit)) => self.verifier.verify_with(token, policy, limit).await,
        };
        let verified = verified.map_err(Denial::Refused)?;
        self.requirement.check(&verified.claims).map_err(Denial::Unmet)?;
        Ok(verified)
    }
}

/// What a token opened. It costs nothing until somebody has to wait.
struct Opened {
    verifier: Verifier,
    token: Arc<VerifiedToken>,
    guard: Option<Guard>,
}

impl Opened {
    const fn by(verifier: Verifier, token: Arc<VerifiedToken>) -> Self {
        Self { verifier, token, guard: None }
    }

    /// Whether it must end. Called when there is nothing else to do: the one that waits is woken.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        let guard = self.guard.get_or_insert_with(|| self.verifier.guard(&self.token));
        Pin::new(guard).poll(context)
    }

    /// Whether it must end, for one that is never idle.
    fn has_ended(&mut self, context: &mut Context<'_>) -> Option<Ended> {
        let guard = self.guard.as_mut()?;
        match Pin::new(guard).poll(context) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }
}

/// What stopped a handler.
enum Stopped<E> {
    Error(E),
    Ended(Ended),
}

pin_project! {
    /// A handler at work, which may last as long as the client sends.
    struct Guarded<F> {
        #[pin]
        handler: F,
        opened: Opened,
    }
}

impl<F, T, E> Future for Guarded<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = (Result<T, Stopped<E>>, Opened);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = match this.handler.poll(context) {
            Poll::Ready(outcome) => outcome.map_err(Stopped::Error),
            Poll::Pending => Err(Stopped::Ended(ready!(this.opened.poll_end(context)))),
        };
        let opened = Opened {
            verifier: this.opened.verifier.clone(),
            token: Arc::clone(&this.opened.token),
            guard: this.opened.guard.take(),
        };
        Poll::Ready((outcome, opened))
    }
}
