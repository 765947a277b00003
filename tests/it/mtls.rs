//! Callers that are known by their certificates.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use avouch::app::Options;
use avouch::domain::caller::{Grant, Right};
use avouch::domain::client::Client;
use avouch::domain::clock::ManualClock;
use avouch::grpc::caller::CertificateGrant;
use avouch::listen::tls::{ClientAuth, TlsSettings};
use avouch::pb::v1 as pb;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::{NOW, Server, client, memory, options, password_login, reason};
use crate::process::PATIENCE;
use crate::sidecar::rig::{Said, Sidecar};

const GATEWAY: &str = "spiffe://mesh.test/ns/edge/sa/gateway";
const ORDERS: &str = "spiffe://mesh.test/ns/shop/sa/orders";

/// Signs certificates for tests.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate: Certificate = params.self_signed(&key).expect("a certificate");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, PEM.
    pub(crate) fn issue(&self, sans: Vec<SanType>) -> (String, String) {
        let mut params = CertificateParams::new([]).expect("params");
        params.subject_alt_names = sans;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn workload(&self, spiffe: &str) -> Identity {
        let uri = SanType::URI(spiffe.try_into().expect("a URI"));
        let (certificate, key) = self.issue(vec![uri]);
        Identity::from_pem(certificate, key)
    }
}

fn write(directory: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

/// A server that shows a certificate and asks its peers for one.
fn with_tls(directory: &Path, ca: &Ca) -> Options {
    let (certificate, key) =
        ca.issue(vec![SanType::DnsName("localhost".try_into().expect("a name"))]);
    let mut options = options(memory());
    options.grpc.tls = Some(TlsSettings {
        client_ca_file: Some(write(directory, "ca.pem", &ca.pem)),
        client_auth: ClientAuth::Optional,
        ..TlsSettings::new(
            write(directory, "tls.pem", &certificate),
            write(directory, "tls.key", &key),
        )
    });
    options
}

async fn connect(address: SocketAddr, ca: &Ca, identity: Option<Identity>) -> Channel {
    endpoint(address, ca, identity).connect().await.expect("the server listens")
}

fn endpoint(address: SocketAddr, ca: &Ca, identity: Option<Identity>) -> Endpoint {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(&ca.pem))
        .domain_name("localhost");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Endpoint::from_shared(format!("https://{address}"))
        .expect("a URL")
        .tls_config(tls)
        .expect("TLS")
        .connect_timeout(Duration::from_secs(10))
}

#[tokio::test]
async fn certificates_stand_for_callers_and_for_clients_and_nothing_is_allowed_by_default() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new();
    let mut options = with_tls(directory.path(), &ca);
    options.certificate_grants = vec![CertificateGrant {
        name: GATEWAY.into(),
        grant: Grant { audience: Some("orders".into()), ..Grant::unlimited(Right::Introspect) },
    }];
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with_channel(options, clock, |address| {
        let (identity, ca) = (None, &ca);
        connect(address, ca, identity)
    })
    .await
    .expect("the server starts");

    // A client that is known by its certificate needs no secret, and no other client can be it.
    let app = server
        .add_client(Client { certificate_names: vec![ORDERS.into()], ..client("orders") })
        .await;
    assert_eq!(app.client_secret, "");
    server.add_user("ada").await;
    let login = password_login(&app, "ada", crate::harness::PASSWORD);
    let orders = connect(server.grpc, &ca, Some(ca.workload(ORDERS))).await;
    let gateway = connect(server.grpc, &ca, Some(ca.workload(GATEWAY))).await;
    let mut as_orders = IdentityServiceClient::new(orders);
    let mut as_gateway = IdentityServiceClient::new(gateway);
    let tokens = as_orders.authenticate(login.clone()).await.expect("its own certificate");
    let tokens = tokens.into_inner().tokens.expect("tokens");
    for other in [&mut as_gateway, &mut server.identity()] {
        let refused = other.authenticate(login.clone()).await.expect_err("not its certificate");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(reason(&refused), "CREDENTIAL_NOT_ACCEPTED");
    }

    let ask = |token: &str| pb::IntrospectRequest { token: token.to_owned(), ..Default::default() };
    let answer = as_gateway.introspect(ask(&tokens.access_token)).await.expect("it may ask");
    assert!(answer.into_inner().active);
    // Good for avouch alone, which the gateway's grant does not cover.
    let own = pb::AuthenticateRequest {
        audiences: vec![crate::harness::OWN_AUDIENCE.to_owned()],
        ..login
    };
    let own = as_orders.authenticate(own).await.expect("tokens").into_inner();
    let own = own.tokens.expect("tokens").access_token;
    let answer = as_gateway.introspect(ask(&own)).await.expect("it may ask").into_inner();
    assert_eq!(answer, pb::IntrospectResponse::default());
    // A certificate without a grant is a known caller that sees nothing; none at all is nobody.
    let answer = as_orders.introspect(ask(&tokens.access_token)).await.expect("it may ask");
    assert_eq!(answer.into_inner(), pb::IntrospectResponse::default());
    let nobody = server.identity().introspect(ask(&own)).await.expect_err("nobody");
    assert_eq!(nobody.code(), Code::Unauthenticated);
    // The right to ask is not the right to revoke.
    let revoke = pb::RevokeRequest {
        target: Some(pb::revoke_request::Target::Subject(tokens.subject)),
        ..Default::default()
    };
    let denied = as_gateway.revoke(revoke).await.expect_err("no grant");
    assert_eq!(denied.code(), Code::PermissionDenied);
    server.stop().await;
}

#[tokio::test]
async fn a_sidecar_with_a_certificate_follows_its_audience_without_a_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new();
    let mut options = with_tls(directory.path(), &ca);
    options.certificate_grants = [Right::Watch, Right::Introspect]
        .map(|right| CertificateGrant {
            name: GATEWAY.into(),
            grant: Grant { audience: Some("orders".into()), ..Grant::unlimited(right) },
        })
        .into();
    let clock = Arc::new(ManualClock::new(NOW));
    let server = Server::with_channel(options, clock, |address| connect(address, &ca, None))
        .await
        .expect("the server starts");
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let token = server.login(&app, "ada").await.access_token;
    let gateway = endpoint(server.grpc, &ca, Some(ca.workload(GATEWAY)));
    let rules = "[[rule]]\nprefix = \"/\"\nmax_staleness = \"1h\"\n";
    let sidecar = Sidecar::with(gateway, None, rules, &[]).await;
    tokio::time::timeout(PATIENCE, sidecar.verifier.synced()).await.expect("it follows");
    assert!(sidecar.check_token("GET", "/", &token).await.passes());
    let request = pb::RevokeRequest {
        client: Some(app),
        target: Some(pb::revoke_request::Target::Token(token.clone())),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    server.identity().revoke(request).await.expect("revoked");
    assert_eq!(sidecar.check_token("GET", "/", &token).await, Said::invalid_token());
}
