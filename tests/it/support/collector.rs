//! An OpenTelemetry collector in this process, which keeps what it gets and says what it is told to.

use std::sync::{Arc, Mutex, MutexGuard};

use avouch::domain::entropy::SeededEntropy;
use avouch::listen::listener::Listener;
use avouch::listen::settings::ListenSettings;
use avouch::listen::tls::TlsSettings;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

/// What it says to log records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    /// It takes them.
    Yes,
    /// It takes them all but this many.
    AllBut(i64),
    /// It takes none.
    No(Code),
}

#[derive(Default)]
struct Kept {
    traces: Vec<ExportTraceServiceRequest>,
    logs: Vec<ExportLogsServiceRequest>,
}

/// A collector that keeps everything that it takes.
#[derive(Clone)]
pub(crate) struct Collector {
    kept: Arc<Mutex<Kept>>,
    says: watch::Sender<Says>,
    /// How often it was asked to take log records.
    pub(crate) asked: watch::Sender<u64>,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            kept: Arc::default(),
            says: watch::Sender::new(Says::Yes),
            asked: watch::Sender::new(0),
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.kept().traces.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.asked.send_modify(|asked| *asked += 1);
        let says = *self.says.borrow();
        if let Says::No(code) = says {
            #[expect(clippy::disallowed_methods, reason = "whatever a collector may say")]
            return Err(Status::new(code, "as it was told"));
        }
        self.kept().logs.push(request.into_inner());
        let mut answer = ExportLogsServiceResponse::default();
        if let Says::AllBut(rejected_log_records) = says {
            let error_message = "as it was told".to_owned();
            let part = ExportLogsPartialSuccess { rejected_log_records, error_message };
            answer.partial_success = Some(part);
        }
        Ok(Response::new(answer))
    }
}

impl Collector {
    /// Serves until the test is over; gives where.
    pub(crate) fn serve(&self) -> String {
        self.serve_with(None)
    }

    /// The same with a certificate.
    pub(crate) fn serve_with(&self, tls: Option<TlsSettings>) -> String {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = "127.0.0.1:0".parse().expect("an address");
        let jitter = Arc::new(SeededEntropy::new(7));
        let listener = Listener::bind(address, ListenSettings::default(), tls, jitter);
        let listener = listener.expect("a listener");
        let port = listener.local_addr().port();
        let routes = tonic::service::Routes::new(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .prepare()
            .into_axum_router();
        tokio::spawn(listener.serve(routes, CancellationToken::new(), std::time::Duration::ZERO));
        format!("{scheme}://localhost:{port}")
    }

    /// What it says to log records from now on.
    pub(crate) fn say(&self, says: Says) {
        self.says.send_replace(says);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("not poisoned")
    }

    pub(crate) fn traces(&self) -> Vec<ExportTraceServiceRequest> {
        self.kept().traces.clone()
    }

    pub(crate) fn logs(&self) -> Vec<ExportLogsServiceRequest> {
        self.kept().logs.clone()
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let resources = self.traces().into_iter().flat_map(|request| request.resource_spans);
        resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
    }

    pub(crate) fn records(&self) -> Vec<LogRecord> {
        let resources = self.logs().into_iter().flat_map(|request| request.resource_logs);
        resources.flat_map(|it| it.scope_logs).flat_map(|it| it.log_records).collect()
    }

    /// Everything that it was sent, as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let kept = self.kept();
        let traces = kept.traces.iter().flat_map(prost::Message::encode_to_vec);
        traces.chain(kept.logs.iter().flat_map(prost::Message::encode_to_vec)).collect()
    }
}

/// The value of an attribute.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|it| it.key == key)?.value.clone()?.value?;
    match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::BoolValue(flag) => Some(flag.to_string()),
        _ => None,
    }
}
