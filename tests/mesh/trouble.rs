//! The sidecar and the server in trouble: nothing passes that nobody vouched for.

use std::time::Duration;

use tokio::time::timeout;

use crate::process::PATIENCE;
use crate::proxy::Kind;
use crate::raw::Ask;
use crate::relay::Mode;
use crate::rig::Rig;

#[tokio::test]
async fn envoy_fails_closed() {
    fails_closed(Kind::Envoy).await;
}

#[tokio::test]
async fn nginx_fails_closed() {
    fails_closed(Kind::Nginx).await;
}

async fn fails_closed(kind: Kind) {
    let mut rig = Rig::start(kind).await;
    let tokens = rig.server.login(&[]).await;
    let good = Ask::get("/orders/7").bearer(&tokens.access_token);
    let asks = [good.clone(), Ask::get("/orders/7"), Ask::get("/public/hello")];
    // `Rig::once` sees to it that the workload was not asked.
    let closed = async |rig: &Rig, why: &str| {
        for ask in asks.iter().chain(&asks) {
            let (answer, _) = rig.once(ask).await;
            assert_eq!(answer.status, 503, "{why}, {ask:?}: {answer:?}");
        }
    };
    assert_eq!(rig.status(&good).await, 200);

    rig.sidecar.stop().await;
    closed(&rig, "stopped").await;
    rig.sidecar.go_on();
    rig.until(&good, 200).await;

    let sidecar = rig.sidecar_place();
    // Ten times what the proxy waits, either way.
    rig.beside.set(Mode::Slow(sidecar.clone(), Duration::from_millis(500)));
    closed(&rig, "slow").await;
    for garbage in [
        b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n",
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88",
    ] {
        // A short HTTP/1.1 200 would be an answer: that of the forward-auth protocol.
        if kind == Kind::Nginx && garbage.starts_with(b"HTTP/1.1 200") {
            continue;
        }
        rig.beside.set(Mode::Garbage(garbage));
        closed(&rig, "garbage").await;
    }
    rig.beside.set(Mode::Frozen);
    closed(&rig, "frozen").await;
    rig.beside.set(Mode::Gone);
    closed(&rig, "gone").await;
    rig.beside.set(Mode::Pass(sidecar));
    rig.until(&good, 200).await;

    rig.sidecar.kill().await;
    closed(&rig, "killed").await;
    assert_eq!(rig.workload.take().len(), 0, "what was refused comes through later");

    // One that begins without the server knows of no revocation: even where the policy is open, it
    // cannot tell. A path that is public needs no news.
    rig.upward.set(Mode::Gone);
    rig.start_sidecar_again();
    rig.until(&Ask::get("/public/hello"), 200).await;
    for target in ["/orders/7", "/ask/7", "/open/7"] {
        let ask = Ask::get(target).bearer(&tokens.access_token);
        let (answer, _) = rig.once(&ask).await;
        assert_eq!(answer.status, 503, "{target}: {answer:?}");
    }
    rig.sidecar.until_judged("not_ready", 3.0).await;
    rig.upward.set(Mode::Pass(rig.server.place()));
    rig.sidecar.ready().await;
    for target in ["/orders/7", "/ask/7", "/open/7"] {
        rig.until(&Ask::get(target).bearer(&tokens.access_token), 200).await;
    }
}

/// How long the sidecar of these tests goes without news before it says so.
const STALE: &[&str] = &["--max-staleness", "2s"];

#[tokio::test]
async fn without_the_server_each_policy_does_what_it_says() {
    let mut rig = Rig::start_with(Kind::Envoy, STALE, &[]).await;
    let tokens = rig.server.login(&[]).await;
    let revoked = rig.server.login(&[]).await;
    let at = |target: &str, token: &str| Ask::get(target).bearer(token);
    for target in ["/orders/7", "/ask/7", "/open/7"] {
        assert_eq!(rig.status(&at(target, &tokens.access_token)).await, 200, "{target}");
        assert_eq!(rig.status(&at(target, &revoked.access_token)).await, 200, "{target}");
    }
    rig.server.revoke(&revoked, Some(Duration::from_secs(30))).await;

    rig.server.kill().await;
    rig.upward.set(Mode::Gone);
    // Not at once: there is news that is young enough.
    rig.until_stale(&at("/orders/7", &tokens.access_token)).await;
    rig.until_stale(&at("/ask/7", &tokens.access_token)).await;
    assert_eq!(rig.status(&at("/open/7", &tokens.access_token)).await, 200);
    // It stays so.
    for target in ["/orders/7", "/ask/7"] {
        assert_eq!(rig.once(&at(target, &tokens.access_token)).await.0.status, 503, "{target}");
    }
    // What is known to be revoked is refused, whatever the policy.
    for target in ["/orders/7", "/ask/7", "/open/7"] {
        assert_eq!(rig.status(&at(target, &revoked.access_token)).await, 401, "{target}");
    }
    // And what needs no token needs no server.
    assert_eq!(rig.status(&Ask::get("/public/hello")).await, 200);

    rig.server.start_again().await;
    rig.upward.set(Mode::Pass(rig.server.place()));
    for target in ["/orders/7", "/ask/7", "/open/7"] {
        rig.until(&at(target, &tokens.access_token), 200).await;
        assert_eq!(rig.status(&at(target, &revoked.access_token)).await, 401, "{target}");
    }
}

#[tokio::test]
async fn a_revocation_that_a_sidecar_missed_is_enforced_when_it_is_back() {
    let rig = Rig::start_with(Kind::Envoy, STALE, &[]).await;
    let (kept, lost) = (rig.server.login(&[]).await, rig.server.login(&[]).await);
    let closed = |token: &str| Ask::get("/orders/7").bearer(token);
    let open = |token: &str| Ask::get("/open/7").bearer(token);
    assert_eq!(rig.status(&closed(&kept.access_token)).await, 200);
    assert_eq!(rig.status(&closed(&lost.access_token)).await, 200);
    for mode in [Mode::Gone, Mode::Frozen] {
        rig.upward.set(mode.clone());
        rig.until_stale(&closed(&kept.access_token)).await;
        let missed = rig.server.login(&[]).await;
        rig.server.revoke(&missed, None).await;
        if matches!(mode, Mode::Gone) {
            rig.server.revoke(&lost, None).await;
        }
        // Where the policy is open it passes, revoked as it is, when the sidecar knows that it knows
        // too little of it: it was made after the last news.
        rig.until_stale(&closed(&missed.access_token)).await;
        assert_eq!(rig.status(&open(&missed.access_token)).await, 200, "{mode:?}");
        rig.upward.set(Mode::Pass(rig.server.place()));
        rig.until(&closed(&kept.access_token), 200).await;
        for token in [&missed.access_token, &lost.access_token] {
            assert_eq!(rig.status(&closed(token)).await, 401, "{mode:?}");
            assert_eq!(rig.status(&open(token)).await, 401, "{mode:?}");
        }
    }
}

#[tokio::test]
async fn where_the_policy_says_so_the_server_is_asked() {
    let rig = Rig::start(Kind::Envoy).await;
    let tokens = rig.server.login(&[]).await;
    let ask = Ask::get("/always-ask/7").bearer(&tokens.access_token);
    assert_eq!(rig.status(&ask).await, 200);
    let asked = timeout(PATIENCE, async {
        loop {
            let text = crate::process::ops(&rig.server.addresses, "/metrics").await;
            let lines = text.lines().filter(|line| line.contains("Introspect"));
            if lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
                > 0.0
            {
                return;
            }
            assert_eq!(rig.status(&ask).await, 200);
        }
    });
    asked.await.expect("the server is asked");
}
