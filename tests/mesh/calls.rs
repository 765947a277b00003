//! gRPC through the proxy: calls and streams, with the codes that gRPC clients know.

use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::process::PATIENCE;
use crate::proxy::Kind;
use crate::raw::Place;
use crate::rig::{Rig, over_unix};

#[tokio::test]
async fn envoy_takes_grpc() {
    takes_grpc(Kind::Envoy).await;
}

#[tokio::test]
async fn nginx_takes_grpc() {
    takes_grpc(Kind::Nginx).await;
}

async fn takes_grpc(kind: Kind) {
    let rig = Rig::start(kind).await;
    let tokens = rig.server.login(&[]).await;
    let narrow = rig.server.login(&["orders:write"]).await;
    let channel = match &rig.proxy.grpc {
        Place::Unix(path) => over_unix(path).await.expect("it listens"),
        Place::Tcp(address) => {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
            endpoint.connect().await.expect("it listens")
        }
    };

    check(&channel, Some(&tokens.access_token)).await.expect("it passes");
    let seen = rig.workload.take().pop().expect("it was asked");
    assert_eq!(seen.target, "/grpc.health.v1.Health/Check");
    let subject: &str = &tokens.subject;
    assert_eq!(seen.header("x-avouch-subject"), [subject]);
    assert_eq!(seen.header("te"), ["trailers"]);

    for (token, code) in [
        (None, Code::Unauthenticated),
        (Some("x.y.z"), Code::Unauthenticated),
        (Some(narrow.access_token.as_str()), Code::PermissionDenied),
    ] {
        let status = check(&channel, token).await.expect_err("it does not pass");
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(rig.workload.take().len(), 0);
    }

    // A stream: opened once and for all. It is the next that a revocation stops.
    let mut stream = watch(&channel, &tokens.access_token).await.expect("it passes").into_inner();
    let first = timeout(PATIENCE, stream.message()).await.expect("in time").expect("a message");
    assert!(first.is_some());
    rig.workload.take();
    rig.server.revoke(&tokens, Some(std::time::Duration::from_secs(30))).await;
    let refused = watch(&channel, &tokens.access_token).await.expect_err("it is revoked");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let refused = check(&channel, Some(&tokens.access_token)).await.expect_err("it is revoked");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert_eq!(rig.workload.take().len(), 0);
}

fn request(token: Option<&str>) -> Request<HealthCheckRequest> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// A call. As in [`Rig::ask`], one that was not decided in time is made again.
async fn check(channel: &Channel, token: Option<&str>) -> Result<(), Status> {
    let decided = async {
        loop {
            let answer = HealthClient::new(channel.clone()).check(request(token)).await;
            match answer {
                Err(status) if status.code() == Code::Unavailable => {}
                answer => return answer.map(drop),
            }
        }
    };
    timeout(PATIENCE, decided).await.expect("it is decided")
}

type Stream = tonic::Response<tonic::Streaming<tonic_health::pb::HealthCheckResponse>>;

/// The same for a stream.
async fn watch(channel: &Channel, token: &str) -> Result<Stream, Status> {
    let decided = async {
        loop {
            let answer = HealthClient::new(channel.clone()).watch(request(Some(token))).await;
            match answer {
                Err(status) if status.code() == Code::Unavailable => {}
                answer => return answer,
            }
        }
    };
    timeout(PATIENCE, decided).await.expect("it is decided")
}
