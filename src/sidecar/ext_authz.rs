//! `envoy.service.auth.v3.Authorization` for Envoy's filter `ext_authz`.
//!
//! Every question that arrives gets an answer, and it is a denial if the question cannot be understood:
//! an error of the call is Envoy's to judge, and with `failure_mode_allow` it lets the request pass. The
//! one error that the gate gives is UNAVAILABLE, when nobody can tell whether a token was revoked.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::HeaderName;
use http_body::Body;
use prost::Message as _;
use tonic::body::Body as TonicBody;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Response, Status};
use tonic_prost::ProstEncoder;
use tower_service::Service;

use super::gate::{Allowed, Answer, Asked, Denied, Gate};
use super::identity::is_ours;
use super::wire::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpRequest, HttpResponse,
    HttpStatus, OkHttpResponse, RpcStatus,
};
use crate::metrics::sidecar::{Entry, Reason};

/// The name of the service, also for health.
pub const SERVICE_NAME: &str = "envoy.service.auth.v3.Authorization";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The largest question. Envoy's own limit for the headers of a request is 60 KiB.
const MAX_QUESTION_BYTES: usize = 1024 * 1024;
/// The most headers; Envoy's own default is 100.
const MAX_HEADERS: usize = 500;

/// A message of no bytes, as gRPC frames it.
const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// Answers Envoy.
#[derive(Clone)]
pub struct Authorization {
    gate: Arc<Gate>,
}

impl Authorization {
    /// Answers as `gate` judges.
    pub const fn new(gate: Arc<Gate>) -> Self {
        Self { gate }
    }

    async fn check(&self, question: Bytes) -> Result<CheckResponse, Status> {
        // What is kept of the question lives as long as the answer is being made.
        let question = CheckRequest::decode(question);
        let http = question.ok().and_then(|question| question.attributes?.request?.http);
        let asked = http.as_ref().ok_or(Reason::Malformed).and_then(asked);
        match self.gate.judge(Entry::ExtAuthz, asked).await {
            Answer::Allow(allowed) => Ok(self.allow(&allowed, http.as_ref())),
            Answer::Deny(denied) => Ok(deny(&denied)),
            Answer::Unavailable(_) => {
                Err(Status::unavailable("revocations are not known up to now"))
            }
        }
    }

    /// Envoy sets headers first and removes after, so what is set must not be removed. What is not set is
    /// removed in every spelling, whether or not Envoy showed it: it may be told to show only some.
    fn allow(&self, allowed: &Allowed, http: Option<&HttpRequest>) -> CheckResponse {
        let identity = allowed.identity.iter().flat_map(|identity| identity.headers());
        let headers: Vec<(&str, &str)> = identity.collect();
        let is_set =
            |name: &[u8]| headers.iter().any(|(set, _)| set.as_bytes().eq_ignore_ascii_case(name));
        let spellings = self.gate.spellings();
        let mut remove: Vec<String> =
            spellings.iter().filter(|name| !is_set(name.as_bytes())).cloned().collect();
        for (name, _) in http.iter().flat_map(|http| http.each_header()) {
            let name = name.to_ascii_lowercase();
            if is_ours(&name)
                && !is_set(&name)
                && let Ok(name) = String::from_utf8(name)
                && !remove.contains(&name)
            {
                remove.push(name);
            }
        }
        if !allowed.forward_token {
            remove.push(http::header::AUTHORIZATION.as_str().to_owned());
        }
        CheckResponse {
            status: Some(RpcStatus { code: Code::Ok as i32 }),
            http_response: Some(HttpResponse::Ok(OkHttpResponse {
                headers: headers
                    .iter()
                    .map(|(name, value)| HeaderValueOption::set(name, value))
                    .collect(),
                headers_to_remove: remove,
            })),
        }
    }
}

fn deny(denied: &Denied) -> CheckResponse {
    let mut headers = vec![HeaderValueOption::set("cache-control", "no-store")];
    if let Some(challenge) = denied.challenge() {
        headers.push(HeaderValueOption::set("www-authenticate", &challenge));
    }
    let code = if denied.status() == 401 { Code::Unauthenticated } else { Code::PermissionDenied };
    CheckResponse {
        status: Some(RpcStatus { code: code as i32 }),
        http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
            status: Some(HttpStatus { code: denied.status().into() }),
            headers,
        })),
    }
}

/// What Envoy asks about.
fn asked(http: &HttpRequest) -> Result<Asked<'_>, Reason> {
    if http.each_header().count() > MAX_HEADERS {
        return Err(Reason::TooLarge);
    }
    let mut asked = Asked { method: &http.method, target: &http.path, authorization: Vec::new() };
    for (name, value) in http.each_header() {
        // Names of HTTP/2 begin with a colon where they are not a header's.
        let header = name.strip_prefix(b":").unwrap_or(name);
        let is_header = HeaderName::from_bytes(header).is_ok();
        if !is_header || std::str::from_utf8(value).is_err() {
            return Err(Reason::Malformed);
        }
        if name.eq_ignore_ascii_case(b"authorization") {
            asked.authorization.push(value);
        }
    }
    Ok(asked)
}

impl NamedService for Authorization {
    const NAME: &'static str = SERVICE_NAME;
}

type Answered = Pin<Box<dyn Future<Output = Result<http::Response<TonicBody>, Infallible>> + Send>>;

impl<B> Service<http::Request<B>> for Authorization
where
    B: Body + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<TonicBody>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answered {
        let this = self.clone();
        Box::pin(async move {
            if request.uri().path() != CHECK {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let mut grpc =
                Grpc::new(CheckCodec).apply_max_message_size_config(Some(MAX_QUESTION_BYTES), None);
            let response = grpc.unary(Check(this.clone()), request).await;
            let too_large = response
                .headers()
                .get(Status::GRPC_STATUS)
                .is_some_and(|code| *code == (Code::OutOfRange as i32).to_string());
            if !too_large {
                return Ok(response);
            }
            // Its size is the client's doing, so it is no error of the call either.
            let judged = this.gate.judge(Entry::ExtAuthz, Err(Reason::TooLarge)).await;
            let answer = match judged {
                Answer::Deny(denied) => deny(&denied),
                Answer::Allow(_) | Answer::Unavailable(_) => deny(&Reason::TooLarge.into()),
            };
            let nothing = http::Request::new(http_body_util::Full::new(EMPTY_MESSAGE));
            Ok(Grpc::new(CheckCodec).unary(Fixed(answer), nothing).await)
        })
    }
}

/// The one method.
struct Check(Authorization);

impl UnaryService<Bytes> for Check {
    type Response = CheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CheckResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let this = self.0.clone();
        Box::pin(async move { this.check(request.into_inner()).await.map(Response::new) })
    }
}

/// The same answer whatever the question.
struct Fixed(CheckResponse);

impl UnaryService<Bytes> for Fixed {
    type Response = CheckResponse;
    type Future = std::future::Ready<Result<Response<CheckResponse>, Status>>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.clone())))
    }
}

/// Leaves the question as the bytes that it is.
struct CheckCodec;

impl Codec for CheckCodec {
    type Encode = CheckResponse;
    type Decode = Bytes;
    type Encoder = ProstEncoder<CheckResponse>;
    type Decoder = Undecoded;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Undecoded {
        Undecoded
    }
}

struct Undecoded;

impl Decoder for Undecoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = src.remaining();
        Ok(Some(src.copy_to_bytes(length)))
    }
}
