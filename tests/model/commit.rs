//! Decisions and their transactions: optimistic, over what may be old; one compare-and-commit each;
//! and what a replica does when it does not hear the outcome.

use crate::protocol::Cluster;
use crate::reached::Situation;
use crate::real::{self, Worth};
use crate::rules::{Compare, Unknown};
use crate::state::{
    Ask, Call, EVENTS, Happened, Honest, Line, Phase, Seen, State, Told, Transaction, Who, Wrong,
};

/// What a decision wants done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Rotate(Line),
    Retry,
    /// End the session, because of reuse or not.
    End {
        reuse: bool,
    },
    Raise,
    Already,
    Refuse,
}

impl Cluster {
    fn decide(&self, transaction: &Transaction) -> Verdict {
        let Seen { line, epoch, .. } = transaction.seen;
        match transaction.ask {
            Ask::Refresh(generation) => {
                let mac = transaction.replica;
                let now = self.clock(transaction);
                match real::refresh(line, epoch, generation, mac, self.scope.window, now) {
                    Worth::Rotate(next) => Verdict::Rotate(next),
                    Worth::Retry => Verdict::Retry,
                    Worth::Reuse => Verdict::End { reuse: true },
                    Worth::Refuse => Verdict::Refuse,
                }
            }
            Ask::RevokeSession if real::is_live(line, epoch) => Verdict::End { reuse: false },
            Ask::RevokeSession => Verdict::Already,
            Ask::RevokeSubject => Verdict::Raise,
        }
    }

    fn clock(&self, transaction: &Transaction) -> u8 {
        transaction.began + self.scope.clocks[usize::from(transaction.replica)]
    }

    /// Takes a transaction at the store: what to tell the caller and after which event, or what stands
    /// there instead of what the decision saw.
    fn commit(&self, state: &mut State, transaction: &Transaction) -> Result<(Told, u8), Seen> {
        let fresh = state.store.now;
        let seen = transaction.seen;
        let same_session = seen.version == fresh.version || transaction.ask == Ask::RevokeSubject;
        let same_epoch = seen.epoch == fresh.epoch;
        let unchanged = match self.rules.compare {
            Compare::All => same_session && same_epoch,
            Compare::SessionOnly if transaction.ask == Ask::RevokeSubject => same_epoch,
            Compare::SessionOnly => same_session,
            Compare::Nothing => true,
        };
        if !unchanged {
            return Err(fresh);
        }
        let verdict = self.decide(transaction);
        let writes = !matches!(verdict, Verdict::Retry | Verdict::Already | Verdict::Refuse);
        if transaction.disowned && writes {
            state.note(Wrong::BrokenPromise);
        }
        let gives = matches!(verdict, Verdict::Rotate(_) | Verdict::Retry);
        if gives && !fresh.lives() {
            state.note(Wrong::DeadRotated);
        }
        let told = match verdict {
            Verdict::Rotate(next) => {
                state.onlooker.spent_at = transaction.began;
                put(state, next);
                Told::Tokens(next.generation, next.mac)
            }
            Verdict::Retry => {
                let since = transaction.began.saturating_sub(state.onlooker.spent_at);
                if since >= self.scope.window + self.scope.skew() {
                    state.note(Wrong::Late);
                }
                if !self.rules.window_fixed {
                    put(state, Line { rotated_at: self.clock(transaction), ..seen.line });
                }
                Told::Tokens(seen.line.generation, seen.line.mac)
            }
            Verdict::End { reuse } => {
                put(state, Line { revoked: true, ..seen.line });
                append(state, Happened::SessionEnded);
                if reuse && state.left.thief == self.scope.thief {
                    state.note(Wrong::HonestKilled);
                }
                if reuse { Told::Reused } else { Told::Revoked }
            }
            Verdict::Raise => {
                state.store.now.epoch = seen.epoch + 1;
                append(state, Happened::SubjectRaised(seen.epoch + 1));
                Told::Revoked
            }
            Verdict::Already => Told::Already,
            Verdict::Refuse => Told::Refused,
        };
        let rests_on_events = matches!(told, Told::Revoked | Told::Reused | Told::Already);
        Ok((told, if rests_on_events { state.store.head } else { 0 }))
    }

    pub(crate) fn heard(&self, state: &mut State, index: usize) {
        let Some(mut call) = state.calls[index] else { return };
        match self.commit(state, &call.transaction) {
            Ok((told, after)) => {
                self.reached.note(match told {
                    Told::Tokens(..) if call.transaction.seen == state.store.now => {
                        Situation::Retried
                    }
                    Told::Tokens(..) => Situation::Rotated,
                    Told::Reused => Situation::ReuseFound,
                    Told::Already => Situation::AlreadyRevoked,
                    Told::Revoked | Told::Refused | Told::NothingHappened => Situation::Revoked,
                });
                call.phase = Phase::Decided { told, after };
            }
            Err(fresh) => {
                let own = self.rules.own_late_known && call.unsure;
                match self.left_by(&call.transaction, &fresh).filter(|_| own) {
                    // What was on the way all the time came first.
                    Some(told) => {
                        self.reached.note(Situation::OwnCameFirst);
                        call.phase = Phase::Decided { told, after: state.store.head };
                    }
                    None => {
                        self.reached.note(Situation::DecidedAgain);
                        call.unsure = false;
                        call.transaction.seen = fresh;
                    }
                }
            }
        }
        state.replicas[usize::from(call.transaction.replica)].cache = Some(state.store.now);
        state.calls[index] = Some(call);
    }

    pub(crate) fn unheard(&self, state: &mut State, index: usize) {
        let Some(mut call) = state.calls[index] else { return };
        state.left.losses -= 1;
        // Whatever came of it.
        let _unheard = self.commit(state, &call.transaction);
        call.phase = Phase::Unknown;
        state.calls[index] = Some(call);
    }

    pub(crate) fn lost_track(&self, state: &mut State, index: usize) {
        let Some(mut call) = state.calls[index] else { return };
        state.left.losses -= 1;
        let free = state.late.iter_mut().find(|late| late.is_none()).expect("room");
        *free = Some(call.transaction);
        call.phase = Phase::Unknown;
        state.calls[index] = Some(call);
    }

    pub(crate) fn late(&self, state: &mut State, index: usize) {
        let Some(transaction) = state.late[index].take() else { return };
        let committed = self.commit(state, &transaction).is_ok();
        self.reached.note(match committed {
            true => Situation::LateCommitted,
            false => Situation::LateRefused,
        });
    }

    /// What to tell of a transaction if it happened, and what it leaves.
    fn would_leave(&self, transaction: &Transaction) -> Option<(Told, Seen)> {
        let Seen { line, version, epoch } = transaction.seen;
        let written = |line| Seen { line, version: version + 1, epoch };
        match self.decide(transaction) {
            Verdict::Rotate(next) => Some((Told::Tokens(next.generation, next.mac), written(next))),
            Verdict::End { reuse } => {
                let told = if reuse { Told::Reused } else { Told::Revoked };
                Some((told, written(Line { revoked: true, ..line })))
            }
            Verdict::Raise => Some((Told::Revoked, Seen { line, version, epoch: epoch + 1 })),
            Verdict::Retry | Verdict::Already | Verdict::Refuse => None,
        }
    }

    /// What to tell of a transaction if what stands there is what it leaves, and nothing was written
    /// since.
    fn left_by(&self, transaction: &Transaction, fresh: &Seen) -> Option<Told> {
        let (told, left) = self.would_leave(transaction)?;
        let same = match transaction.ask {
            Ask::RevokeSubject => left.epoch == fresh.epoch,
            Ask::Refresh(_) | Ask::RevokeSession => {
                left.line == fresh.line && left.version == fresh.version
            }
        };
        same.then_some(told)
    }

    pub(crate) fn resolve(&self, state: &mut State, index: usize) {
        let Some(mut call) = state.calls[index] else { return };
        let fresh = state.store.now;
        state.replicas[usize::from(call.transaction.replica)].cache = Some(fresh);
        let happened = self.left_by(&call.transaction, &fresh);
        self.reached.note(match happened {
            Some(_) => Situation::UnknownHappened,
            None => Situation::UnknownOpen,
        });
        let again = Call {
            transaction: Transaction { seen: fresh, ..call.transaction },
            phase: Phase::Sent,
            // What saw something else cannot be committed any more.
            unsure: call.transaction.seen == fresh,
        };
        match self.rules.unknown {
            Unknown::Recognise => match happened {
                // Its event is not after the newest.
                Some(told) => call.phase = Phase::Decided { told, after: state.store.head },
                None => call = again,
            },
            Unknown::Rerun => call = again,
            Unknown::Failed => {
                if happened.is_some() {
                    state.note(Wrong::BrokenPromise);
                }
                for late in state.late.iter_mut().flatten() {
                    late.disowned |= *late == call.transaction;
                }
                call.phase = Phase::Decided { told: Told::NothingHappened, after: 0 };
            }
            Unknown::Applied => {
                let told = match self.would_leave(&call.transaction) {
                    Some((told, _)) => told,
                    None => Told::Refused,
                };
                call.phase = Phase::Decided { told, after: 0 };
            }
        }
        state.calls[index] = Some(call);
    }

    pub(crate) fn answered(&self, state: &mut State, index: usize) {
        let Some(call) = state.calls[index].take() else { return };
        let Phase::Decided { told, after } = call.phase else { return };
        let honest = call.transaction.who == Who::Honest;
        let lives = state.store.now.lives();
        match told {
            Told::Tokens(generation, mac) => {
                let got = &mut state.onlooker.got[usize::from(generation)];
                let another = *got != 0 && *got != mac + 1;
                *got = mac + 1;
                // The successor of this token, and of no later one.
                if another || call.transaction.ask != Ask::Refresh(generation - 1) {
                    state.note(Wrong::Fork);
                }
                if honest && generation > state.honest.generation {
                    state.honest = Honest { generation, first_sent: None, out: false };
                }
            }
            Told::Refused | Told::Reused => {
                if told == Told::Reused && lives {
                    state.note(Wrong::ReuseLives);
                }
                if honest {
                    state.honest.out = true;
                    if lives {
                        state.note(Wrong::HonestKilled);
                    }
                }
            }
            Told::Revoked | Told::Already => {
                let replica = usize::from(call.transaction.replica);
                // Of what this call did, its place; of what another did, how far this replica is.
                let cursor = match told {
                    Told::Already => state.replicas[replica].applied,
                    _ => after,
                };
                let onlooker = &mut state.onlooker;
                onlooker.acked = onlooker.acked.max(cursor);
                onlooker.acked_here[replica] = onlooker.acked_here[replica].max(cursor).max(1);
                if !real::refuses(state.store.log, crate::state::first(cursor)) {
                    state.note(Wrong::CursorShort);
                }
            }
            Told::NothingHappened => {
                if honest {
                    state.honest.first_sent = None;
                }
            }
        }
    }
}

fn put(state: &mut State, line: Line) {
    state.store.now.line = line;
    state.store.now.version += 1;
}

fn append(state: &mut State, happened: Happened) {
    assert!(usize::from(state.store.head) < EVENTS, "the log is full: the scope is too large");
    state.store.log[usize::from(state.store.head)] = happened;
    state.store.head += 1;
}
