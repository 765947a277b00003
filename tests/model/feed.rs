//! The feed: the watch of each replica, its proofs of contact, and the watchers that move from one
//! replica to another.

use crate::protocol::{Action, Cluster};
use crate::reached::Situation;
use crate::state::{Proof, Replica, State, Stream, Watcher, first};

impl Cluster {
    pub(crate) fn feed_next(&self, state: &State, out: &mut Vec<Action>) {
        for index in self.replicas() {
            let replica = &state.replicas[index];
            if replica.down {
                continue;
            }
            if !replica.cut && replica.applied < state.store.head {
                out.push(Action::Event(index));
            }
            if self.scope.watchers == 0 {
                continue;
            }
            match replica.proof {
                // A proof of what is proved already moves nothing.
                Proof::None if state.onlooker.acked > replica.as_of => {
                    out.push(Action::ProofBegins(index));
                }
                Proof::Asking(_) if !replica.cut || !self.rules.frozen_when_cut => {
                    out.push(Action::ProofAnswered(index));
                }
                Proof::Asking(_) => self.reached.note(Situation::Frozen),
                Proof::None | Proof::Waiting(..) => {}
            }
        }
        for index in 0..usize::from(self.scope.watchers) {
            let watcher = &state.watchers[index];
            for replica in self.replicas().filter(|replica| !state.replicas[*replica].down) {
                if watcher.stream != Stream::Following(u8::try_from(replica).expect("few")) {
                    out.push(Action::Watch(index, replica));
                }
            }
            match watcher.stream {
                Stream::None => {}
                Stream::Starting(..) => out.push(Action::Snapshot(index)),
                Stream::Detached(_) => out.push(Action::Attach(index)),
                Stream::Following(at) => {
                    let replica = &state.replicas[usize::from(at)];
                    if watcher.cursor < replica.applied {
                        out.push(Action::Frame(index));
                    }
                    let sent = watcher.cursor >= replica.vouches || !self.rules.beat_after_frames;
                    if sent && watcher.as_of < replica.as_of {
                        out.push(Action::Beat(index));
                    }
                }
            }
        }
    }

    pub(crate) fn event(&self, state: &mut State, index: usize) {
        state.replicas[index].applied += 1;
        self.prove(state, index);
    }

    pub(crate) fn proof_begins(&self, state: &mut State, index: usize) {
        state.replicas[index].proof = Proof::Asking(state.onlooker.acked);
    }

    pub(crate) fn proof_answered(&self, state: &mut State, index: usize) {
        let newest = state.store.head;
        let replica = &mut state.replicas[index];
        let Proof::Asking(moment) = replica.proof else { return };
        // Cut off and not frozen, it takes its own head for the newest.
        let newest = if replica.cut { replica.applied } else { newest };
        let enough = if self.rules.proof_waits { newest } else { replica.applied };
        replica.proof = Proof::Waiting(moment, enough);
        self.prove(state, index);
        if matches!(state.replicas[index].proof, Proof::Waiting(..)) {
            self.reached.note(Situation::ProofWaited);
        }
    }

    /// Ends a proof that has all it waits for.
    fn prove(&self, state: &mut State, index: usize) {
        let acked = state.onlooker.acked;
        let replica = &mut state.replicas[index];
        let Proof::Waiting(moment, enough) = replica.proof else { return };
        if replica.applied < enough {
            return;
        }
        let moment = if self.rules.proof_looks_back { moment } else { acked };
        self.reached.note(Situation::Proved);
        *replica =
            Replica { proof: Proof::None, as_of: moment, vouches: replica.applied, ..*replica };
    }

    pub(crate) fn watch(&self, state: &mut State, index: usize, at: usize) {
        let replica = state.replicas[at];
        let watcher = &mut state.watchers[index];
        let here = u8::try_from(at).expect("few replicas");
        if !watcher.synced {
            watcher.stream = Stream::Starting(here, replica.applied);
        } else if watcher.cursor > replica.applied {
            self.reached.note(Situation::Behind);
            watcher.stream = match self.rules.ahead_refused {
                true => Stream::None,
                false => Stream::Starting(here, replica.applied),
            };
        } else {
            if watcher.cursor < replica.applied {
                self.reached.note(Situation::MovedToNews);
            }
            if !self.rules.resumes_at_cursor {
                watcher.cursor = replica.applied;
            }
            watcher.stream = Stream::Following(here);
        }
    }

    pub(crate) fn snapshot(&self, state: &mut State, index: usize) {
        let watcher = &mut state.watchers[index];
        let Stream::Starting(at, attached) = watcher.stream else { return };
        let held = first(state.replicas[usize::from(at)].applied);
        if held > 0 {
            self.reached.note(Situation::Snapshot);
        }
        watcher.held = held;
        if self.rules.attach_first {
            *watcher = Watcher {
                stream: Stream::Following(at),
                synced: true,
                cursor: attached,
                ..*watcher
            };
        } else {
            watcher.stream = Stream::Detached(at);
        }
    }

    pub(crate) fn attach(&self, state: &mut State, index: usize) {
        let watcher = &mut state.watchers[index];
        let Stream::Detached(at) = watcher.stream else { return };
        let cursor = state.replicas[usize::from(at)].applied;
        *watcher = Watcher { stream: Stream::Following(at), synced: true, cursor, ..*watcher };
    }

    pub(crate) fn frame(&self, state: &mut State, index: usize) {
        let watcher = &mut state.watchers[index];
        watcher.held |= 1 << watcher.cursor;
        watcher.cursor += 1;
    }

    pub(crate) fn beat(&self, state: &mut State, index: usize) {
        let watcher = &mut state.watchers[index];
        let Stream::Following(at) = watcher.stream else { return };
        self.reached.note(Situation::Vouched);
        watcher.as_of = state.replicas[usize::from(at)].as_of;
    }
}

/// Ends the streams that a replica served.
pub(crate) fn lose_streams(state: &mut State, replica: usize) {
    for watcher in &mut state.watchers {
        let (Stream::Starting(at, _) | Stream::Detached(at) | Stream::Following(at)) =
            watcher.stream
        else {
            continue;
        };
        if usize::from(at) == replica {
            watcher.stream = Stream::None;
        }
    }
}
