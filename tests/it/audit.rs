//! The audit log at a collector: what it gets, and what happens while it takes nothing.

use std::time::Duration;

use avouch::audit::{AuditDown, AuditEvent, AuditLog, AuditName, Collector as To};
use avouch::domain::clock::Timestamp;
use avouch::listen::tls::TlsSettings;
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use rcgen::SanType;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{OWN_AUDIENCE, bearer, password_login, reason};
use crate::mtls::Ca;
use crate::process::{Addresses, Cast, PATIENCE, Process, channel, metric, ops};
use crate::support::collector::{Collector, Says, attribute};

fn to(endpoint: String) -> To {
    To { endpoint, ca_pem: None, resource: Vec::new() }
}

fn event(revision: u64) -> AuditEvent {
    AuditEvent::new(AuditName::AuthnTokenRevoked, Timestamp::from_secs(1)).revision(revision)
}

/// The line of a record.
fn line(record: &LogRecord) -> serde_json::Value {
    let body = record.body.clone().and_then(|body| body.value);
    let Some(Value::StringValue(text)) = body else { panic!("no text: {record:?}") };
    serde_json::from_str(&text).expect("JSON")
}

fn revisions(collector: &Collector) -> Vec<u64> {
    collector.records().iter().map(|it| line(it)["revision"].as_u64().expect("one")).collect()
}

struct World {
    _home: tempfile::TempDir,
    process: Process,
    addresses: Addresses,
    cast: Cast,
    channel: Channel,
    /// A token with every right.
    own: String,
}

impl World {
    async fn with(endpoint: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let data = home.path().join("data");
        // The first start makes clients and a user, which it does not while nobody takes it down.
        let mut first = Process::start(&data, &[]);
        first.serving().await;
        first.terminate();
        first.end().await;
        let settings = [("audit.output", "otlp"), ("audit.otlp_endpoint", endpoint)];
        let mut process = Process::start(&data, &settings);
        let addresses = process.serving().await;
        let channel = channel(&addresses).await;
        let cast = Cast::of(&data);
        let own = pb::AuthenticateRequest {
            client: Some(cast.admin.clone()),
            grant: Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {})),
            audiences: vec![OWN_AUDIENCE.to_owned()],
            ..Default::default()
        };
        let own = IdentityServiceClient::new(channel.clone()).authenticate(own).await;
        let own = own.expect("in").into_inner().tokens.expect("tokens").access_token;
        Self { _home: home, process, addresses, cast, channel, own }
    }

    async fn login(&self, password: &str) -> Result<pb::TokenSet, tonic::Status> {
        let request = password_login(&self.cast.login, "ada", password);
        let answer = IdentityServiceClient::new(self.channel.clone()).authenticate(request).await?;
        Ok(answer.into_inner().tokens.expect("tokens"))
    }

    async fn create_user(&self, name: &str) -> Result<(), tonic::Status> {
        let new = pb::CreateUserRequest { username: name.to_owned(), ..Default::default() };
        let mut admin = AdminServiceClient::new(self.channel.clone());
        admin.create_user(bearer(new, &self.own)).await.map(drop)
    }

    async fn users(&self) -> usize {
        let mut admin = AdminServiceClient::new(self.channel.clone());
        let list = bearer(pb::ListUsersRequest::default(), &self.own);
        admin.list_users(list).await.expect("it changes nothing").into_inner().users.len()
    }

    async fn until(&self, name: &str, value: f64) {
        let seen = async {
            while metric(&ops(&self.addresses, "/metrics").await, name) != value {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{name} is never {value}"));
    }
}

#[tokio::test]
async fn an_event_is_a_record_with_its_line_whole_and_no_secret() {
    let collector = Collector::default();
    let world = World::with(&collector.serve()).await;
    let tokens = world.login(&world.cast.password).await.expect("in");
    world.login("not the password at all").await.expect_err("wrong");
    world.create_user("eve").await.expect("it may");
    let World { process, cast, .. } = world;
    process.terminate();
    let end = process.end().await;
    assert!(end.status.success(), "{end:?}");

    let records = collector.records();
    let names: Vec<_> = records.iter().map(|it| it.event_name.as_str()).collect();
    assert_eq!(names.first().copied(), Some("sys_startup"), "{names:?}");
    assert_eq!(names.last().copied(), Some("sys_shutdown"), "{names:?}");
    for record in &records {
        let line = line(record);
        let members = line.as_object().expect("an object");
        assert_eq!(line["event"], record.event_name.as_str());
        assert_eq!(line["level"], record.severity_text.as_str());
        assert_eq!(record.attributes.len(), members.len() - 3, "{record:?}");
        for (name, value) in
            members.iter().filter(|(name, _)| !["event", "level", "ts"].contains(&name.as_str()))
        {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let found = attribute(&record.attributes, &format!("avouch.{name}"));
            assert_eq!(found, Some(shown), "{name}: {record:?}");
        }
        let seconds = record.time_unix_nano / 1_000_000_000;
        assert!(seconds > 1_577_000_000 && record.observed_time_unix_nano > 0, "{record:?}");
    }
    let of = |name: &str| records.iter().find(|it| it.event_name == name).expect(name);
    let wrong = of("authn_login_fail");
    assert_eq!(wrong.severity_number(), SeverityNumber::Warn);
    let why = attribute(&wrong.attributes, "avouch.reason");
    assert_eq!(why.as_deref(), Some("wrong_password"));
    assert_eq!(of("authn_login_success").severity_number(), SeverityNumber::Info);
    assert!(names.contains(&"authz_admin") && names.contains(&"user_created"), "{names:?}");
    let requests = collector.logs();
    let resource = requests[0].resource_logs[0].resource.clone().expect("a resource");
    let service = attribute(&resource.attributes, "service.name");
    assert_eq!(service.as_deref(), Some("avouch"));

    let sent = collector.bytes();
    for secret in [
        &cast.password,
        &cast.login.client_secret,
        &cast.admin.client_secret,
        &tokens.access_token,
        &tokens.refresh_token,
        &"not the password".to_owned(),
    ] {
        let seen = sent.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!seen, "{secret} is in the audit log");
    }
}

#[tokio::test]
async fn while_the_collector_takes_nothing_administration_stops_and_the_rest_arrives_later() {
    let collector = Collector::default();
    let world = World::with(&collector.serve()).await;
    world.create_user("before").await.expect("it may");
    collector.say(Says::No(Code::Unavailable));
    world.login(&world.cast.password).await.expect("logins go on");
    world.until("avouch_audit_down", 1.0).await;
    let refused = world.create_user("meanwhile").await.expect_err("it cannot be recorded");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "AUDIT_UNAVAILABLE")
    );
    assert_eq!(world.users().await, 2, "ada and the one before");
    collector.say(Says::Yes);
    world.until("avouch_audit_down", 0.0).await;
    world.create_user("after").await.expect("it may again");
    let lost =
        metric(&ops(&world.addresses, "/metrics").await, "avouch_audit_dropped_events_total");
    assert_eq!(lost, 0.0);
    world.process.terminate();
    let end = world.process.end().await;
    assert!(end.status.success(), "{end:?}");

    let records = collector.records();
    let count = |name: &str| records.iter().filter(|it| it.event_name == name).count();
    // The admin client's own and ada's.
    assert_eq!(count("authn_login_success"), 2);
    assert_eq!((count("authz_admin"), count("user_created")), (3, 2), "an attempt shows, too");
    let told = |what: &str| end.stderr.matches(what).count();
    assert_eq!((told("takes no events; they wait"), told("takes events again")), (1, 1), "{end:?}");
}

#[tokio::test]
async fn a_server_without_its_collector_serves_and_ends() {
    let nobody = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let endpoint = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    let world = World::with(&endpoint).await;
    world.login(&world.cast.password).await.expect("logins go on");
    world.create_user("eve").await.expect_err("it cannot be recorded");
    world.process.terminate();
    let end = world.process.end().await;
    assert!(end.status.success(), "{end:?}");
    assert!(end.stderr.contains("the audit log could not be written to its end"), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_connects_and_says_nothing_keeps_nobody_waiting_for_good() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let log = AuditLog::otlp(to(endpoint), 10).expect("a log");
    let answer = timeout(PATIENCE, log.record_surely(&event(1))).await.expect("it is told");
    assert_eq!(answer, Err(AuditDown));
    // Known by now: the next one does not wait at all.
    assert!(log.is_down());
    assert_eq!(log.record_surely(&event(2)).await, Err(AuditDown));
    assert_eq!((log.written(), log.failed(), log.dropped()), (0, 0, 0), "both wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_bounded_and_all_of_it_arrives_in_order() {
    let collector = Collector::default();
    collector.say(Says::No(Code::Unavailable));
    let log = AuditLog::otlp(to(collector.serve()), 5).expect("a log");
    log.record(&event(0));
    let asked = async { collector.asked.subscribe().wait_for(|asked| *asked > 0).await.map(drop) };
    timeout(PATIENCE, asked).await.expect("in time").expect("it asks");
    // One is on its way, five may wait.
    for revision in 1..=9 {
        log.record(&event(revision));
    }
    assert_eq!(log.dropped(), 4);
    collector.say(Says::Yes);
    timeout(PATIENCE, log.flush()).await.expect("in time").expect("written");
    assert_eq!(revisions(&collector), [0, 1, 2, 3, 4, 5]);
    assert_eq!((log.written(), log.dropped(), log.is_down()), (6, 4, false));
    assert_eq!(log.record_surely(&event(10)).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_collector_refuses_is_lost_and_said() {
    let collector = Collector::default();
    let log = AuditLog::otlp(to(collector.serve()), 10).expect("a log");
    for (lost, says) in (1..).zip([
        Says::AllBut(1),
        Says::No(Code::InvalidArgument),
        Says::No(Code::PermissionDenied),
        // Too large, says a collector that does not say when to come again.
        Says::No(Code::ResourceExhausted),
    ]) {
        collector.say(says);
        let answer = timeout(PATIENCE, log.record_surely(&event(1))).await.expect("in time");
        assert_eq!(answer, Err(AuditDown), "{says:?}");
        assert_eq!((log.failed(), log.is_down()), (lost, true), "{says:?}");
    }
    collector.say(Says::Yes);
    assert_eq!(log.record_surely(&event(2)).await, Ok(()));
    assert_eq!((log.written(), log.is_down()), (1, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_events_fit_what_a_collector_takes() {
    let collector = Collector::default();
    // Until all of them wait, and go out in batches as large as they get.
    collector.say(Says::No(Code::Unavailable));
    let log = AuditLog::otlp(to(collector.serve()), 5_000).expect("a log");
    let long = "é".repeat(2_000);
    for revision in 0..3_000 {
        log.record(
            &event(revision)
                .caller(&*long)
                .subject(&*long)
                .method(&*long)
                .source(&*long)
                .target(&*long)
                .reason(&*long)
                .client_id(&*long)
                .session_id(&*long)
                .kid(&*long),
        );
    }
    collector.say(Says::Yes);
    timeout(PATIENCE, log.flush()).await.expect("in time").expect("all of it is taken");
    assert_eq!((log.written(), log.failed()), (3_000, 0));
    assert!(revisions(&collector).into_iter().eq(0..3_000));
    assert!(collector.logs().len() > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_with_a_certificate_is_held_against_the_ca() {
    let home = tempfile::tempdir().expect("a directory");
    let (ca, other) = (Ca::new(), Ca::new());
    let name = SanType::DnsName("localhost".try_into().expect("a name"));
    let (certificate, key) = ca.issue(vec![name]);
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let tls = TlsSettings::new(file("tls.pem", &certificate), file("tls.key", &key));
    let collector = Collector::default();
    let endpoint = collector.serve_with(Some(tls));
    let with = |ca: &Ca| To { ca_pem: Some(ca.pem.clone().into_bytes()), ..to(endpoint.clone()) };
    let log = AuditLog::otlp(with(&ca), 10).expect("a log");
    let answer = timeout(PATIENCE, log.record_surely(&event(1))).await.expect("in time");
    assert_eq!(answer, Ok(()));
    let log = AuditLog::otlp(with(&other), 10).expect("a log");
    let answer = timeout(PATIENCE, log.record_surely(&event(2))).await.expect("in time");
    assert_eq!(answer, Err(AuditDown), "an unknown authority");
    assert_eq!(revisions(&collector), [1]);
}

/// It makes nobody that is not recorded, and says where to look.
#[tokio::test]
async fn a_first_start_without_its_collector_says_so_and_the_next_one_makes_up_for_it() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let nobody = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let endpoint = format!("http://{}", nobody.local_addr().expect("an address"));
    drop(nobody);
    let settings = [("audit.output", "otlp"), ("audit.otlp_endpoint", &*endpoint)];
    let end = Process::start(&data, &settings).outcome().await.expect_err("nothing is recorded");
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    let why = "error: the first credentials cannot be made: client: the audit log takes nothing";
    assert!(end.stderr.contains(why) && end.stderr.contains("audit.output"), "{end:?}");
    let mut process = Process::start(&data, &[]);
    process.serving().await;
    assert!(!Cast::of(&data).admin.client_secret.is_empty());
    process.kill().await;
}
