//! Diagnostics: one subscriber for the process, lines to stderr; and the way of spans to a collector.
//! Knows nothing of what is logged or traced.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Why diagnostics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error("log.level is neither a level nor a filter: {0}")]
    Filter(#[from] ParseError),
    /// Somebody set a subscriber before.
    #[error("diagnostics are set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// The endpoint makes no sense.
    #[error("telemetry.otlp_endpoint cannot be used: {0}")]
    Endpoint(#[from] ExporterBuildError),
}

/// Sends diagnostics to stderr, one JSON object a line or text for eyes. `level` is a level or a
/// filter such as `info,avouch::store=debug`.
///
/// # Errors
/// When the filter makes no sense or diagnostics are set up already.
pub fn init(json: bool, level: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(level)?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        subscriber.json().flatten_event(true).with_current_span(false).finish().try_init()?;
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        subscriber.with_ansi(ansi).finish().try_init()?;
    }
    Ok(())
}

/// What every span and every audit event says of this process: name, version, and what
/// `OTEL_RESOURCE_ATTRIBUTES` adds.
fn resource() -> Resource {
    Resource::builder()
        .with_service_name("avouch")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The same as text, by name.
pub fn resource_attributes() -> Vec<(String, String)> {
    let resource = resource();
    resource.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// How long the last spans may take on their way.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// How long the collector may take for one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends spans to a collector, from a thread of its own. A span that finds no room is lost; nobody
/// waits for one.
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// To the collector at `endpoint`, by OTLP over gRPC. Of calls whose caller does not say whether
    /// they are traced, `sample_percent` of 100 are. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the endpoint makes no sense. A collector that cannot be reached is none: it is tried
    /// again with each batch, and the log tells.
    pub fn to(endpoint: &str, sample_percent: u32) -> Result<Self, TelemetryError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let sampler = Sampler::TraceIdRatioBased(f64::from(sample_percent.min(100)) / 100.0);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_resource(resource())
            .build();
        Ok(Self { provider })
    }

    /// Where spans begin.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer_with_scope(InstrumentationScope::builder("avouch").build())
    }

    /// Sends what is left, for at most two seconds. It blocks.
    pub fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}
