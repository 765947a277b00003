//! A server on a machine whose clock is wrong: what docs/operate.md says of it happens.

use std::sync::Arc;
use std::time::Duration;

use avouch::domain::clock::{Clock as _, ManualClock, SystemClock};
use avouch::pb::v1 as pb;
use tonic::Code;

use crate::crash::home;
use crate::harness::{ENCRYPTION_KEY, PASSWORD, Server, options, password_login, sled};
use crate::process::{Process, identity};

const DAY: Duration = Duration::from_secs(86_400);

/// The clock was 40 days ahead for a while, and is right again.
#[tokio::test]
async fn time_stands_still_until_the_clock_has_caught_up_and_the_log_says_so() {
    let (_home, data) = home();
    let now = SystemClock::default().now();
    let ahead = now.after(40 * DAY);
    let server = Server::with(options(sled(&data)), Arc::new(ManualClock::new(now))).await;
    let web = server.first_party("web").await;
    server.add_user("ada").await;
    let before = server.login(&web, "ada").await;
    server.clock.set(ahead);
    let amid = server.login(&web, "ada").await;
    server.stop().await;

    avouch::cli::files::write_private(&data.join("encryption.key"), ENCRYPTION_KEY).unwrap();
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let told = process.stderr();
    assert!(told.contains("the clock is behind the newest time in the store"), "{told}");
    let mut api = identity(&addresses).await;
    let mut refresh = async |token: &str| {
        let (client, refresh_token) = (Some(web.clone()), token.to_owned());
        api.refresh(pb::RefreshRequest { client, refresh_token, ..Default::default() }).await
    };
    let ended = refresh(&before.refresh_token).await.expect_err("it ended by the wrong clock");
    assert_eq!(ended.code(), Code::Unauthenticated);
    refresh(&amid.refresh_token).await.expect("it began by the wrong clock");
    let login = api.authenticate(password_login(&web, "ada", PASSWORD)).await.expect("a login");
    let tokens = login.into_inner().tokens.expect("tokens");
    // Five minutes after a time that does not move.
    let expires = tokens.access_token_expire_time.expect("a time").seconds;
    let expected = i64::try_from(ahead.as_secs()).expect("a time") + 300;
    assert!((expected..expected + 2).contains(&expires), "{expires}, {expected}");
    process.kill().await;
}

/// A clock that is right says nothing.
#[tokio::test]
async fn a_clock_that_is_right_is_not_mentioned() {
    let (_home, data) = home();
    for _ in 0..2 {
        let mut process = Process::start(&data, &[]);
        process.serving().await;
        assert!(!process.stderr().contains("the clock"), "{}", process.stderr());
        process.terminate();
        process.end().await;
    }
}
