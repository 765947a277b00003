//! The token source.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use avouch::client::authorization::AuthorizationLayer;
use avouch::client::identity::{AuthenticateError, Identity, Login, Tokens};
use avouch::client::token_source::{KeepError, KeepSuccessor, TokenError, TokenSource};
use avouch::client::transport::Transport;
use avouch::crypto::OsEntropy;
use avouch::domain::clock::{Clock, ManualClock};
use avouch::service::journal::Happening;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tower_layer::Layer as _;

use super::calls::{credential, quick, secret};
use super::scripted::{Scripted, Step, status};
use crate::harness::{NOW, OWN_AUDIENCE, Server};

fn entropy() -> Arc<OsEntropy> {
    Arc::new(OsEntropy)
}

fn for_itself(identity: Identity, clock: &Arc<ManualClock>) -> TokenSource {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    TokenSource::client_credentials(identity, Login::client_credentials(), clock, entropy())
}

/// Keeps tokens in memory, and fails if told.
#[derive(Default)]
struct Drawer {
    kept: Mutex<Vec<String>>,
    asked: AtomicUsize,
    fails: AtomicBool,
}

impl Drawer {
    fn kept(&self) -> Vec<String> {
        self.kept.lock().expect("not poisoned").clone()
    }
}

#[async_trait::async_trait]
impl KeepSuccessor for Drawer {
    async fn keep(&self, tokens: &Tokens) -> Result<(), KeepError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return Err("the disk is full".into());
        }
        let token = tokens.refresh_token.as_ref().expect("a refresh token").expose().to_owned();
        self.kept.lock().expect("not poisoned").push(token);
        Ok(())
    }
}

fn session(
    identity: Identity,
    token: &str,
    drawer: &Arc<Drawer>,
    clock: &Arc<ManualClock>,
) -> TokenSource {
    let (keeper, clock) = (Arc::clone(drawer), Arc::clone(clock) as Arc<dyn Clock>);
    TokenSource::session(identity, secret(token), keeper, clock, entropy())
}

fn fail(code: Code) -> Step {
    Step::Fail(status(code, "TOLD", None))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_callers_cause_one_call() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let identity = Identity::new(server.channel.clone(), credential(&app), entropy());
    let source = for_itself(identity.within(Duration::from_secs(60)), &server.clock);
    server.journal.take();
    // None yet; then one that is over. Each time all ask at once.
    for round in 1..=2 {
        let barrier = Arc::new(Barrier::new(200));
        let mut callers = JoinSet::new();
        for _ in 0..200 {
            let (source, barrier) = (source.clone(), Arc::clone(&barrier));
            callers.spawn(async move {
                barrier.wait().await;
                source.token().await.expect("a token").expose().to_owned()
            });
        }
        let mut tokens = callers.join_all().await;
        tokens.dedup();
        assert_eq!(tokens.len(), 1, "all hold the same token");
        let logins = server.journal.take();
        let is_login = |it: &&Happening| matches!(it, Happening::LoginSucceeded { .. });
        assert_eq!(logins.iter().filter(is_login).count(), 1, "round {round}: {logins:?}");
        server.clock.advance(Duration::from_secs(3600));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_token_is_renewed_ahead_of_its_end_and_nobody_waits_for_it() {
    let server = Scripted::start(|_| Step::Answer).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let source = for_itself(quick(&server), &clock);
    assert!(source.current().is_none(), "there is none before the first was got");
    let first = source.token().await.expect("a token");
    assert_eq!((first.expose(), server.calls()), ("access-1", 1));
    // 300 s: not before three quarters.
    clock.advance(Duration::from_secs(224));
    assert_eq!(source.token().await.expect("a token").expose(), "access-1");
    assert_eq!(server.calls(), 1);
    // After 85 % at the latest it is renewed, while the old one is handed out.
    let gate = CancellationToken::new();
    let after = gate.clone();
    server.now(move |_| Step::After(after.clone()));
    clock.advance(Duration::from_secs(32));
    for _ in 0..50 {
        assert_eq!(source.token().await.expect("a token").expose(), "access-1");
    }
    server.saw(2).await;
    gate.cancel();
    // Past the end of the first one only the second will do.
    clock.advance(Duration::from_secs(50));
    assert_eq!(source.token().await.expect("a token").expose(), "access-2");
    assert_eq!(server.calls(), 2);
    // A token that is about to end is not handed out.
    clock.set(first.good_until());
    assert!(first.good_until() < NOW.after(Duration::from_secs(300)));
}

#[tokio::test]
async fn the_old_token_serves_while_the_server_is_away_and_nobody_storms_it() {
    let server = Scripted::start(|_| Step::Answer).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let source = for_itself(quick(&server), &clock);
    source.token().await.expect("a token");
    server.now(|_| fail(Code::Unavailable));
    clock.advance(Duration::from_secs(260));
    assert_eq!(source.token().await.expect("the old one").expose(), "access-1");
    // Past its end there is none; the failure is told at once, and avouch is left alone.
    clock.advance(Duration::from_secs(39));
    let error = source.token().await.expect_err("it is over");
    assert!(matches!(error, TokenError::Authenticate(_)), "{error:?}");
    let calls = server.calls();
    for _ in 0..100 {
        source.token().await.expect_err("it is over");
        assert!(source.current().is_none());
    }
    assert_eq!(server.calls(), calls, "while backing off, nobody asks");
    server.now(|_| Step::Answer);
    clock.advance(Duration::from_secs(60));
    assert_eq!(source.token().await.expect("a new one").expose(), "access-2");
    assert_eq!(server.calls(), calls + 1);
}

#[tokio::test]
async fn a_client_that_is_refused_keeps_its_token_and_asks_again_later() {
    // Its secret may be about to be replaced, here or there.
    let server = Scripted::start(|_| Step::Answer).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let source = for_itself(quick(&server), &clock);
    source.token().await.expect("a token");
    server.now(|_| fail(Code::Unauthenticated));
    clock.advance(Duration::from_secs(260));
    assert_eq!(source.token().await.expect("the old one").expose(), "access-1");
    clock.advance(Duration::from_secs(39));
    let error = source.token().await.expect_err("it is over");
    let refused = matches!(error, TokenError::Authenticate(AuthenticateError::Refused(_)));
    assert!(refused, "{error:?}");
    server.now(|_| Step::Answer);
    clock.advance(Duration::from_secs(60));
    assert_eq!(source.token().await.expect("a new one").expose(), "access-2");
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_left_alone_that_long() {
    let wait = Duration::from_secs(500);
    let server =
        Scripted::start(move |_| Step::Fail(status(Code::ResourceExhausted, "X", Some(wait))))
            .await;
    let clock = Arc::new(ManualClock::new(NOW));
    let source = for_itself(quick(&server), &clock);
    for seconds in [0, 100, 300] {
        clock.set(NOW.after(Duration::from_secs(seconds)));
        source.token().await.expect_err("exhausted");
        assert_eq!(server.calls(), 1);
    }
    clock.set(NOW.after(wait));
    source.token().await.expect_err("exhausted");
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn a_session_goes_on_with_successors_that_were_kept() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    server.add_user("ada").await;
    let login = server.login(&app, "ada").await;
    let identity = Identity::new(server.channel.clone(), credential(&app), entropy());
    let drawer = Arc::new(Drawer::default());
    let identity = identity.within(Duration::from_secs(60));
    let source = session(identity, &login.refresh_token, &drawer, &server.clock);
    for generation in 1..=3 {
        let token = source.token().await.expect("a token");
        assert!(server.introspect(&app, token.expose()).await.active);
        assert_eq!(drawer.kept().len(), generation);
        // The retry window is over, too.
        server.clock.advance(Duration::from_secs(299));
    }
    // A stolen one is used: the session ends, and the source with it.
    server.refresh(&app, &login.refresh_token).await.expect_err("spent");
    let error = source.token().await.expect_err("the session is over");
    let TokenError::Ended(failure) = &error else { panic!("{error:?}") };
    assert_eq!(failure.reason, "CREDENTIAL_NOT_ACCEPTED");
    server.journal.take();
    server.clock.advance(Duration::from_secs(3600));
    let again = source.token().await;
    assert!(matches!(again, Err(TokenError::Ended(_))), "{again:?}");
    assert!(server.journal.take().is_empty(), "a dead token is not sent again");
    assert!(matches!(source.keep_fresh().await, TokenError::Ended(_)));
    // A new login goes on.
    let login = server.login(&app, "ada").await;
    source.restart(&Tokens::from(login.clone()));
    assert_eq!(source.token().await.expect("a token").expose(), login.access_token);
    server.clock.advance(Duration::from_secs(299));
    source.token().await.expect("the next");
    server.stop().await;
}

#[tokio::test]
async fn tokens_are_not_used_before_they_are_kept() {
    let server = Scripted::start(|_| Step::Answer).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let drawer = Arc::new(Drawer::default());
    drawer.fails.store(true, Ordering::SeqCst);
    let source = session(quick(&server), "refresh-0", &drawer, &clock);
    let error = source.token().await.expect_err("it was not kept");
    assert!(matches!(error, TokenError::Keep(_)), "{error:?}");
    assert!(source.current().is_none());
    // Keeping is tried again, after a while; the server is not asked again.
    clock.advance(Duration::from_secs(60));
    source.token().await.expect_err("not kept again");
    assert_eq!((server.calls(), drawer.asked.load(Ordering::SeqCst)), (1, 2));
    drawer.fails.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(60));
    assert_eq!(source.token().await.expect("kept").expose(), "access-1");
    assert_eq!((server.calls(), drawer.kept()), (1, vec!["refresh-1".to_owned()]));
    // The next renewal is with the one that was kept.
    clock.advance(Duration::from_secs(299));
    source.token().await.expect("the next");
    assert_eq!(server.seen()[1].refresh_token, "refresh-1");
}

#[tokio::test]
async fn a_caller_that_gives_up_loses_no_successor() {
    let gate = CancellationToken::new();
    let after = gate.clone();
    let server = Scripted::start(move |_| Step::After(after.clone())).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let drawer = Arc::new(Drawer::default());
    let source = session(quick(&server), "refresh-0", &drawer, &clock);
    let caller = source.clone();
    let caller = tokio::spawn(async move { caller.token().await });
    server.saw(1).await;
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    gate.cancel();
    assert_eq!(source.token().await.expect("a token").expose(), "access-1");
    assert_eq!((server.calls(), drawer.kept()), (1, vec!["refresh-1".to_owned()]));
}

#[tokio::test]
async fn a_refresh_whose_answer_is_lost_is_asked_for_again_at_once() {
    // More often than one call tries by itself, and by other codes: any of them may have rotated.
    let server = Scripted::start(|n| match n {
        0..3 => Step::Cut,
        3 => fail(Code::Internal),
        4 => fail(Code::DeadlineExceeded),
        _ => Step::Answer,
    })
    .await;
    let clock = Arc::new(ManualClock::new(NOW));
    let drawer = Arc::new(Drawer::default());
    let source = session(quick(&server), "refresh-0", &drawer, &clock);
    assert_eq!(source.token().await.expect("a token").expose(), "access-1");
    let presented: Vec<_> = server.seen().into_iter().map(|it| it.refresh_token).collect();
    assert_eq!(presented, ["refresh-0"; 6]);
    // What is no loss is not.
    server.now(|_| fail(Code::PermissionDenied));
    clock.advance(Duration::from_secs(299));
    source.token().await.expect_err("denied");
    assert_eq!(server.calls(), 7);
}

#[tokio::test]
async fn a_layer_shows_the_token_to_whom_is_called() {
    let server = Server::start().await;
    let power = server.powerful("power").await;
    server.add_user("ada").await;
    let app = server.first_party("app").await;
    let ada = server.login(&app, "ada").await;
    let far = Duration::from_secs(60);
    let identity = Identity::new(server.channel.clone(), credential(&power), entropy()).within(far);
    let clock = Arc::clone(&server.clock) as Arc<dyn Clock>;
    let login = Login::client_credentials().for_audiences([OWN_AUDIENCE]);
    let source = TokenSource::client_credentials(identity, login, clock, entropy());
    let authorized = AuthorizationLayer::new(source.clone()).layer(server.channel.clone());
    let caller = Identity::unnamed(Transport::new(authorized), entropy()).within(far);
    let session = caller.session(&ada.session_id).await.expect("it has the right");
    assert_eq!(session.subject, ada.subject);
    let answer = caller.introspect(secret(&ada.access_token)).await.expect("it has the right");
    assert!(answer.is_some());
    // The watch is shown the same token.
    let value = source.authorization()().expect("a token");
    assert!(value.is_sensitive());
    let held = source.token().await.expect("a token");
    assert_eq!(value.to_str().expect("text"), format!("Bearer {}", held.expose()));
    assert!(!format!("{source:?} {held:?} {:?}", held.header()).contains(held.expose()));
    server.stop().await;
}

#[tokio::test]
async fn a_source_that_is_kept_fresh_renews_though_nobody_asks() {
    let server = Scripted::start(|_| Step::Answer).await;
    let clock = Arc::new(ManualClock::new(NOW));
    let source = for_itself(quick(&server), &clock);
    let kept = source.clone();
    let task = tokio::spawn(async move { kept.keep_fresh().await });
    server.saw(1).await;
    task.abort();
    // Begun again when the token is due, it does not wait for anybody.
    clock.advance(Duration::from_secs(260));
    let kept = source.clone();
    let task = tokio::spawn(async move { kept.keep_fresh().await });
    server.saw(2).await;
    task.abort();
}
