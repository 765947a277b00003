//! The typed calls: what they give, how long they take, and what is tried again.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::RetrySettings;
use avouch::client::identity::{
    AuthenticateError, ClientCredential, Deadlines, Identity, IntrospectError, KeySetError, Login,
    Question, RefreshError, Revocation, RevocationTarget, RevokeError, SessionsError,
};
use avouch::crypto::OsEntropy;
use avouch::domain::secret::SecretText;
use avouch::pb::v1 as pb;
use avouch::verifier::Ask;
use futures_util::future::BoxFuture;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::scripted::{Scripted, Step, status};
use crate::harness::{PASSWORD, Server};

/// Retries that do not make a test wait, and a budget that it does not use up.
pub(super) const QUICK: RetrySettings = RetrySettings {
    attempts: 4,
    first: Duration::from_millis(1),
    longest: Duration::from_millis(2),
    budget: 10_000,
};
/// A deadline that no test is to reach.
const FAR: Duration = Duration::from_secs(120);

pub(super) fn secret(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

pub(super) fn credential(client: &pb::ClientAuthentication) -> ClientCredential {
    ClientCredential::secret(&client.client_id, &client.client_secret)
}

fn lazy(server: &Scripted) -> Channel {
    Endpoint::from_shared(server.url()).expect("a URL").connect_lazy()
}

/// A client of the script.
pub(super) fn quick(server: &Scripted) -> Identity {
    let credential = ClientCredential::secret("app", "s3cret-of-the-app");
    Identity::new(lazy(server), credential, Arc::new(OsEntropy))
        .with_retries(QUICK)
        .with_deadlines(Deadlines::all(FAR))
}

#[tokio::test]
async fn each_call_gives_what_the_server_says() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let power = server.powerful("power").await;
    server.add_user("ada").await;
    let entropy = Arc::new(OsEntropy);
    let identity =
        Identity::new(server.channel.clone(), credential(&app), entropy.clone()).within(FAR);

    let login = Login::password("ada", secret(PASSWORD)).with_scopes(["read"]);
    let first = identity.authenticate(login).await.expect("tokens");
    assert_eq!(
        (first.scopes.as_slice(), first.expires_in.as_secs()),
        (&["read".to_owned()][..], 300)
    );
    assert_eq!(first.access_token_expires.as_secs(), crate::harness::NOW.as_secs() + 300);
    let next = first.refresh_token.clone().expect("a refresh token");
    let second = identity.refresh(next).await.expect("tokens");
    assert_eq!(second.session_id, first.session_id);
    assert!(second.session_expires > second.refresh_token_expires);

    let ask = |token: &SecretText| identity.introspect(token.clone());
    let answer = ask(&second.access_token).await.expect("an answer").expect("active");
    assert_eq!((answer.client_id.as_str(), &answer.subject), ("app", &second.subject));

    let keys = identity.key_set().await.expect("keys");
    assert!(keys.jwks_json.contains(&keys.keys[0].kid));

    // A verifier asks by the same calls.
    let verifier: &dyn Ask = &identity;
    assert!(verifier.is_active(second.access_token.expose()).await.expect("an answer"));
    assert_eq!(verifier.keys().await.expect("keys"), keys.keys);

    // The sessions are shown to who has the right: by an access token that the transport adds.
    let nobody = Identity::unnamed(server.channel.clone(), entropy.clone()).within(FAR);
    let refused = nobody.session(&second.session_id).await.expect_err("nobody asks");
    assert!(matches!(refused, SessionsError::Refused(_)), "{refused:?}");
    let refused = nobody.introspect(secret("x")).await.expect_err("nobody asks");
    assert!(matches!(refused, IntrospectError::Refused(_)), "{refused:?}");

    let target = RevocationTarget::Token(second.access_token.clone());
    let wait = Some(Duration::from_secs(1));
    let revoked = identity.revoke(Revocation { wait, ..target.into() }).await.expect("revoked");
    let wait_result = revoked.wait_result.expect("it waited");
    assert!(wait_result.complete && wait_result.watchers_connected == 0);
    let at_least = revoked.cursor.clone();
    let asker = Identity::new(server.channel.clone(), credential(&power), entropy).within(FAR);
    let question = Question { at_least, ..second.access_token.clone().into() };
    assert!(asker.introspect(question).await.expect("an answer").is_none());
    let verifier: &dyn Ask = &asker;
    assert!(!verifier.is_active(second.access_token.expose()).await.expect("an answer"));

    // Each failure has its variant, and the reason of the server.
    let wrong = identity.authenticate(Login::password("ada", secret("wrong"))).await;
    let Err(AuthenticateError::Refused(failure)) = wrong else { panic!("{wrong:?}") };
    assert_eq!(failure.reason, "CREDENTIAL_NOT_ACCEPTED");
    let wrong = identity.authenticate(Login::client_credentials().with_scopes(["all"])).await;
    let Err(AuthenticateError::Denied(failure)) = wrong else { panic!("{wrong:?}") };
    assert_eq!(failure.reason, "SCOPE_NOT_ALLOWED");
    let wrong = identity.authenticate(Login::client_credentials().with_scopes([""])).await;
    let Err(AuthenticateError::Invalid(failure)) = wrong else { panic!("{wrong:?}") };
    assert!(failure.fields[0].0.starts_with("scopes"), "{failure:?}");
    let spent = identity.refresh(secret("avr1_never")).await;
    assert!(matches!(spent, Err(RefreshError::Refused(_) | RefreshError::Invalid(_))), "{spent:?}");
    let denied = identity.revoke(RevocationTarget::Everything).await;
    assert!(matches!(denied, Err(RevokeError::Denied(_))), "{denied:?}");
    let log_id = "AAAAAAAAAAAAAAAAAAAAAA".to_owned();
    let at_least = Some(pb::Cursor { log_id, revision: 1 });
    let other = asker.introspect(Question { at_least, ..second.access_token.clone().into() }).await;
    assert!(matches!(other, Err(IntrospectError::OtherLog(_))), "{other:?}");

    // Nothing that is shown shows a secret.
    let shown = format!("{first:?} {identity:?} {:?}", Login::password("ada", secret(PASSWORD)));
    for hidden in [PASSWORD, first.access_token.expose(), &app.client_secret] {
        assert!(!shown.contains(hidden), "{shown}");
    }
    server.stop().await;
}

/// A call that gives what its error shows.
type AnyCall = fn(Identity) -> BoxFuture<'static, Option<String>>;

fn every_call() -> [(&'static str, AnyCall); 5] {
    fn said<T, E: std::fmt::Debug>(outcome: Result<T, E>) -> Option<String> {
        outcome.err().map(|error| format!("{error:?}"))
    }
    [
        ("Authenticate", |it| {
            Box::pin(async move { said(it.authenticate(Login::client_credentials()).await) })
        }),
        ("Refresh", |it| Box::pin(async move { said(it.refresh(secret("r")).await) })),
        ("Revoke", |it| {
            Box::pin(async move { said(it.revoke(RevocationTarget::Everything).await) })
        }),
        ("Introspect", |it| Box::pin(async move { said(it.introspect(secret("t")).await) })),
        ("GetKeySet", |it| Box::pin(async move { said(it.key_set().await) })),
    ]
}

#[tokio::test]
async fn only_what_the_protos_name_is_tried_again() {
    let soon = Some(Duration::from_millis(1));
    for code in (1..=16).map(Code::from_i32) {
        for retry_after in [None, soon] {
            for (name, call) in every_call() {
                let server =
                    Scripted::start(move |_| Step::Fail(status(code, "TOLD", retry_after))).await;
                let error = call(quick(&server)).await.expect("an error");
                let again = match code {
                    Code::Unavailable => true,
                    Code::ResourceExhausted => name == "Authenticate" && retry_after.is_some(),
                    _ => false,
                };
                let expected = if again { 4 } else { 1 };
                assert_eq!(server.calls(), expected, "{name} {code:?} {retry_after:?}: {error}");
                assert_eq!(error.contains("TOLD"), code != Code::DeadlineExceeded, "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_whose_connection_is_cut_is_made_again_with_the_same_token() {
    for (name, call) in every_call() {
        let server = Scripted::start(|n| if n == 0 { Step::Cut } else { Step::Answer }).await;
        assert_eq!(call(quick(&server)).await, None, "{name}");
        assert_eq!(server.calls(), 2, "{name}");
        let seen = server.seen();
        assert_eq!(seen[0].refresh_token, seen[1].refresh_token);
    }
}

#[tokio::test]
async fn a_server_that_says_never_again_is_believed() {
    let server = Scripted::start(|_| {
        let mut status = status(Code::Unavailable, "TOLD", None);
        status.metadata_mut().insert("grpc-retry-pushback-ms", "-1".parse().expect("metadata"));
        Step::Fail(status)
    })
    .await;
    quick(&server).key_set().await.expect_err("unavailable");
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn a_wait_that_ends_after_the_deadline_is_not_begun() {
    let hour = Some(Duration::from_secs(3600));
    let server =
        Scripted::start(move |_| Step::Fail(status(Code::Unavailable, "TOLD", hour))).await;
    let error = quick(&server).key_set().await.expect_err("unavailable");
    let KeySetError::Unavailable(failure) = error else { panic!("{error:?}") };
    assert_eq!((failure.retry_after, server.calls()), (hour, 1));
}

#[tokio::test]
async fn the_deadline_covers_all_tries_and_the_server_is_told_what_is_left() {
    // No number of attempts outlasts it, and it needs no answer.
    let play =
        |n| if n < 3 { Step::Fail(status(Code::Unavailable, "TOLD", None)) } else { Step::Hang };
    let server = Scripted::start(play).await;
    let limit = Duration::from_millis(500);
    let endless = RetrySettings { attempts: u32::MAX, ..QUICK };
    let identity = quick(&server).with_retries(endless).within(limit);
    // On a machine that is slow enough, the time is over before the second try.
    let told = loop {
        let before = server.calls();
        if before >= 3 {
            server.now(move |n| play(n - before));
        }
        identity.key_set().await.expect_err("no answer");
        let told: Vec<_> = server.seen()[before..].iter().map(|it| it.timeout).collect();
        if told.len() > 1 {
            break told;
        }
    };
    assert!(told[0] <= limit && told.is_sorted_by(|a, b| a > b), "{told:?}");
    server.now(|_| Step::Hang);
    let error = identity.key_set().await.expect_err("no answer");
    assert!(matches!(error, KeySetError::Deadline), "{error:?}");
}

#[tokio::test]
async fn without_another_word_the_deadlines_are_those_of_the_protos() {
    let server = Scripted::start(|_| Step::Answer).await;
    let entropy = Arc::new(OsEntropy);
    // Connected, so that nothing is waited for.
    let channel = crate::harness::connect(server.address).await;
    let identity = Identity::new(channel, ClientCredential::public("app"), entropy);
    for ((name, call), millis) in every_call().into_iter().zip([2000, 1000, 1000, 250, 1000]) {
        let before = server.calls();
        // On a machine that is slow enough, it passes before the call is on its way.
        while server.calls() == before {
            let _ = call(identity.clone()).await;
        }
        let (told, limit) = (server.seen()[before].timeout, Duration::from_millis(millis));
        assert!(told <= limit && told > limit.mul_f64(0.4), "{name}: {told:?}");
    }
}

#[tokio::test]
async fn an_outage_uses_up_the_budget_and_then_each_call_is_made_once() {
    let server = Scripted::start(|_| Step::Fail(status(Code::Unavailable, "TOLD", None))).await;
    let identity = quick(&server).with_retries(RetrySettings { budget: 10, ..QUICK });
    for _ in 0..20 {
        identity.key_set().await.expect_err("unavailable");
    }
    // Three retries of the first call; the next failure leaves no more than half.
    assert_eq!(server.calls(), 23);
}
