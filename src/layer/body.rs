//! A body that ends with the token that opened it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::refuse::{Words, trailers};
use super::{Denial, Ended, Opened};

/// What bodies fail with.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The token that opened an answer has ended before the answer did.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the token that opened this has ended")]
struct TokenEnded;

pin_project! {
    /// The body of an answer. When the token that opened it is revoked or expires, a gRPC answer ends
    /// with UNAUTHENTICATED, and any other breaks off, so that nobody takes it for whole.
    pub struct GuardedBody<B> {
        #[pin]
        body: Option<B>,
        opened: Option<Opened>,
        words: Words,
    }
}

impl<B> GuardedBody<B> {
    pub(super) const fn new(body: B, opened: Opened, words: Words) -> Self {
        Self { body: Some(body), opened: Some(opened), words }
    }

    /// The body of a refusal: nothing.
    pub(super) const fn empty() -> Self {
        Self { body: None, opened: None, words: Words::Http }
    }
}

/// How a body that must end does so.
fn last_words(words: Words, ended: Ended) -> Result<HeaderMap, BoxError> {
    match words {
        Words::Grpc => Ok(trailers(Denial::Ended(ended))),
        Words::Http => Err(Box::new(TokenEnded)),
    }
}

impl<B> Body for GuardedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let Some(body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let Some(opened) = this.opened else { return Poll::Ready(None) };
        let mut ended = opened.has_ended(context);
        if ended.is_none() {
            match body.poll_frame(context) {
                Poll::Ready(frame) => {
                    return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
                }
                Poll::Pending => match opened.poll_end(context) {
                    Poll::Ready(end) => ended = Some(end),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        let Some(ended) = ended else { return Poll::Pending };
        this.body.set(None);
        *this.opened = None;
        Poll::Ready(Some(last_words(*this.words, ended).map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
