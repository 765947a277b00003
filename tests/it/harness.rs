//! A whole avouch in this process: the real listeners, the real store, a clock that tests move.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use avouch::app::{Bound, Deps, Ended, ListenOptions, Options, StoreOptions, build};
use avouch::config::sections;
use avouch::domain::caller::{Caller, Grant, Right};
use avouch::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use avouch::domain::clock::{Clock, ManualClock, Timestamp};
use avouch::domain::event::{Entry, Event, MAX_ACCESS_LIFETIME, Revocation};
use avouch::domain::ids::{Revision, SubjectId};
use avouch::domain::key::{Algorithm, RingPolicy};
use avouch::domain::scope::Names;
use avouch::domain::secret::SecretText;
use avouch::domain::throttle::ThrottlePolicy;
use avouch::feed::FeedSettings;
use avouch::listen::settings::ListenSettings;
use avouch::password::{HashParams, PasswordPolicy, Pepper, PoolSettings};
use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::session_service_client::SessionServiceClient;
use avouch::service::admin::users::NewUser;
use avouch::service::journal::{Happening, Journal, Origin};
use avouch::service::{Service, Settings};
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::etcd::EtcdSettings;
use avouch::store::sled::SledSettings;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::support::etcd::{Etcd, fresh_prefix};

/// When the tests happen: 2026-11-21T00:00:00Z.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_795_219_200);
/// The password of every test user.
pub(crate) const PASSWORD: &str = "correct horse battery staple";
/// The issuer of every test server.
pub(crate) const ISSUER: &str = "https://id.test";
/// The audience that stands for avouch.
pub(crate) const OWN_AUDIENCE: &str = "avouch";

/// What seals the keys of every test server.
pub(crate) const ENCRYPTION_KEY: &str =
    "3f8a1c5e7b9d2046a8c0e2f416385a7c9ebd0f21436587a9cbed0f1234a6b7c8";

/// A journal that tests read.
#[derive(Default)]
pub(crate) struct Recorded(std::sync::Mutex<Vec<Happening>>);

impl Journal for Recorded {
    fn record(&self, _: Timestamp, _: &Origin, happening: Happening) {
        self.0.lock().expect("not poisoned").push(happening);
    }
}

impl Recorded {
    /// What happened so far; it is forgotten then.
    pub(crate) fn take(&self) -> Vec<Happening> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

/// How often to do what shows more the more often it is done: `short` for every run, `long` when
/// `AVOUCH_TEST_ROUNDS=long` asks for it.
#[expect(clippy::disallowed_methods, reason = "who runs the tests says how long they may take")]
pub(crate) fn rounds<N>(short: N, long: N) -> N {
    match std::env::var("AVOUCH_TEST_ROUNDS").as_deref() {
        Ok("long") => long,
        Ok(other) => panic!("AVOUCH_TEST_ROUNDS may be `long` or not set, not `{other}`"),
        Err(_) => short,
    }
}

/// Whether the stores of this run are in etcd: when `AVOUCH_TEST_STORE=etcd` asks for it. Each is under a
/// prefix of its own in the one etcd of this process.
#[expect(clippy::disallowed_methods, reason = "who runs the tests says on which engine")]
pub(crate) fn on_etcd() -> bool {
    match std::env::var("AVOUCH_TEST_STORE").as_deref() {
        Ok("etcd") => true,
        Ok(other) => panic!("AVOUCH_TEST_STORE may be `etcd` or not set, not `{other}`"),
        Err(_) => false,
    }
}

/// Options for tests: quick hashes, any port, no throttle to speak of.
pub(crate) fn options(store: StoreOptions) -> Options {
    let listen = || ListenOptions {
        address: "127.0.0.1:0".parse().expect("an address"),
        settings: ListenSettings::default(),
        tls: None,
    };
    Options {
        store,
        encryption_key: SecretText::new(ENCRYPTION_KEY.to_owned()),
        backup_key: None,
        ring: RingPolicy::new(Algorithm::Es256, MAX_ACCESS_LIFETIME),
        service: Settings {
            issuer: ISSUER.into(),
            own_audience: OWN_AUDIENCE.into(),
            throttle: ThrottlePolicy {
                free_failures: 1000,
                max_failures: 10_000,
                ..Default::default()
            },
            max_sessions_per_subject: 10_000,
        },
        lifetimes: Lifetimes::default(),
        hash: HashParams::weak_for_tests(),
        pepper: Pepper::default(),
        pool: PoolSettings::default(),
        passwords: PasswordPolicy::default(),
        feed: FeedSettings::default(),
        certificate_grants: Vec::new(),
        grpc: listen(),
        public: Some(listen()),
        ops: Some(listen()),
        max_request_bytes: 16 * 1024,
        max_response_bytes: 64 * 1024,
        request_timeout: Duration::from_secs(10),
        reflection: true,
        sweep_interval: Duration::from_secs(3600),
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(5),
    }
}

/// State that nobody else has: in memory, or on the engine of this run.
pub(crate) fn memory() -> StoreOptions {
    if on_etcd() { etcd(Etcd::shared(), &fresh_prefix()) } else { StoreOptions::Memory }
}

/// State under a prefix of an etcd.
pub(crate) fn etcd(etcd: &Etcd, prefix: &str) -> StoreOptions {
    etcd_at(&etcd.url(prefix))
}

/// State in the etcd of a URL.
pub(crate) fn etcd_at(url: &str) -> StoreOptions {
    let url = url.parse().expect("a URL");
    StoreOptions::Etcd(Box::new(avouch::app::etcd::settings(&url, &sections::Etcd::default())))
}

/// How the engine is told of a prefix of an etcd.
pub(crate) fn etcd_settings(etcd: &Etcd, prefix: &str) -> EtcdSettings {
    let url = etcd.url(prefix).parse().expect("a URL");
    avouch::app::etcd::settings(&url, &sections::Etcd::default())
}

/// State in a directory; in a run on etcd, under a prefix that stands for the directory.
pub(crate) fn sled(path: &Path) -> StoreOptions {
    if on_etcd() {
        let name: String = path
            .to_str()
            .expect("text")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        return etcd(Etcd::shared(), &name);
    }
    let settings = SledSettings { min_free_bytes: 0, ..SledSettings::new(SCHEMA_VERSION) };
    StoreOptions::Sled { path: path.to_owned(), settings }
}

/// A running server and what it takes to talk to it.
pub(crate) struct Server {
    /// The service, for what no RPC does.
    pub(crate) service: Arc<Service>,
    /// The clock of the server.
    pub(crate) clock: Arc<ManualClock>,
    /// What happened.
    pub(crate) journal: Arc<Recorded>,
    /// Where gRPC is served.
    pub(crate) grpc: std::net::SocketAddr,
    /// Where the public keys are served.
    pub(crate) public: std::net::SocketAddr,
    /// Where metrics and probes are served.
    pub(crate) ops: std::net::SocketAddr,
    /// One connection, shared by the clients.
    pub(crate) channel: Channel,
    shutdown: CancellationToken,
    task: JoinHandle<Ended>,
}

impl Server {
    /// On a store in memory.
    pub(crate) async fn start() -> Self {
        Self::with(options(memory()), Arc::new(ManualClock::new(NOW))).await
    }

    /// With these options and this clock.
    pub(crate) async fn with(options: Options, clock: Arc<ManualClock>) -> Self {
        Self::try_with(options, clock).await.expect("the server starts")
    }

    /// With these options and this clock, if it starts.
    pub(crate) async fn try_with(
        options: Options,
        clock: Arc<ManualClock>,
    ) -> Result<Self, avouch::app::BuildError> {
        let manual = Some(Arc::clone(&clock) as Arc<dyn Clock>);
        Self::try_on(options, clock, manual, connect).await
    }

    /// With these options, this clock and this way to connect, if it starts.
    pub(crate) async fn with_channel<C: Future<Output = Channel>>(
        options: Options,
        clock: Arc<ManualClock>,
        connect: impl FnOnce(std::net::SocketAddr) -> C,
    ) -> Result<Self, avouch::app::BuildError> {
        let manual = Some(Arc::clone(&clock) as Arc<dyn Clock>);
        Self::try_on(options, clock, manual, connect).await
    }

    /// With these options and the clock of the machine.
    pub(crate) async fn with_system_clock(options: Options) -> Self {
        Self::try_on(options, Arc::new(ManualClock::new(NOW)), None, connect)
            .await
            .expect("the server starts")
    }

    async fn try_on<C: Future<Output = Channel>>(
        options: Options,
        manual: Arc<ManualClock>,
        clock: Option<Arc<dyn Clock>>,
        connect: impl FnOnce(std::net::SocketAddr) -> C,
    ) -> Result<Self, avouch::app::BuildError> {
        let journal = Arc::new(Recorded::default());
        let deps = Deps { clock, ..Deps::system(Arc::clone(&journal) as Arc<dyn Journal>) };
        let bound: Bound = build(options, deps).await?;
        let (service, shutdown) = (Arc::clone(&bound.service), bound.shutdown.clone());
        let (grpc, public, ops) = (bound.grpc_address, bound.public_address, bound.ops_address);
        let task = tokio::spawn(bound.serve());
        let channel = connect(grpc).await;
        Ok(Self {
            service,
            clock: manual,
            journal,
            grpc,
            public: public.expect("a public listener"),
            ops: ops.expect("an ops listener"),
            channel,
            shutdown,
            task,
        })
    }

    /// Drains and stops.
    pub(crate) async fn stop(self) -> Ended {
        self.shutdown.cancel();
        let ended = self.task.await.expect("the server ends");
        // What still winds down in this process holds the store; its directory is free after that.
        let store = Arc::downgrade(self.service.store());
        drop((self.service, self.channel));
        for _ in 0..500 {
            if store.strong_count() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ended
    }

    pub(crate) fn identity(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel.clone())
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub(crate) fn revocations(&self) -> RevocationServiceClient<Channel> {
        RevocationServiceClient::new(self.channel.clone())
    }

    /// Registers a client and returns its credentials.
    pub(crate) async fn add_client(&self, client: Client) -> pb::ClientAuthentication {
        let id = client.id.to_string();
        let (_, secret) = self
            .service
            .create_client(&Caller::system(), client, &Origin::default())
            .await
            .expect("the client is new");
        let client_secret = secret.map(SecretText::into_exposed).unwrap_or_default();
        pb::ClientAuthentication { client_id: id, client_secret }
    }

    /// A first-party client that may have `read` and `write` for `orders` and avouch.
    pub(crate) async fn first_party(&self, id: &str) -> pb::ClientAuthentication {
        self.add_client(client(id)).await
    }

    /// A client with every right.
    pub(crate) async fn powerful(&self, id: &str) -> pb::ClientAuthentication {
        let grants = Right::ALL.map(Grant::unlimited).into();
        self.add_client(Client { first_party: false, grants, ..client(id) }).await
    }

    /// Creates a user with [`PASSWORD`].
    pub(crate) async fn add_user(&self, username: &str) -> SubjectId {
        let new = NewUser {
            username: username.to_owned(),
            display_name: username.into(),
            password: Some(SecretText::new(PASSWORD.to_owned())),
            scope: Names::default(),
        };
        self.service
            .create_user(&Caller::system(), new, &Origin::default())
            .await
            .expect("the user is new")
            .subject
    }

    /// Logs in with [`PASSWORD`].
    pub(crate) async fn login(
        &self,
        client: &pb::ClientAuthentication,
        username: &str,
    ) -> pb::TokenSet {
        let request = password_login(client, username, PASSWORD);
        let answer = self.identity().authenticate(request).await.expect("the login succeeds");
        answer.into_inner().tokens.expect("tokens")
    }

    /// An access token that a client got for itself, good for avouch.
    pub(crate) async fn own_token(&self, client: &pb::ClientAuthentication) -> String {
        let request = pb::AuthenticateRequest {
            client: Some(client.clone()),
            grant: Some(pb::authenticate_request::Grant::ClientCredentials(
                pb::ClientCredentialsGrant {},
            )),
            audiences: vec![OWN_AUDIENCE.to_owned()],
            ..Default::default()
        };
        let answer = self.identity().authenticate(request).await.expect("the client is known");
        answer.into_inner().tokens.expect("tokens").access_token
    }

    /// Refreshes.
    pub(crate) async fn refresh(
        &self,
        client: &pb::ClientAuthentication,
        refresh_token: &str,
    ) -> Result<pb::TokenSet, tonic::Status> {
        let request = pb::RefreshRequest {
            client: Some(client.clone()),
            refresh_token: refresh_token.to_owned(),
            ..Default::default()
        };
        Ok(self.identity().refresh(request).await?.into_inner().tokens.expect("tokens"))
    }

    /// Introspects as `client`.
    pub(crate) async fn introspect(
        &self,
        client: &pb::ClientAuthentication,
        token: &str,
    ) -> pb::IntrospectResponse {
        let request = pb::IntrospectRequest {
            client: Some(client.clone()),
            token: token.to_owned(),
            ..Default::default()
        };
        self.identity().introspect(request).await.expect("an answer").into_inner()
    }

    /// What the log holds of revocations, in order.
    pub(crate) fn log(&self) -> Vec<Revocation> {
        let entries = self.service.store().events_after(Revision(0), 10_000).expect("the log");
        let revocation = |entry: Entry| match entry.event {
            Event::Revocation(revocation) => Some(revocation),
            Event::KeySetChanged { .. } => None,
        };
        entries.into_iter().filter_map(revocation).collect()
    }

    /// Stops, and starts again with these options and a clock that stands where it stood.
    pub(crate) async fn restart(self, options: Options) -> Self {
        let clock = Arc::clone(&self.clock);
        self.stop().await;
        Self::with(options, clock).await
    }

    /// Revokes as `client`.
    pub(crate) async fn revoke(
        &self,
        client: &pb::ClientAuthentication,
        target: pb::revoke_request::Target,
    ) -> Result<pb::RevokeResponse, tonic::Status> {
        let request = pb::RevokeRequest {
            client: Some(client.clone()),
            target: Some(target),
            ..Default::default()
        };
        Ok(self.identity().revoke(request).await?.into_inner())
    }
}

/// A connection of its own.
pub(crate) async fn connect(address: std::net::SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a URL")
        .connect()
        .await
        .expect("the server listens")
}

/// A registration for tests.
pub(crate) fn client(id: &str) -> Client {
    Client {
        id: id.parse().expect("a client id"),
        display_name: id.into(),
        kind: ClientType::Confidential,
        secret_digest: None,
        first_party: true,
        scope: Names::new(["read", "write"]).expect("names"),
        audience: Names::new(["orders", OWN_AUDIENCE]).expect("names"),
        grants: Vec::new(),
        certificate_names: Vec::new(),
        lifetimes: Lifetimes::default(),
        reuse_detection: ReuseDetection::Enforce,
        disabled: false,
        created_at: Timestamp::default(),
    }
}

/// A login by password.
pub(crate) fn password_login(
    client: &pb::ClientAuthentication,
    username: &str,
    password: &str,
) -> pb::AuthenticateRequest {
    pb::AuthenticateRequest {
        client: Some(client.clone()),
        grant: Some(pb::authenticate_request::Grant::Password(pb::PasswordGrant {
            username: username.to_owned(),
            password: password.to_owned(),
        })),
        ..Default::default()
    }
}

/// A request with a bearer token.
pub(crate) fn bearer<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).expect("metadata");
    request.metadata_mut().insert("authorization", value);
    request
}

/// The `reason` of an error's ErrorInfo.
pub(crate) fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The one answer for a credential that is not accepted, down to the bytes.
#[track_caller]
pub(crate) fn assert_refused(status: &tonic::Status, what: &str) {
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{what}: {status:?}");
    assert_eq!(status.message(), "credential not accepted", "{what}");
    assert_eq!(reason(status), "CREDENTIAL_NOT_ACCEPTED", "{what}");
}

/// The names of the fields that an INVALID_ARGUMENT complains of.
#[track_caller]
pub(crate) fn wrong_fields(status: &tonic::Status) -> Vec<String> {
    use tonic_types::StatusExt as _;
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("a BadRequest");
    details.field_violations.into_iter().map(|violation| violation.field).collect()
}

/// GET over a connection of its own: the status, the headers as they came, and the body.
pub(crate) async fn http_get(
    address: std::net::SocketAddr,
    path: &str,
    headers: &str,
) -> (u16, String, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: id.test\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}
