//! The protocol as avouch has it: nothing goes wrong, in any order of what may happen.

use stateright::{Checker, Model as _};
use tokio::time::Instant;

use crate::protocol::Cluster;
use crate::reached::Situation::{
    self, AlreadyRevoked, AnswerWaited, Behind, DecidedAgain, DiedInCall, Frozen, LateCommitted,
    LateRefused, MovedToNews, OwnCameFirst, ProofWaited, Proved, Retried, ReuseFound, Revoked,
    Rotated, Snapshot, UnknownHappened, UnknownOpen, Vouched,
};
use crate::rules::{Rules, Scope};

/// Checks every state of a scope, and that it came across what is expected of it. The scope is `long`
/// when `AVOUCH_TEST_ROUNDS=long` asks for it.
#[expect(clippy::disallowed_methods, reason = "who runs the tests says how long they may take")]
fn check(short: Scope, long: Scope, expected: &[Situation]) {
    let scope = match std::env::var("AVOUCH_TEST_ROUNDS").as_deref() {
        Ok("long") => long,
        Ok(other) => panic!("AVOUCH_TEST_ROUNDS may be `long` or not set, not `{other}`"),
        Err(_) => short,
    };
    let model = Cluster::new(scope, Rules::AVOUCH);
    let reached = model.reached.clone();
    let begun = Instant::now();
    let checker = model.checker().threads(2).spawn_bfs().join();
    crate::say(&format!(
        "{}: {} states, {} steps, depth {}, {:.1} s; {}",
        scope.name,
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32(),
        reached.summary(),
    ));
    if let Some((name, path)) = checker.discoveries().into_iter().next() {
        panic!("{}: {name}, but not after this:\n{:#?}", scope.name, path.into_actions());
    }
    assert_eq!(reached.missing(expected), [], "{} never came across these", scope.name);
}

/// A client that retries, lost answers, late transactions, a replica that dies.
#[test]
fn rotation() {
    let scope =
        Scope { name: "rotation", honest: 2, losses: 2, crashes: 1, ticks: 2, ..Scope::STILL };
    let long = Scope { honest: 3, losses: 3, ticks: 3, ..scope };
    let expected = [
        Rotated,
        Retried,
        DecidedAgain,
        UnknownHappened,
        UnknownOpen,
        OwnCameFirst,
        LateCommitted,
        LateRefused,
        DiedInCall,
    ];
    check(scope, long, &expected);
}

/// Without a retry window, a lost answer between a replica and the store must not look like reuse.
#[test]
fn rotation_without_a_window() {
    let scope =
        Scope { name: "no window", window: 0, honest: 2, thief: 1, losses: 2, ..Scope::STILL };
    let long = Scope { losses: 4, crashes: 1, ticks: 1, ..scope };
    let expected = [
        Rotated,
        ReuseFound,
        UnknownHappened,
        UnknownOpen,
        OwnCameFirst,
        LateCommitted,
        LateRefused,
    ];
    check(scope, long, &expected);
}

/// The clock of one replica is ahead: the window is off by as much, and nothing else is.
#[test]
fn rotation_with_clocks_apart() {
    let clocks = [0, 1, 0];
    let scope =
        Scope { name: "clocks apart", clocks, honest: 2, thief: 1, ticks: 3, ..Scope::STILL };
    let long = Scope { honest: 3, losses: 1, ..scope };
    check(scope, long, &[Rotated, Retried, ReuseFound, DecidedAgain]);
}

/// Two callers with copies of one token.
#[test]
fn theft() {
    let scope = Scope { name: "theft", honest: 2, thief: 2, ticks: 2, ..Scope::STILL };
    let long = Scope { losses: 1, ..scope };
    check(scope, long, &[Rotated, Retried, ReuseFound, DecidedAgain, AnswerWaited]);
}

/// Revoke while a client refreshes.
#[test]
fn revoke() {
    let scope =
        Scope { name: "revoke", honest: 1, revokes: 1, losses: 1, crashes: 1, ..Scope::STILL };
    let long = Scope { honest: 2, revokes: 2, ..scope };
    let expected = [Rotated, Revoked, AnswerWaited, DecidedAgain, UnknownHappened, DiedInCall];
    check(scope, long, &expected);
}

/// Revoke of the same on two replicas.
#[test]
fn revoke_twice() {
    let scope = Scope { name: "revoke twice", revokes: 2, losses: 1, crashes: 1, ..Scope::STILL };
    let long = Scope { revokes: 3, ..scope };
    let expected = [Revoked, AlreadyRevoked, AnswerWaited, DecidedAgain, OwnCameFirst, DiedInCall];
    check(scope, long, &expected);
}

/// A watcher that moves, a replica that is cut off, and what each vouches for.
#[test]
fn feed() {
    let scope = Scope { name: "feed", revokes: 2, watchers: 1, cuts: 1, ..Scope::STILL };
    let long = Scope { crashes: 1, ..scope };
    let expected = [
        Revoked,
        AnswerWaited,
        Frozen,
        Proved,
        ProofWaited,
        Vouched,
        Snapshot,
        MovedToNews,
        Behind,
    ];
    check(scope, long, &expected);
}

/// Three replicas, with little that happens.
#[test]
fn three_replicas() {
    let scope = Scope {
        name: "three replicas",
        replicas: 3,
        honest: 2,
        thief: 1,
        losses: 1,
        ticks: 1,
        ..Scope::STILL
    };
    let long = Scope { ticks: 2, ..scope };
    check(scope, long, &[Rotated, Retried, DecidedAgain, UnknownHappened]);
}

/// Everything at once.
#[test]
fn together() {
    let scope =
        Scope { name: "together", honest: 1, revokes: 1, watchers: 1, crashes: 1, ..Scope::STILL };
    let long = Scope { cuts: 1, ..scope };
    let expected = [Rotated, Revoked, Proved, Vouched, MovedToNews, Behind, DiedInCall];
    check(scope, long, &expected);
}
