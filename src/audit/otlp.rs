//! The audit log as log records of OpenTelemetry, to a collector by OTLP over gRPC. An event is
//! written once the collector has said that it took it; until then it is sent again, and may arrive
//! twice.

use std::io;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::event::Level;
use super::sink::{Line, Sink};
use super::writer::AuditOpenError;

/// How long the collector may take for one request.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before what the collector did not take is sent again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A request ends after the line that reaches this. A collector takes 4 MiB by default, and a record
/// is about twice its line.
const MAX_LINE_BYTES: usize = 512 << 10;

/// A collector of the audit log.
#[derive(Clone, Debug)]
pub struct Collector {
    /// `http://host:port`, or `https://` with a CA.
    pub endpoint: String,
    /// The CA of its certificate, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// What tells this process from others, in every request: `service.name` and the like.
    pub resource: Vec<(String, String)>,
}

/// Sends lines from the thread that it is used on.
pub(super) struct OtlpSink {
    runtime: Runtime,
    endpoint: Endpoint,
    /// Made by the first request: it needs the runtime.
    client: Option<LogsServiceClient<Channel>>,
    resource: Resource,
    waiting: Vec<LogRecord>,
    bytes: usize,
    /// Whether a request in this batch was lost.
    lost: bool,
    /// Whether the collector takes nothing now; closed when nobody uses the log any more.
    away: watch::Sender<bool>,
}

impl OtlpSink {
    pub(super) fn new(
        collector: Collector,
        away: watch::Sender<bool>,
    ) -> Result<Self, AuditOpenError> {
        let Collector { endpoint, ca_pem, resource } = collector;
        let refused = |error: tonic::transport::Error| AuditOpenError::Collector(error.to_string());
        let mut endpoint = Endpoint::from_shared(endpoint).map_err(refused)?;
        if let Some(pem) = ca_pem {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).map_err(refused)?;
        }
        Ok(Self {
            // Of its own: what else the process does neither delays the audit log nor is delayed.
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(AuditOpenError::Thread)?,
            endpoint: endpoint.timeout(EXPORT_TIMEOUT).connect_timeout(EXPORT_TIMEOUT),
            client: None,
            resource: Resource {
                attributes: resource.into_iter().map(|(key, text)| attribute(key, text)).collect(),
                ..Resource::default()
            },
            waiting: Vec::new(),
            bytes: 0,
            lost: false,
            away,
        })
    }

    /// Sends what waits, again and again until the collector takes or refuses it.
    fn send(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.bytes = 0;
        let request = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource.clone()),
                scope_logs: vec![ScopeLogs {
                    scope: Some(InstrumentationScope {
                        name: "avouch.audit".to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    log_records: std::mem::take(&mut self.waiting),
                    ..ScopeLogs::default()
                }],
                ..ResourceLogs::default()
            }],
        };
        let Self { runtime, endpoint, client, away, .. } = self;
        let taken = runtime.block_on(async {
            let client =
                client.get_or_insert_with(|| LogsServiceClient::new(endpoint.connect_lazy()));
            until_taken(client, request, away).await
        });
        self.lost |= !taken;
    }
}

/// Whether the collector took all of it.
async fn until_taken(
    client: &mut LogsServiceClient<Channel>,
    request: ExportLogsServiceRequest,
    away: &watch::Sender<bool>,
) -> bool {
    loop {
        let status = match client.export(request.clone()).await {
            Ok(answer) => {
                if away.send_replace(false) {
                    tracing::info!("the audit collector takes events again");
                }
                let refused = answer.into_inner().partial_success.unwrap_or_default();
                let (records, why) = (refused.rejected_log_records, refused.error_message);
                if records > 0 {
                    tracing::error!(records, why, "the audit collector refused events");
                }
                return records <= 0;
            }
            Err(status) => status,
        };
        let (code, why) = (status.code(), status.message());
        if !is_worth_a_retry(&status) {
            away.send_replace(false);
            tracing::error!(?code, why, "the audit collector refused events");
            return false;
        }
        if !away.send_replace(true) {
            tracing::error!(?code, why, "the audit collector takes no events; they wait");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_AFTER) => {}
            // Nobody is left to wait for it.
            () = away.closed() => return false,
        }
    }
}

/// As OTLP says which failures may be over later (OTLP 1.5, "OTLP/gRPC response").
fn is_worth_a_retry(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => status.get_details_retry_info().is_some(),
        // A transport that broke says so. A collector would not.
        Code::Unknown => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

impl Sink for OtlpSink {
    fn write_line(&mut self, line: &Line) -> io::Result<()> {
        self.bytes += line.text.len();
        self.waiting.push(record(line));
        if self.bytes >= MAX_LINE_BYTES {
            self.send();
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send();
        if std::mem::take(&mut self.lost) {
            return Err(io::Error::other("the collector refused events"));
        }
        Ok(())
    }

    /// What it has taken is its own to keep.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line as a record: whole as the body, its members as attributes.
fn record(line: &Line) -> LogRecord {
    let text = line.text.trim_end();
    let members: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).unwrap_or_default();
    let level = line.name.level();
    let at = line.at.as_millis().saturating_mul(1_000_000);
    LogRecord {
        time_unix_nano: at,
        observed_time_unix_nano: at,
        severity_number: severity(level).into(),
        severity_text: level.as_str().to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) }),
        event_name: line.name.as_str().to_owned(),
        attributes: members
            .into_iter()
            .filter(|(name, _)| !matches!(name.as_str(), "event" | "level" | "ts"))
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => attribute(format!("avouch.{name}"), text),
                other => attribute(format!("avouch.{name}"), other.to_string()),
            })
            .collect(),
        ..LogRecord::default()
    }
}

const fn severity(level: Level) -> SeverityNumber {
    match level {
        Level::Info => SeverityNumber::Info,
        Level::Warn => SeverityNumber::Warn,
        Level::Critical => SeverityNumber::Error2,
    }
}

fn attribute(key: String, text: String) -> KeyValue {
    KeyValue {
        key,
        value: Some(AnyValue { value: Some(Value::StringValue(text)) }),
        ..KeyValue::default()
    }
}
