//! Answers that a layer gives in a handler's place, as gRPC trailers. `grpc/status.rs` makes every
//! other status; these here are for what it never sees.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// One fixed answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    BadTimeout,
    Panic,
    SlowBody,
    TooLate,
}

impl Refusal {
    fn parts(self) -> (Code, &'static str, &'static str) {
        match self {
            Self::BadTimeout => {
                (Code::InvalidArgument, "grpc-timeout is not well-formed", "BAD_TIMEOUT")
            }
            Self::Panic => (Code::Internal, "internal error", "INTERNAL"),
            Self::SlowBody => {
                (Code::DeadlineExceeded, "the request did not arrive in time", "SLOW_REQUEST")
            }
            Self::TooLate => (Code::DeadlineExceeded, "deadline exceeded", "DEADLINE_EXCEEDED"),
        }
    }

    /// As a status, for an error that passes through tonic.
    pub(super) fn status(self) -> Status {
        let (code, message, reason) = self.parts();
        Status::with_error_details(
            code,
            message,
            ErrorDetails::with_error_info(reason, "avouch", []),
        )
    }

    /// The trailers that say it.
    pub(super) fn trailers(self) -> HeaderMap {
        let status = self.status();
        let mut trailers = HeaderMap::new();
        // Adding cannot fail for these texts; without the trailers the peer sees a broken stream.
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", HeaderValue::from_static("13"));
        }
        trailers
    }

    /// A response of these trailers only.
    pub(super) fn response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.headers_mut() = self.trailers();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}
