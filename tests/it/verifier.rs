//! The verifier against a real server: what it accepts, what it refuses and how soon, and what it does
//! when the stream is silent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use avouch::client::identity::{ClientCredential, Identity, Login};
use avouch::client::token_source::TokenSource;
use avouch::client::watch::{Authorization, WatchSettings};
use avouch::crypto::OsEntropy;
use avouch::domain::clock::SystemClock;
use avouch::domain::view::RevokedBy;
use avouch::pb::v1 as pb;
use avouch::verifier::{
    Ask, AskServer, Ended, Policy, Refusal, Verdict, Verifier, VerifierSettings,
};
use pb::revoke_request::Target;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::harness::{ISSUER, OWN_AUDIENCE, Server, bearer, connect, memory, options};
use crate::support::proxy::Proxy;

/// Longer than anything here takes; a test that waits for it has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A server, its clients, and a user.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) operator: pb::ClientAuthentication,
    app: pb::ClientAuthentication,
    credential: Arc<Mutex<String>>,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        // By the clock of the machine, as a verifier's time goes on by itself.
        let server = Server::with_system_clock(options(memory())).await;
        let operator = server.powerful("operator").await;
        let app = server.first_party("app").await;
        for user in ["ada", "ben"] {
            server.add_user(user).await;
        }
        let credential = Arc::new(Mutex::new(server.own_token(&operator).await));
        Self { server, operator, app, credential }
    }

    fn authorization(&self) -> Authorization {
        let credential = Arc::clone(&self.credential);
        Arc::new(move || format!("Bearer {}", credential.lock().unwrap()).parse().ok())
    }

    /// A new credential for the stream and for questions, as the old one was revoked.
    async fn renew(&self) {
        let renewed = self.server.own_token(&self.operator).await;
        *self.credential.lock().unwrap() = renewed;
    }

    async fn revoke_key(&self, kid: String) {
        let token = self.credential.lock().unwrap().clone();
        let request = bearer(pb::RevokeKeyRequest { kid, ..Default::default() }, &token);
        self.server.admin().revoke_key(request).await.expect("the key is revoked");
        self.renew().await;
    }

    pub(crate) fn settings(&self, stream: SocketAddr) -> VerifierSettings {
        let endpoint = Endpoint::from_shared(format!("http://{stream}")).expect("a URL");
        let watch = WatchSettings {
            heartbeat: Duration::from_millis(100),
            authorization: Some(self.authorization()),
            ..WatchSettings::new(vec![endpoint])
        };
        // A slow machine is no reason to be stale.
        VerifierSettings { max_staleness: LONG, ..VerifierSettings::new(ISSUER, watch) }
    }

    /// For tests of what becomes of those who hear nothing.
    pub(crate) fn impatient(&self, stream: SocketAddr) -> VerifierSettings {
        VerifierSettings { max_staleness: Duration::from_millis(1500), ..self.settings(stream) }
    }

    async fn ask(&self) -> Arc<dyn Ask> {
        let channel = connect(self.server.grpc).await;
        Arc::new(AskServer::new(channel, Some(self.authorization())))
    }

    /// A verifier whose stream goes by `stream`, and whose questions go to the server.
    pub(crate) async fn verifier(&self, settings: VerifierSettings) -> Verifier {
        start(settings, Some(self.ask().await)).await
    }

    pub(crate) async fn login(&self, user: &str) -> pb::TokenSet {
        self.server.login(&self.app, user).await
    }

    /// Revokes, and waits until every watcher has it. On a machine that is too busy for heartbeats, a
    /// watcher may be away just then; it has it once it is back.
    pub(crate) async fn revoke(&self, verifier: &Verifier, target: Target) {
        let request = pb::RevokeRequest {
            client: Some(self.operator.clone()),
            target: Some(target),
            wait: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
            ..Default::default()
        };
        let answer = self.server.identity().revoke(request).await.expect("it is revoked");
        let answer = answer.into_inner();
        let result = answer.wait_result.expect("a result");
        assert!(result.complete, "{result:?}");
        let revision = answer.cursor.expect("a cursor").revision;
        until("the verifier has it", || {
            verifier.status().cursor.is_some_and(|cursor| cursor.revision.0 >= revision)
        })
        .await;
    }

    /// Revokes without waiting for anybody.
    pub(crate) async fn revoke_now(&self, target: Target) {
        self.server.revoke(&self.operator, target).await.expect("it is revoked");
    }
}

async fn start(settings: VerifierSettings, ask: Option<Arc<dyn Ask>>) -> Verifier {
    let clock = Arc::new(SystemClock::default());
    let verifier = Verifier::start(settings, clock, Arc::new(OsEntropy), ask);
    timeout(LONG, verifier.synced()).await.expect("the set is complete in time");
    verifier
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

pub(crate) async fn until_stale(verifier: &Verifier, token: &str) {
    until("the view is stale", || matches!(verifier.check(token), Verdict::Stale(_))).await;
}

#[tokio::test]
async fn what_revoke_has_waited_for_is_refused_at_every_level() {
    let scene = Scene::new().await;
    let verifier = scene.verifier(scene.settings(scene.server.grpc)).await;
    let control = scene.server.own_token(&scene.operator).await;

    let one = scene.login("ada").await;
    let other = scene.login("ada").await;
    let verified = verifier.verify(&one.access_token).await.expect("it is good");
    assert_eq!(verified.claims.subject.as_str(), one.subject);
    scene.revoke(&verifier, Target::Token(one.access_token.clone())).await;
    let refused = verifier.verify(&one.access_token).await.expect_err("revoked");
    assert_eq!(refused, Refusal::Revoked(RevokedBy::Token));
    let sibling = scene.server.refresh(&scene.app, &one.refresh_token).await.expect("tokens");
    verifier.verify(&sibling.access_token).await.expect("its session goes on");

    scene.revoke(&verifier, Target::SessionId(one.session_id.clone())).await;
    let refused = verifier.verify(&sibling.access_token).await.expect_err("revoked");
    assert_eq!(refused, Refusal::Revoked(RevokedBy::Session));
    verifier.verify(&other.access_token).await.expect("another session");

    let ben = scene.login("ben").await;
    scene.revoke(&verifier, Target::Subject(other.subject.clone())).await;
    let refused = verifier.verify(&other.access_token).await.expect_err("revoked");
    assert_eq!(refused, Refusal::Revoked(RevokedBy::Subject));
    verifier.verify(&ben.access_token).await.expect("another subject");
    let again = scene.login("ada").await;
    verifier.verify(&again.access_token).await.expect("a login after it is good");

    scene.revoke(&verifier, Target::ClientId(scene.app.client_id.clone())).await;
    for token in [&ben, &again] {
        let refused = verifier.verify(&token.access_token).await.expect_err("revoked");
        assert_eq!(refused, Refusal::Revoked(RevokedBy::Client));
    }
    verifier.verify(&control).await.expect("another client");

    scene.revoke(&verifier, Target::Everything(true)).await;
    let refused = verifier.verify(&control).await.expect_err("revoked");
    assert_eq!(refused, Refusal::Revoked(RevokedBy::Everything));
    scene.renew().await;
    let after = scene.login("ben").await;
    verifier.verify(&after.access_token).await.expect("a login after it is good");

    let stats = verifier.stats();
    assert_eq!((stats.accepted, stats.revoked, stats.asked), (7, 6, 0), "{stats:?}");
}

#[tokio::test]
async fn a_key_that_was_taken_back_takes_its_tokens_along_and_the_next_one_is_known_at_once() {
    let scene = Scene::new().await;
    let verifier = scene.verifier(scene.settings(scene.server.grpc)).await;
    let token = scene.login("ada").await.access_token;
    let kid = verifier.verify(&token).await.expect("it is good").key.to_string();
    scene.revoke_key(kid).await;
    // By the event, or because the key is gone from the set of keys, whichever is here first.
    let is_refused = |verdict| {
        use Refusal::{Invalid, Revoked};
        matches!(verdict, Verdict::Refused(Revoked(RevokedBy::Key) | Invalid(_)))
    };
    until("the token is refused", || is_refused(verifier.check(&token))).await;
    verifier.verify(&token).await.expect_err("it stays refused");
    let next = scene.login("ada").await.access_token;
    verifier.verify(&next).await.expect("signed by the next key");
}

#[tokio::test]
async fn a_silent_stream_makes_it_stale_and_the_policy_decides() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let limit = Duration::from_millis(1500);
    let verifier = scene.verifier(scene.impatient(proxy.address)).await;
    let alone = start(scene.impatient(proxy.address), None).await;
    let good = scene.login("ada").await.access_token;
    let known = scene.login("ada").await.access_token;
    let unknown = scene.login("ada").await.access_token;
    for token in [&good, &known, &unknown] {
        verifier.verify(token).await.expect("fresh, so nobody is asked");
        alone.verify(token).await.expect("the same");
    }
    scene.revoke(&verifier, Target::Token(known.clone())).await;
    proxy.mute(true);
    until_stale(&verifier, &good).await;
    until_stale(&alone, &good).await;
    scene.revoke_now(Target::Token(unknown.clone())).await;

    // What is known to be revoked is refused in every mode.
    for policy in [Policy::Closed, Policy::Introspect, Policy::Open] {
        let refused = verifier.verify_with(&known, policy, limit).await.expect_err("revoked");
        assert_eq!(refused, Refusal::Revoked(RevokedBy::Token), "{policy}");
    }

    let refused = verifier.verify_with(&good, Policy::Closed, limit).await.expect_err("stale");
    assert_eq!(refused, Refusal::Stale);
    assert!(refused.is_unavailable(), "never a reason to log in again");

    verifier.verify_with(&good, Policy::Introspect, limit).await.expect("the server says good");
    let refused = verifier.verify_with(&unknown, Policy::Introspect, limit).await;
    assert_eq!(refused.expect_err("the server says no"), Refusal::Inactive);
    let refused = alone.verify_with(&good, Policy::Introspect, limit).await;
    assert_eq!(refused.expect_err("nobody to ask"), Refusal::Stale);

    verifier.verify_with(&unknown, Policy::Open, limit).await.expect("open until it expires");
    assert_eq!(verifier.stats().opened, 1);
    assert_eq!(verifier.stats().asked, 2);

    // The stream is back: no gap.
    proxy.mute(false);
    until("the missed revocation is in force", || {
        matches!(verifier.check(&unknown), Verdict::Refused(Refusal::Revoked(RevokedBy::Token)))
    })
    .await;
    until("it is fresh", || matches!(verifier.check(&good), Verdict::Good(_))).await;
    verifier.verify_with(&good, Policy::Closed, limit).await.expect("fresh");
}

/// So that those who log in or refresh while the stream is down can go on.
#[tokio::test]
async fn a_token_that_was_made_after_the_stream_fell_silent_is_as_young_as_itself() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let verifier = scene.verifier(scene.settings(proxy.address)).await;
    let old = scene.login("ada").await.access_token;
    // `iat` is in whole seconds, so up to one of them counts against the limit.
    let (limit, rest) = (Duration::from_millis(2500), Duration::from_millis(1500));
    verifier.verify_with(&old, Policy::Closed, limit).await.expect("fresh");
    proxy.mute(true);
    until("the view is stale", || verifier.status().age.is_some_and(|age| age > limit)).await;
    loop {
        let began = tokio::time::Instant::now();
        let young = scene.login("ada").await.access_token;
        let verified = verifier.verify_with(&young, Policy::Closed, limit).await;
        if began.elapsed() < rest {
            verified.expect("younger than the limit");
            break;
        }
    }
    let refused = verifier.verify_with(&old, Policy::Closed, limit).await.expect_err("older");
    assert_eq!(refused, Refusal::Stale);
}

#[tokio::test]
async fn an_answer_of_the_server_holds_for_a_moment() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let verifier = scene.verifier(scene.impatient(proxy.address)).await;
    let token = scene.login("ada").await.access_token;
    verifier.verify(&token).await.expect("fresh");
    proxy.mute(true);
    until_stale(&verifier, &token).await;
    // However slow the machine is, fewer questions than seconds.
    let began = tokio::time::Instant::now();
    for _ in 0..200 {
        verifier.verify(&token).await.expect("the server says good");
    }
    let asked = verifier.stats().asked;
    assert!(asked >= 1 && asked <= 2 + began.elapsed().as_secs(), "{asked}");
}

#[tokio::test]
async fn a_key_that_the_stream_has_not_brought_is_asked_for() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let verifier = scene.verifier(scene.settings(proxy.address)).await;
    let alone = start(scene.impatient(proxy.address), None).await;
    let old = scene.login("ada").await.access_token;
    let kid = verifier.verify(&old).await.expect("it is good").key.to_string();
    proxy.mute(true);
    scene.revoke_key(kid).await;
    // The one that was in reserve is known to everybody.
    let reserve = scene.login("ada").await.access_token;
    let known = alone.verify_with(&reserve, Policy::Closed, LONG).await.expect("it is known");
    scene.revoke_key(known.key.to_string()).await;
    let next = scene.login("ada").await.access_token;
    verifier.verify_with(&next, Policy::Closed, LONG).await.expect("the key was asked for");
    // Without anybody to ask: a bad token as long as the view is fresh, and nobody's fault after.
    let refused = alone.verify_with(&next, Policy::Closed, LONG).await.expect_err("unknown key");
    assert!(matches!(refused, Refusal::Invalid(_)), "{refused:?}");
    until_stale(&alone, &old).await;
    assert_eq!(alone.verify(&next).await.expect_err("unknown key"), Refusal::Stale);
}

/// Who revokes everything revokes the verifier's own token, too: it gets another, and goes on.
#[tokio::test]
async fn a_verifier_whose_own_token_was_revoked_gets_another_and_goes_on() {
    let scene = Scene::new().await;
    let entropy = Arc::new(OsEntropy);
    let credential = ClientCredential::secret(
        scene.operator.client_id.clone(),
        scene.operator.client_secret.clone(),
    );
    let identity = Identity::new(connect(scene.server.grpc).await, credential, entropy.clone());
    let login = Login::client_credentials().for_audiences([OWN_AUDIENCE]);
    let clock = Arc::new(SystemClock::default());
    let source = TokenSource::client_credentials(identity, login, clock, entropy);
    source.token().await.expect("a token");
    let mut settings = scene.settings(scene.server.grpc);
    settings.watch.authorization = Some(source.authorization());
    settings.watch.refused = Some(source.refused());
    let verifier = start(settings, None).await;
    for _ in 0..3 {
        // Which it has is what it could not have without another token.
        scene.revoke(&verifier, Target::Everything(true)).await;
    }
    let ada = scene.login("ada").await;
    until("it is fresh", || matches!(verifier.check(&ada.access_token), Verdict::Good(_))).await;
    scene.revoke(&verifier, Target::SessionId(ada.session_id)).await;
    let refused = verifier.verify(&ada.access_token).await.expect_err("revoked");
    assert_eq!(refused, Refusal::Revoked(RevokedBy::Session));
}

#[tokio::test]
async fn nothing_is_accepted_before_the_set_is_complete() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    proxy.mute(true);
    let clock = Arc::new(SystemClock::default());
    let settings = scene.settings(proxy.address);
    let ask = Some(scene.ask().await);
    let verifier = Verifier::start(settings, clock, Arc::new(OsEntropy), ask);
    let token = scene.login("ada").await.access_token;
    for policy in [Policy::Closed, Policy::Introspect, Policy::Open] {
        let refused = verifier.verify_with(&token, policy, LONG).await.expect_err("not ready");
        assert_eq!(refused, Refusal::NotReady, "{policy}");
        assert!(refused.is_unavailable());
    }
    assert!(!verifier.status().synced);
    proxy.mute(false);
    timeout(LONG, verifier.synced()).await.expect("complete");
    verifier.verify(&token).await.expect("good");
}

#[tokio::test]
async fn what_a_token_opened_ends_with_it_and_with_nothing_else() {
    let scene = Scene::new().await;
    let verifier = scene.verifier(scene.settings(scene.server.grpc)).await;
    let ada = scene.login("ada").await;
    let ben = scene.login("ben").await;
    let of_ada = verifier.verify(&ada.access_token).await.expect("good");
    let of_ben = verifier.verify(&ben.access_token).await.expect("good");
    let (guard, kept) = (verifier.guard(&of_ada), verifier.guard(&of_ben));
    let dropped = verifier.guard(&of_ada);
    assert_eq!(verifier.status().guarded, 3);
    drop(dropped);
    assert_eq!(verifier.status().guarded, 2);
    scene.revoke(&verifier, Target::SessionId(ada.session_id)).await;
    let ended = timeout(LONG, guard).await.expect("it ends");
    assert_eq!(ended, Ended::Revoked(RevokedBy::Session));
    // One that comes too late for the event finds it in the view.
    let late = timeout(LONG, verifier.guard(&of_ada)).await.expect("it ends at once");
    assert_eq!(late, Ended::Revoked(RevokedBy::Session));
    assert_eq!(verifier.status().guarded, 1, "the other one goes on");
    scene.revoke(&verifier, Target::Everything(true)).await;
    let ended = timeout(LONG, kept).await.expect("it ends");
    assert_eq!(ended, Ended::Revoked(RevokedBy::Everything));
    assert_eq!(verifier.status().guarded, 0);
}

/// The revocation came while the stream was away: the set that follows ends what it opened.
#[tokio::test]
async fn what_a_token_opened_ends_when_the_stream_is_back() {
    let scene = Scene::new().await;
    let proxy = Proxy::to(scene.server.grpc).await;
    let verifier = scene.verifier(scene.settings(proxy.address)).await;
    let ada = scene.login("ada").await;
    let verified = verifier.verify(&ada.access_token).await.expect("good");
    let guard = verifier.guard(&verified);
    proxy.mute(true);
    scene.revoke_now(Target::Subject(ada.subject)).await;
    until("the stream is given up", || !verifier.status().connected).await;
    proxy.mute(false);
    let ended = timeout(LONG, guard).await.expect("it ends");
    assert_eq!(ended, Ended::Revoked(RevokedBy::Subject));
}

#[tokio::test]
async fn what_has_no_room_is_asked_about_and_never_forgotten() {
    let scene = Scene::new().await;
    let mut settings = scene.settings(scene.server.grpc);
    settings.watch.max_entries = 3;
    let verifier = scene.verifier(settings).await;
    let mut revoked = Vec::new();
    for _ in 0..6 {
        let tokens = scene.login("ada").await;
        scene.revoke(&verifier, Target::SessionId(tokens.session_id.clone())).await;
        revoked.push(tokens.access_token);
    }
    let good = scene.login("ada").await.access_token;
    let status = verifier.status();
    assert!(status.partial && status.entries <= 3, "{status:?}");
    for (n, token) in revoked.iter().enumerate() {
        let refused = verifier.verify_with(token, Policy::Closed, LONG).await;
        let expected = [Refusal::Revoked(RevokedBy::Session), Refusal::Inactive];
        assert!(expected.contains(&refused.expect_err("revoked")), "token {n}");
    }
    verifier.verify_with(&good, Policy::Closed, LONG).await.expect("the server says good");
    // No policy spares the question: what was left out is no less revoked.
    for (n, token) in revoked.iter().enumerate() {
        let refused = verifier.verify_with(token, Policy::Open, LONG).await;
        assert!(refused.is_err(), "token {n}");
    }
    assert_eq!(verifier.stats().opened, 0);
    // And what such a token opened ends, though the view cannot name it.
    let next = scene.login("ada").await;
    let open = verifier.verify(&next.access_token).await.expect("good");
    let guard = verifier.guard(&open);
    scene.revoke(&verifier, Target::SessionId(next.session_id)).await;
    assert_eq!(timeout(LONG, guard).await.expect("it ends"), Ended::Unsure);
    assert!(verifier.stats().asked >= 4, "{:?}", verifier.stats());
}
