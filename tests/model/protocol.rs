//! The steps of the model: what may happen next, and what becomes of it.

use stateright::{Model, Property};

use crate::properties;
use crate::reached::{Reached, Situation};
use crate::rules::{Rules, Scope};
use crate::state::{
    Ask, CALLS, Call, GENERATIONS, Honest, Left, Phase, REPLICAS, State, Told, Transaction,
    WATCHERS, Who, Wrong,
};

/// The rotation and the feed of some replicas over one store.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) scope: Scope,
    pub(crate) rules: Rules,
    pub(crate) reached: Reached,
}

/// Something that may happen. Numbers name a replica, a call, a late transaction or a watcher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    Tick,
    /// A call arrives at a replica, which decides and sends the transaction.
    Call(Who, Ask, usize),
    /// The store takes the transaction, and the replica hears what came of it.
    Heard(usize),
    /// The store takes the transaction, and the answer is lost.
    Unheard(usize),
    /// The replica gives up waiting while the transaction is still on the way.
    LostTrack(usize),
    /// A replica that does not know the outcome reads again.
    Resolve(usize),
    /// The caller gets the answer.
    Answered(usize),
    /// The caller gets none.
    AnswerLost(usize),
    /// The store takes a transaction that nobody waits for any more.
    Late(usize),
    Crash(usize),
    Restart(usize),
    Cut(usize),
    Heal(usize),
    /// A replica's watch brings the next event.
    Event(usize),
    /// A replica reads its clock, to ask the store for a proof.
    ProofBegins(usize),
    /// The store answers with its newest event.
    ProofAnswered(usize),
    /// A watcher opens a stream, with its cursor if it has one.
    Watch(usize, usize),
    /// A watcher gets its snapshot.
    Snapshot(usize),
    /// Only without the rule: the stream is attached after the snapshot.
    Attach(usize),
    /// A watcher gets the next event.
    Frame(usize),
    /// A watcher gets a heartbeat.
    Beat(usize),
}

impl Cluster {
    pub(crate) fn new(scope: Scope, rules: Rules) -> Self {
        assert!(usize::from(scope.honest + scope.thief) < GENERATIONS, "too many generations");
        Self { scope, rules, reached: Reached::default() }
    }

    pub(crate) fn replicas(&self) -> std::ops::Range<usize> {
        0..usize::from(self.scope.replicas)
    }

    const fn full(&self) -> Left {
        let Scope { honest, thief, revokes, losses, crashes, cuts, .. } = self.scope;
        Left { honest, thief, revokes, losses, crashes, cuts }
    }

    fn calls_next(&self, state: &State, out: &mut Vec<Action>) {
        if state.calls.iter().any(Option::is_none) {
            for replica in self.replicas() {
                self.new_calls(state, replica, out);
            }
        }
        let losses = state.left.losses > 0;
        for (index, call) in state.calls.iter().enumerate() {
            let Some(call) = call else { continue };
            let replica = &state.replicas[usize::from(call.transaction.replica)];
            match call.phase {
                Phase::Sent => {
                    if !replica.cut {
                        out.push(Action::Heard(index));
                    }
                    if losses {
                        out.push(Action::Unheard(index));
                        if state.late.iter().any(Option::is_none) {
                            out.push(Action::LostTrack(index));
                        }
                    }
                }
                Phase::Unknown => {
                    if !replica.cut {
                        out.push(Action::Resolve(index));
                    }
                    if losses {
                        out.push(Action::AnswerLost(index));
                    }
                }
                Phase::Decided { told, after } => {
                    let waits = match told {
                        Told::Already => self.rules.already_waits,
                        _ => self.rules.answer_after_watch,
                    };
                    if !waits || replica.applied >= after {
                        out.push(Action::Answered(index));
                    } else {
                        self.reached.note(Situation::AnswerWaited);
                    }
                    if losses {
                        out.push(Action::AnswerLost(index));
                    }
                }
            }
        }
        let late = state.late.iter().enumerate().filter(|(_, late)| late.is_some());
        out.extend(late.map(|(index, _)| Action::Late(index)));
    }

    fn new_calls(&self, state: &State, replica: usize, out: &mut Vec<Action>) {
        let here = &state.replicas[replica];
        if here.down || (here.cut && here.cache.is_none()) {
            return;
        }
        // The replicas are alike until the first call: it goes to the first of them.
        let alike = self.scope.skew() == 0;
        let left = state.left;
        let none_yet = (left.honest, left.thief, left.revokes)
            == (self.scope.honest, self.scope.thief, self.scope.revokes);
        if alike && none_yet && replica > 0 {
            return;
        }
        if left.honest > 0 && self.may_refresh(state) {
            out.push(Action::Call(Who::Honest, Ask::Refresh(state.honest.generation), replica));
        }
        if left.thief > 0 {
            // Whatever token anybody ever got.
            let newest = state.onlooker.got.iter().rposition(|mac| *mac > 0).unwrap_or(0);
            for generation in 0..=newest {
                let generation = u8::try_from(generation).expect("a small generation");
                out.push(Action::Call(Who::Thief, Ask::Refresh(generation), replica));
            }
        }
        if left.revokes > 0 {
            out.push(Action::Call(Who::Admin, Ask::RevokeSession, replica));
            out.push(Action::Call(Who::Admin, Ask::RevokeSubject, replica));
        }
    }

    /// Whether the client may send its token now: at first, or again inside the window.
    fn may_refresh(&self, state: &State) -> bool {
        let Honest { first_sent, out, .. } = state.honest;
        let own = |call: &Option<Call>| call.is_some_and(|it| it.transaction.who == Who::Honest);
        match first_sent {
            _ if out => false,
            None => !self.scope.patient || !state.calls.iter().any(own),
            Some(at) => state.time + self.scope.skew() < at + self.scope.window,
        }
    }

    fn faults_next(&self, state: &State, out: &mut Vec<Action>) {
        for index in self.replicas() {
            let replica = &state.replicas[index];
            if replica.down {
                if !replica.cut {
                    out.push(Action::Restart(index));
                }
            } else if state.left.crashes > 0 {
                out.push(Action::Crash(index));
            }
            if replica.cut {
                out.push(Action::Heal(index));
            } else if state.left.cuts > 0 {
                out.push(Action::Cut(index));
            }
        }
    }

    fn call(&self, state: &mut State, who: Who, ask: Ask, replica: usize) {
        match who {
            Who::Honest => {
                state.left.honest -= 1;
                state.honest.first_sent = state.honest.first_sent.or(Some(state.time));
            }
            Who::Thief => state.left.thief -= 1,
            Who::Admin => state.left.revokes -= 1,
        }
        let transaction = Transaction {
            who,
            ask,
            replica: u8::try_from(replica).expect("few replicas"),
            began: state.time,
            // Over what the replica remembers, however old.
            seen: state.replicas[replica].cache.unwrap_or(state.store.now),
            disowned: false,
        };
        let free = state.calls.iter_mut().find(|call| call.is_none()).expect("room for a call");
        *free = Some(Call { transaction, phase: Phase::Sent, unsure: false });
    }

    fn crash(&self, state: &mut State, replica: usize) {
        state.left.crashes -= 1;
        let at_it = |call: &Call| usize::from(call.transaction.replica) == replica;
        for index in 0..CALLS {
            let Some(call) = state.calls[index].filter(at_it) else { continue };
            self.reached.note(Situation::DiedInCall);
            state.calls[index] = None;
            if call.phase == Phase::Sent
                && let Some(free) = state.late.iter_mut().find(|late| late.is_none())
            {
                *free = Some(call.transaction);
            }
        }
        let cut = state.replicas[replica].cut;
        state.replicas[replica] =
            crate::state::Replica { down: true, cut, ..crate::state::Replica::default() };
        crate::feed::lose_streams(state, replica);
    }

    fn restart(&self, state: &mut State, replica: usize) {
        let current = self.rules.load_is_current;
        let replica = &mut state.replicas[replica];
        replica.down = false;
        replica.applied = if current { state.store.head } else { 0 };
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut onlooker = crate::state::Onlooker::default();
        onlooker.got[0] = 1;
        vec![State {
            time: 0,
            store: Default::default(),
            replicas: [Default::default(); REPLICAS],
            calls: [None; CALLS],
            late: [None; CALLS],
            honest: Honest::default(),
            watchers: [Default::default(); WATCHERS],
            left: self.full(),
            onlooker,
        }]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        // What went wrong is found; there is no need to see what follows from it. But a broken promise
        // does its harm later.
        if state.onlooker.wrong & !(Wrong::BrokenPromise as u16) != 0 {
            return;
        }
        if state.time < self.scope.ticks {
            out.push(Action::Tick);
        }
        self.calls_next(state, out);
        self.faults_next(state, out);
        self.feed_next(state, out);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => state.time += 1,
            Action::Call(who, ask, replica) => self.call(&mut state, who, ask, replica),
            Action::Heard(index) => self.heard(&mut state, index),
            Action::Unheard(index) => self.unheard(&mut state, index),
            Action::LostTrack(index) => self.lost_track(&mut state, index),
            Action::Resolve(index) => self.resolve(&mut state, index),
            Action::Answered(index) => self.answered(&mut state, index),
            Action::AnswerLost(index) => {
                state.left.losses -= 1;
                state.calls[index] = None;
            }
            Action::Late(index) => self.late(&mut state, index),
            Action::Crash(replica) => self.crash(&mut state, replica),
            Action::Restart(replica) => self.restart(&mut state, replica),
            Action::Cut(replica) => {
                state.left.cuts -= 1;
                state.replicas[replica].cut = true;
            }
            Action::Heal(replica) => state.replicas[replica].cut = false,
            Action::Event(replica) => self.event(&mut state, replica),
            Action::ProofBegins(replica) => self.proof_begins(&mut state, replica),
            Action::ProofAnswered(replica) => self.proof_answered(&mut state, replica),
            Action::Watch(watcher, replica) => self.watch(&mut state, watcher, replica),
            Action::Snapshot(watcher) => self.snapshot(&mut state, watcher),
            Action::Attach(watcher) => self.attach(&mut state, watcher),
            Action::Frame(watcher) => self.frame(&mut state, watcher),
            Action::Beat(watcher) => self.beat(&mut state, watcher),
        }
        for index in 0..usize::from(self.scope.watchers) {
            let (before, after) = (last.watchers[index].held, state.watchers[index].held);
            if before & !after != 0 {
                state.note(Wrong::Forgot);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
