//! Replicas behind one name.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::client::balance::{BalanceSettings, Replicas, Resolve, Target};
use avouch::client::identity::{AuthenticateError, ClientCredential, Identity, KeySetError, Login};
use avouch::client::watch::{Watch, WatchEvent, WatchSettings};
use avouch::crypto::OsEntropy;
use avouch::domain::client::Client;
use avouch::domain::clock::ManualClock;
use avouch::listen::tls::{ClientAuth, TlsSettings};
use avouch::pb::v1 as pb;
use rcgen::SanType;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig};

use super::calls::QUICK;
use super::scripted::{Scripted, Step, in_the_end, status};
use crate::harness::{NOW, Server, client, memory, options};
use crate::mtls::Ca;

/// A deadline that no test is to reach.
const FAR: Duration = Duration::from_secs(60);
/// Addresses are looked up when there is a reason to, and at no other time.
pub(crate) const WHEN_NEEDED: BalanceSettings = BalanceSettings {
    resolve_every: Duration::from_secs(3600),
    resolve_at_most_every: Duration::from_millis(10),
};
/// Addresses are looked up all the time.
const OFTEN: BalanceSettings = BalanceSettings {
    resolve_every: Duration::from_millis(20),
    resolve_at_most_every: Duration::from_millis(10),
};

/// Answers as told, and counts how often it is asked.
pub(crate) struct Names {
    answer: watch::Sender<Option<Vec<SocketAddr>>>,
    asked: watch::Sender<usize>,
}

impl Names {
    pub(crate) fn new(addresses: impl Into<Vec<SocketAddr>>) -> Arc<Self> {
        let answer = watch::Sender::new(Some(addresses.into()));
        Arc::new(Self { answer, asked: watch::Sender::new(0) })
    }

    pub(crate) fn say(&self, addresses: impl Into<Vec<SocketAddr>>) {
        self.answer.send_replace(Some(addresses.into()));
    }

    fn fail(&self) {
        self.answer.send_replace(None);
    }

    /// Waits until it was asked so many times.
    async fn asked_in_all(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        in_the_end(asked.wait_for(|asked| *asked >= times)).await.expect("it goes on");
    }

    /// Waits until it was asked so many times more.
    async fn asked_again(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        let from = *asked.borrow_and_update();
        in_the_end(asked.wait_for(|asked| *asked >= from + times)).await.expect("it goes on");
    }
}

#[async_trait::async_trait]
impl Resolve for Names {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!((host, port), ("avouch.test", 7700));
        self.asked.send_modify(|asked| *asked += 1);
        self.answer.borrow().clone().ok_or_else(|| io::Error::other("no answer"))
    }
}

pub(crate) fn replicas(names: &Arc<Names>, settings: BalanceSettings) -> Replicas {
    let target = Target::plaintext("http://avouch.test:7700").expect("a target");
    Replicas::start(target, Arc::clone(names) as _, settings, Arc::new(OsEntropy))
}

fn identity(replicas: &Replicas) -> Identity {
    let credential = ClientCredential::public("app");
    Identity::new(replicas.clone(), credential, Arc::new(OsEntropy)).with_retries(QUICK).within(FAR)
}

/// Which server answered: each has a key of its own.
async fn who(identity: &Identity) -> String {
    identity.key_set().await.expect("an answer").keys[0].kid.clone()
}

async fn key_of(server: &Server) -> String {
    let answer = server.identity_keys().await;
    answer.keys[0].kid.clone()
}

impl Server {
    async fn identity_keys(&self) -> pb::GetKeySetResponse {
        let answer = self.identity().get_key_set(pb::GetKeySetRequest {}).await;
        answer.expect("keys").into_inner()
    }
}

/// Waits until all of these have answered.
async fn all_answer(identity: &Identity, keys: &[String]) {
    let mut left = keys.to_vec();
    in_the_end(async {
        while !left.is_empty() {
            let key = who(identity).await;
            left.retain(|it| *it != key);
        }
    })
    .await;
}

#[tokio::test]
async fn calls_are_spread_over_the_replicas_and_follow_them() {
    let mut servers = Vec::new();
    let mut keys = Vec::new();
    for _ in 0..4 {
        let server = Server::start().await;
        keys.push(key_of(&server).await);
        servers.push(server);
    }
    let addresses: Vec<_> = servers.iter().map(|it| it.grpc).collect();
    let names = Names::new(&addresses[..3]);
    let replicas = replicas(&names, OFTEN);
    let client = identity(&replicas);
    all_answer(&client, &keys[..3]).await;

    let mut counts = HashMap::new();
    for _ in 0..300 {
        *counts.entry(who(&client).await).or_insert(0) += 1;
    }
    // 100 each; fewer than 50 would be six standard deviations away.
    assert!(counts.len() == 3 && counts.values().all(|it| *it >= 50), "{counts:?}");

    // One goes away, and its name is still there: no call fails, as another replica serves it.
    servers.remove(0).stop().await;
    for _ in 0..50 {
        assert_ne!(who(&client).await, keys[0]);
    }
    // Another one appears: it is used.
    names.say(&addresses[..]);
    all_answer(&client, &keys[1..]).await;

    // One leaves, though it would still serve: it is used no more, nor told to the watch client.
    let mut endpoints = replicas.endpoints();
    endpoints.mark_unchanged();
    names.say(&addresses[2..]);
    in_the_end(endpoints.wait_for(|it| it.len() == 2)).await.expect("they are followed");
    for _ in 0..50 {
        assert!(keys[2..].contains(&who(&client).await));
    }
    // A name that is not answered, or without addresses, changes nothing.
    names.fail();
    names.asked_again(2).await;
    names.say([]);
    names.asked_again(2).await;
    all_answer(&client, &keys[2..]).await;
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn the_watch_client_takes_the_same_replicas() {
    let server = Server::start().await;
    let power = server.powerful("power").await;
    let token = server.own_token(&power).await;
    let names = Names::new([server.grpc]);
    let replicas = replicas(&names, WHEN_NEEDED);
    let mut settings = WatchSettings::new(Vec::new());
    let endpoints = replicas.endpoints();
    in_the_end(endpoints.clone().wait_for(|it| !it.is_empty())).await.expect("they are found");
    settings.replicas = Some(endpoints);
    settings.authorization = Some(Arc::new(move || format!("Bearer {token}").parse().ok()));
    let mut watch = Watch::new(settings, Arc::new(OsEntropy));
    loop {
        match watch.next().await {
            WatchEvent::Synced(_) => break,
            WatchEvent::Connected { .. } | WatchEvent::KeySet(_) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(watch);
    server.stop().await;
}

#[tokio::test]
async fn a_replica_that_cannot_serve_is_passed_over_and_the_name_is_looked_up() {
    // It wants to be left alone for an hour: that is no reason to wait for the other one.
    let hour = Some(Duration::from_secs(3600));
    let drain = move |_| Step::Fail(status(Code::Unavailable, "DRAINING", hour));
    let bad = Scripted::start(drain).await;
    let good = Scripted::start(|_| Step::Answer).await;
    let names = Names::new([bad.address, good.address]);
    let replicas = replicas(&names, WHEN_NEEDED);
    let client = identity(&replicas);
    in_the_end(async {
        while bad.calls() == 0 {
            client.key_set().await.expect("the other one serves");
        }
    })
    .await;
    names.asked_in_all(2).await;
    let before = good.calls();
    for _ in 0..30 {
        client.key_set().await.expect("the other one serves");
    }
    // It is asked again after 0.5 s, 1 s, 2 s: far fewer times than every other call.
    assert_eq!(good.calls(), before + 30);
    assert!(bad.calls() < 8, "{}", bad.calls());
    // When all are, each call has its answer from one of them, at once.
    good.now(drain);
    let error = client.key_set().await.expect_err("none serves");
    let KeySetError::Unavailable(failure) = error else { panic!("{error:?}") };
    assert_eq!((failure.reason.as_str(), failure.retry_after), ("DRAINING", hour));
}

#[tokio::test]
async fn a_replica_that_lets_calls_wait_in_vain_is_passed_over() {
    let hung = Scripted::start(|_| Step::Hang).await;
    let good = Scripted::start(|_| Step::Answer).await;
    let replicas = replicas(&Names::new([hung.address, good.address]), WHEN_NEEDED);
    let client = identity(&replicas);
    let impatient = async || {
        tokio::select! {
            answer = client.key_set() => drop(answer.expect("the other one serves")),
            () = hung.saw(hung.calls() + 1) => {}
        }
    };
    in_the_end(async {
        while hung.calls() == 0 || good.calls() == 0 {
            impatient().await;
        }
    })
    .await;
    for _ in 0..30 {
        impatient().await;
    }
    // After 0.5 s, 1 s, 2 s, and not every other time.
    assert!(hung.calls() < 9, "{} and {}", hung.calls(), good.calls());
}

#[tokio::test]
async fn of_two_replicas_the_one_with_less_to_do_gets_the_call() {
    let busy = Scripted::start(|_| Step::Hang).await;
    let free = Scripted::start(|_| Step::Answer).await;
    let replicas = replicas(&Names::new([busy.address, free.address]), WHEN_NEEDED);
    let client = identity(&replicas);
    // Some of them stay with the busy one.
    let mut calls = tokio::task::JoinSet::new();
    in_the_end(async {
        while busy.calls() == 0 || free.calls() == 0 {
            let before = busy.calls() + free.calls();
            let client = client.clone();
            calls.spawn(async move { client.key_set().await });
            while busy.calls() + free.calls() == before {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    // Those of the free one have ended.
    in_the_end(async {
        while calls.len() > busy.calls() {
            calls.join_next().await;
        }
    })
    .await;
    let before = busy.calls();
    for _ in 0..50 {
        client.key_set().await.expect("the free one serves");
    }
    assert_eq!(busy.calls(), before);
}

#[tokio::test]
async fn when_no_replica_can_be_reached_calls_fail_at_once_and_recover() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let nobody = listener.local_addr().expect("an address");
    drop(listener);
    let names = Names::new([nobody]);
    let replicas = replicas(&names, OFTEN);
    let client = identity(&replicas);
    for _ in 0..2 {
        let error = client.key_set().await.expect_err("nobody is there");
        let KeySetError::Unavailable(failure) = error else { panic!("{error:?}") };
        assert!(failure.message.contains("refused"), "{failure}");
    }
    let server = Scripted::start(|_| Step::Answer).await;
    names.say([server.address]);
    in_the_end(async { while client.key_set().await.is_err() {} }).await;
    // A name that nobody knows fails as fast.
    let names = Names::new([]);
    names.fail();
    let unknown = self::replicas(&names, OFTEN);
    let error = identity(&unknown).key_set().await.expect_err("no addresses");
    let KeySetError::Unavailable(failure) = error else { panic!("{error:?}") };
    assert!(failure.message.contains("cannot be looked up"), "{failure}");
}

#[tokio::test]
async fn a_connection_that_is_lost_or_told_to_end_has_the_name_looked_up_and_no_call_fails() {
    // Connections of this server end after a moment, politely.
    let mut polite = options(memory());
    polite.grpc.settings.max_connection_age = Duration::from_millis(300);
    let server = Server::with(polite, Arc::new(ManualClock::new(NOW))).await;
    let names = Names::new([server.grpc]);
    let replicas = replicas(&names, WHEN_NEEDED);
    let client = identity(&replicas);
    let calls = AtomicUsize::new(0);
    let asking = async {
        loop {
            client.key_set().await.expect("no call fails");
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = asking => {}
        () = names.asked_again(3) => {}
    }
    // Idle, too.
    names.asked_again(2).await;
    assert!(calls.load(Ordering::Relaxed) > 3);
    server.stop().await;
    // Cut off, the other way of losing one.
    let cut = Scripted::start(|n| if n == 0 { Step::Cut } else { Step::Answer }).await;
    let names = Names::new([cut.address]);
    let replicas = self::replicas(&names, WHEN_NEEDED);
    identity(&replicas).key_set().await.expect("made again");
    names.asked_in_all(2).await;
}

#[tokio::test]
async fn each_replica_shows_a_certificate_for_the_name_whatever_its_address() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Ca::new();
    let name = SanType::DnsName("avouch.test".try_into().expect("a name"));
    let (certificate, key) = authority.issue(vec![name]);
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let mut secure = options(memory());
    secure.grpc.tls = Some(TlsSettings {
        client_ca_file: Some(write("ca.pem", &authority.pem)),
        client_auth: ClientAuth::Optional,
        ..TlsSettings::new(write("tls.pem", &certificate), write("tls.key", &key))
    });
    let ca = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    let clock = Arc::new(ManualClock::new(NOW));
    let tls = ca.clone().domain_name("avouch.test");
    let server = Server::with_channel(secure, clock, |address| async move {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("https://{address}"));
        endpoint.expect("a URL").tls_config(tls).expect("TLS").connect().await.expect("it listens")
    })
    .await
    .expect("the server starts");

    let names = Names::new([server.grpc]);
    let target = Target::tls("https://avouch.test:7700", ca.clone()).expect("a target");
    let entropy = || Arc::new(OsEntropy);
    let good = Replicas::start(target, Arc::clone(&names) as _, WHEN_NEEDED, entropy());
    identity(&good).key_set().await.expect("the name is in the certificate");
    // A client whose certificate its registration names needs no secret.
    let spiffe = "spiffe://mesh.test/ns/shop/sa/orders";
    let registration = Client { certificate_names: vec![spiffe.into()], ..client("orders") };
    server.add_client(registration).await;
    let mutual = ca.clone().identity(authority.workload(spiffe));
    let target = Target::tls("https://avouch.test:7700", mutual).expect("a target");
    let mutual = Replicas::start(target, Arc::clone(&names) as _, WHEN_NEEDED, entropy());
    let log_in = async |replicas: &Replicas| {
        let orders = ClientCredential::certificate("orders");
        let orders = Identity::new(replicas.clone(), orders, entropy()).within(FAR);
        orders.authenticate(Login::client_credentials()).await
    };
    log_in(&mutual).await.expect("it is known by its certificate");
    let refused = log_in(&good).await.expect_err("it shows none");
    assert!(matches!(refused, AuthenticateError::Refused(_)), "{refused:?}");
    // The same address under another name is not believed.
    struct Same(SocketAddr);
    #[async_trait::async_trait]
    impl Resolve for Same {
        async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            Ok(vec![self.0])
        }
    }
    let target = Target::tls("https://other.test:7700", ca.clone()).expect("a target");
    let other = Replicas::start(target, Arc::new(Same(server.grpc)), WHEN_NEEDED, entropy());
    let error = identity(&other).key_set().await.expect_err("another name");
    let KeySetError::Unavailable(failure) = error else { panic!("{error:?}") };
    assert!(failure.message.contains("certificate"), "{failure}");

    for wrong in ["avouch.test:7700", "http://avouch.test", "ftp://avouch.test:21", "", "http://"] {
        assert!(Target::plaintext(wrong).is_err(), "{wrong}");
    }
    assert!(Target::plaintext("https://avouch.test:7700").is_err());
    assert!(Target::tls("http://avouch.test:7700", ca).is_err());
    server.stop().await;
}
