//! What must be true in every state. The numbers are those of the invariants in the documentation.

use stateright::Property;

use crate::protocol::Cluster;
use crate::real;
use crate::state::{State, Wrong, first};

/// 1: every caller that succeeds with one token holds the same successor, and it is the one that the
/// store knows.
pub(crate) const ONE_LINE: &str = "one line";
/// 2: whoever is told of reuse, the session is dead and its event is in the log.
pub(crate) const REUSE_KILLS: &str = "reuse kills";
/// 2: a spent token is good for its window and no longer, however often it is used.
pub(crate) const WINDOW: &str = "the window never moves";
/// 2: a client that keeps to the rules keeps its session.
pub(crate) const HONEST: &str = "no honest client is killed";
/// What is revoked is never refreshed again.
pub(crate) const DEAD: &str = "the dead stay dead";
/// 3: what was acknowledged is stored.
pub(crate) const ACKED: &str = "acknowledged is stored";
/// 3: what was said not to have happened does not happen.
pub(crate) const PROMISE: &str = "a clear no is kept";
/// 5: a watcher has every event up to its cursor.
pub(crate) const NO_HOLES: &str = "no holes";
/// 5: and no event that is not in the log.
pub(crate) const NO_INVENTION: &str = "nothing is invented";
/// 5: and never loses one.
pub(crate) const NO_LOSS: &str = "nothing is forgotten";
/// 7: after Revoke returned, Introspect on that replica says no.
pub(crate) const HERE: &str = "revoked here";
/// 7: and on any replica with the cursor, or it waits.
pub(crate) const WITH_CURSOR: &str = "revoked at the cursor";
/// Every Revoke that was acknowledged before `as_of` of a replica is at or before its head.
pub(crate) const AS_OF_REPLICA: &str = "as_of of a replica";
/// A verifier refuses what was revoked before its `as_of`, however it came by it.
pub(crate) const AS_OF_VERIFIER: &str = "as_of of a verifier";

/// With the types that the closures below need.
fn always(name: &'static str, holds: fn(&Cluster, &State) -> bool) -> Property<Cluster> {
    Property::always(name, holds)
}

pub(crate) fn all() -> Vec<Property<Cluster>> {
    vec![
        always(ONE_LINE, |_, state| {
            let line = state.store.now.line;
            let got = state.onlooker.got[usize::from(line.generation)];
            !state.noted(Wrong::Fork) && (got == 0 || got == line.mac + 1 || line.generation == 0)
        }),
        always(REUSE_KILLS, |_, state| {
            let revoked = state.store.now.line.revoked;
            !state.noted(Wrong::ReuseLives)
                && (!revoked || real::refuses(state.store.log, first(state.store.head)))
        }),
        always(WINDOW, |_, state| !state.noted(Wrong::Late)),
        always(HONEST, |_, state| !state.noted(Wrong::HonestKilled)),
        always(DEAD, |_, state| !state.noted(Wrong::DeadRotated)),
        always(ACKED, |_, state| {
            let newest = state.onlooker.got.iter().rposition(|mac| *mac > 0).unwrap_or(0);
            newest <= usize::from(state.store.now.line.generation)
                && (!is_any_acked(state) || !state.store.now.lives())
        }),
        always(PROMISE, |_, state| !state.noted(Wrong::BrokenPromise)),
        always(NO_HOLES, |model, state| {
            watchers(model, state)
                .all(|watcher| !watcher.synced || holds(watcher.held, first(watcher.cursor)))
        }),
        always(NO_INVENTION, |model, state| {
            watchers(model, state).all(|watcher| holds(first(state.store.head), watcher.held))
        }),
        always(NO_LOSS, |_, state| !state.noted(Wrong::Forgot)),
        always(HERE, |model, state| {
            model.replicas().all(|index| {
                let acked = state.onlooker.acked_here[index] > 0;
                !acked || introspect(model, state, index, None) != Some(true)
            })
        }),
        always(WITH_CURSOR, |model, state| {
            let cursor = state.onlooker.acked;
            !state.noted(Wrong::CursorShort)
                && (cursor == 0
                    || model
                        .replicas()
                        .all(|index| introspect(model, state, index, Some(cursor)) != Some(true)))
        }),
        always(AS_OF_REPLICA, |model, state| {
            model.replicas().all(|index| {
                let replica = &state.replicas[index];
                replica.down || replica.as_of <= replica.applied
            })
        }),
        always(AS_OF_VERIFIER, |model, state| {
            watchers(model, state).all(|watcher| {
                holds(watcher.held, first(watcher.as_of))
                    && (watcher.as_of == 0 || real::refuses(state.store.log, watcher.held))
            })
        }),
    ]
}

fn watchers<'a>(
    model: &Cluster,
    state: &'a State,
) -> impl Iterator<Item = &'a crate::state::Watcher> {
    state.watchers.iter().take(usize::from(model.scope.watchers))
}

const fn holds(held: u8, wanted: u8) -> bool {
    wanted & !held == 0
}

fn is_any_acked(state: &State) -> bool {
    state.onlooker.acked_here.iter().any(|acked| *acked > 0)
}

/// What Introspect says here of an access token of the session: none while it waits for the cursor, or
/// when nobody is there to ask.
fn introspect(model: &Cluster, state: &State, index: usize, cursor: Option<u8>) -> Option<bool> {
    let replica = &state.replicas[index];
    let waits = model.rules.introspect_waits && cursor.is_some_and(|it| replica.applied < it);
    if replica.down || waits {
        return None;
    }
    Some(!real::refuses(state.store.log, first(replica.applied)))
}
