//! Child spans of the call that a task serves. A call that is not recorded has none, and then all of
//! this is a look at a thread-local variable.
//!
//! Names, keys and values are texts of this program: nothing that somebody sent, and nothing about
//! anybody, fits into a span.

use std::sync::Arc;

use opentelemetry::trace::{Span as _, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};

tokio::task_local! {
    static CALL: Call;
}

/// A call that is recorded.
#[derive(Clone)]
pub struct Call(Arc<(SdkTracer, Context)>);

impl Call {
    /// The call that `span` is of, if it is recorded.
    pub fn of(span: &Span, tracer: &SdkTracer) -> Option<Self> {
        span.is_recording().then(|| {
            let context = Context::new().with_remote_span_context(span.span_context().clone());
            Self(Arc::new((tracer.clone(), context)))
        })
    }

    /// Runs `work` for this call: spans that begin in it are children of the call's.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        CALL.sync_scope(self.clone(), work)
    }

    fn begin(&self, name: &'static str) -> Child {
        let (tracer, context) = &*self.0;
        let span = tracer.span_builder(name).start_with_context(tracer, context);
        Child(Some(Box::new((span, self.clone()))))
    }
}

/// A part of a call. It ends when it is dropped.
#[must_use = "it ends when it is dropped"]
pub struct Child(Option<Box<(Span, Call)>>);

/// Begins a part of the call that this task serves.
pub fn child(name: &'static str) -> Child {
    CALL.try_with(|call| call.begin(name)).unwrap_or(Child(None))
}

impl Child {
    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: &'static str) {
        if let Some((span, _)) = self.0.as_deref_mut() {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that it failed, and how.
    pub fn fail(&mut self, error: &'static str) {
        if let Some((span, _)) = self.0.as_deref_mut() {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(error));
        }
    }

    /// Ends it and begins the next part of the same call, on whatever thread.
    pub fn then(self, name: &'static str) -> Self {
        self.0.as_deref().map_or(Self(None), |(_, call)| call.begin(name))
    }
}
