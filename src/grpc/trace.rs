//! One span for each call, in the trace of its caller (W3C Trace Context). It holds the method, the
//! code and the request id, and nothing that a caller wrote but the ids of its trace.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};

use crate::metrics::{Code, Method};
use crate::trace::Call;

/// What a caller says of its trace.
struct Parent<'a>(&'a HeaderMap);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // `tracestate` is free text of the caller, and would leave this process with the span.
        if key != "traceparent" {
            return None;
        }
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// The span of a call that goes on.
pub(super) struct CallSpan(Span);

impl CallSpan {
    /// Begins it.
    pub(super) fn begin(
        tracer: &SdkTracer,
        headers: &HeaderMap,
        method: Method,
        request_id: &str,
    ) -> Self {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Parent(headers));
        let span = tracer.span_builder(method.as_str()).with_kind(SpanKind::Server);
        let span = span.with_attributes([
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.method", method.as_str()),
            KeyValue::new("avouch.request_id", request_id.to_owned()),
        ]);
        Self(span.start_with_context(tracer, &parent))
    }

    /// What its parts are children of, if it is recorded.
    pub(super) fn call(&self, tracer: &SdkTracer) -> Option<Call> {
        Call::of(&self.0, tracer)
    }

    /// Ends it with `code`.
    pub(super) fn end(&mut self, code: Code) {
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", code.number()));
        // What OpenTelemetry counts as an error of the server.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.0.set_status(Status::error(code.as_str()));
        }
        self.0.end();
    }
}
