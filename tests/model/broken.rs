//! The model is tested by taking its rules out: for each there is a run in which something goes wrong,
//! and the model finds it.

use stateright::{Checker, HasDiscoveries, Model as _};

use crate::properties::{
    ACKED, AS_OF_REPLICA, AS_OF_VERIFIER, DEAD, HERE, HONEST, NO_HOLES, NO_LOSS, ONE_LINE, PROMISE,
    WINDOW, WITH_CURSOR,
};
use crate::protocol::Cluster;
use crate::rules::{Compare, Rules, Scope, Unknown};

const AVOUCH: Rules = Rules::AVOUCH;

/// That for each of `properties` the model finds a run after which it does not hold, and only without
/// the rule.
fn finds(what: &str, properties: &[&'static str], scope: Scope, rules: Rules) {
    let check = |rules, properties: &[&'static str]| {
        let finish = HasDiscoveries::AnyOf(properties.iter().copied().collect());
        Cluster::new(scope, rules).checker().finish_when(finish).spawn_bfs().join()
    };
    let with = check(AVOUCH, properties);
    let all = with.unique_state_count();
    if let Some((name, path)) = with.discoveries().into_iter().next() {
        panic!("{what}: {name} fails with the rule, too:\n{:#?}", path.into_actions());
    }
    for property in properties {
        let without = check(rules, &[property]);
        let states = without.unique_state_count();
        let Some(path) = without.discovery(property) else {
            panic!("{what}: nothing goes wrong with `{property}` in {states} states");
        };
        let steps = path.into_actions().len();
        crate::say(&format!(
            "{what}: `{property}` fails after {steps} steps, found in {states} states ({all} with the rule)"
        ));
    }
}

fn refreshes() -> Scope {
    Scope { honest: 2, ticks: 3, ..Scope::STILL }
}

fn watched() -> Scope {
    Scope { revokes: 2, watchers: 1, ..Scope::STILL }
}

#[test]
fn without_a_comparison_a_session_forks() {
    let rules = Rules { compare: Compare::Nothing, ..AVOUCH };
    finds("no comparison", &[ONE_LINE], refreshes(), rules);
}

#[test]
fn without_a_comparison_of_epochs_the_dead_are_refreshed() {
    let scope = Scope { revokes: 1, ..refreshes() };
    let rules = Rules { compare: Compare::SessionOnly, ..AVOUCH };
    finds("no comparison of epochs", &[DEAD], scope, rules);
}

#[test]
fn an_unknown_outcome_is_no_failure() {
    let scope = Scope { losses: 1, ..refreshes() };
    let failed = Rules { unknown: Unknown::Failed, ..AVOUCH };
    finds("unknown taken for failed", &[PROMISE, HONEST], scope, failed);
}

#[test]
fn an_unknown_outcome_is_no_success() {
    let scope = Scope { losses: 1, ..refreshes() };
    let applied = Rules { unknown: Unknown::Applied, ..AVOUCH };
    finds("unknown taken for done", &[ACKED], scope, applied);
}

/// Where there is no retry window, the decision that ran again would find its own rotation, and take
/// itself for a thief.
#[test]
fn an_own_commit_is_recognised() {
    let scope = Scope { losses: 1, window: 0, ..refreshes() };
    let rerun = Rules { unknown: Unknown::Rerun, ..AVOUCH };
    finds("unknown decided again", &[HONEST], scope, rerun);
    let once = Rules { own_late_known: false, ..AVOUCH };
    finds("own commit recognised only at first", &[HONEST], scope, once);
}

#[test]
fn a_retry_does_not_extend_the_window() {
    let scope = Scope { honest: 1, thief: 2, ..refreshes() };
    let rules = Rules { window_fixed: false, ..AVOUCH };
    finds("each retry extends the window", &[WINDOW], scope, rules);
}

#[test]
fn revoke_answers_after_the_watch() {
    let scope = Scope { revokes: 2, ..Scope::STILL };
    let own = Rules { answer_after_watch: false, ..AVOUCH };
    finds("answered before the watch", &[HERE], scope, own);
    let anothers = Rules { already_waits: false, ..AVOUCH };
    finds("another's event not waited for", &[HERE, WITH_CURSOR], scope, anothers);
}

#[test]
fn introspect_waits_for_its_cursor() {
    let scope = Scope { revokes: 1, ..Scope::STILL };
    let rules = Rules { introspect_waits: false, ..AVOUCH };
    finds("the cursor not waited for", &[WITH_CURSOR], scope, rules);
}

#[test]
fn a_proof_waits_for_the_watch() {
    let rules = Rules { proof_waits: false, ..AVOUCH };
    finds("proved without waiting", &[AS_OF_REPLICA, AS_OF_VERIFIER], watched(), rules);
}

#[test]
fn as_of_is_the_moment_before_the_proof() {
    let rules = Rules { proof_looks_back: false, ..AVOUCH };
    finds("as_of is the moment after", &[AS_OF_REPLICA], watched(), rules);
}

#[test]
fn as_of_freezes_when_cut_off() {
    let scope = Scope { revokes: 1, cuts: 1, ..watched() };
    let rules = Rules { frozen_when_cut: false, ..AVOUCH };
    finds("as_of goes on when cut off", &[AS_OF_REPLICA, AS_OF_VERIFIER], scope, rules);
}

#[test]
fn a_heartbeat_vouches_for_what_was_sent() {
    let rules = Rules { beat_after_frames: false, ..AVOUCH };
    finds("as_of ahead of the frames", &[AS_OF_VERIFIER], watched(), rules);
}

#[test]
fn a_replica_starts_from_what_is_stored_now() {
    let scope = Scope { revokes: 1, crashes: 1, ..watched() };
    let rules = Rules { load_is_current: false, ..AVOUCH };
    finds("started from an old member", &[HERE], scope, rules);
}

#[test]
fn a_cursor_ahead_is_refused() {
    let rules = Rules { ahead_refused: false, ..AVOUCH };
    finds("a cursor ahead gets a snapshot", &[NO_LOSS, AS_OF_VERIFIER], watched(), rules);
}

#[test]
fn a_stream_goes_on_after_the_cursor() {
    let rules = Rules { resumes_at_cursor: false, ..AVOUCH };
    finds("resumed at the head", &[NO_HOLES], watched(), rules);
}

#[test]
fn a_stream_is_attached_before_the_snapshot() {
    let rules = Rules { attach_first: false, ..AVOUCH };
    finds("attached after the snapshot", &[NO_HOLES], watched(), rules);
}

/// Not a rule of avouch but of its clients: whoever uses the successor while an earlier call with the
/// spent token may still arrive can lose the session, because nothing tells that call from a theft.
#[test]
fn a_client_lets_its_calls_end() {
    let patient = Scope { honest: 3, ..refreshes() };
    let checker = |scope| {
        let finish = HasDiscoveries::AnyOf([HONEST].into());
        Cluster::new(scope, AVOUCH).checker().finish_when(finish).spawn_bfs().join()
    };
    assert!(checker(patient).discovery(HONEST).is_none());
    let impatient = Scope { patient: false, ..patient };
    assert!(checker(impatient).discovery(HONEST).is_some());
}
