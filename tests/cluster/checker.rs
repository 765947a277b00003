//! Decides whether a history keeps the promises. Knows no network, no clock and no avouch: only what was
//! called and answered, and what the design says of it.

mod books;
mod line;
mod reads;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;

use crate::history::{Answer, Doubt, History, Micros};
pub(crate) use books::Books;

/// What the promises are measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// How far the clocks of replicas may be from that of the history.
    pub(crate) slack: Micros,
    /// How long after a revocation was acknowledged a verifier may accept what it took back: its limit
    /// of staleness and the skew.
    pub(crate) bound: Micros,
    /// How far clocks may differ so that a token from the one that is ahead is good everywhere at once.
    pub(crate) lead: Micros,
    /// How much too early a token may be for a verifier.
    pub(crate) leeway: Micros,
}

/// The rules, and when the clocks of replicas were further apart than they say.
#[derive(Clone, Copy)]
struct Measures<'a> {
    rules: Rules,
    doubts: &'a [Doubt],
}

impl Measures<'_> {
    /// How far apart clocks were at most, between two moments.
    fn apart(&self, from: Micros, to: Micros) -> Micros {
        let met = self.doubts.iter().filter(|it| it.from <= to && from <= it.to);
        met.map(|it| it.apart).max().unwrap_or(0)
    }

    /// How far what is decided by clocks may be off, between two moments.
    fn slack(&self, from: Micros, to: Micros) -> Micros {
        self.rules.slack + self.apart(from, to)
    }

    /// How much of that is more than replicas make up for.
    fn beyond_lead(&self, from: Micros, to: Micros) -> Micros {
        self.apart(from, to).saturating_sub(self.rules.lead)
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// Which: the number of the invariant, or what it is about.
    pub(crate) promise: Promise,
    /// What happened.
    pub(crate) text: String,
}

/// The promises, by their numbers in the design where they have one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub(crate) enum Promise {
    /// 1: of one token there is one successor.
    OneLine,
    /// 1 to 3: all that was answered about a session fits one order of events, in which each took effect
    /// between call and answer: no replay is accepted, nobody is killed who kept to the rules, nothing
    /// that was acknowledged is lost.
    OneOrder,
    /// 3: what was acknowledged is there at the end.
    Durable,
    /// 5: the stream has no holes.
    NoHoles,
    /// Where Revoke says that every watcher has applied the event, every watcher has.
    Applied,
    /// 7: a revocation is seen by who made it, and by who names its cursor.
    ReadYourRevocation,
    /// No verifier accepts what was taken back, past the bound; and none refuses what was not.
    Bound,
    /// Every answer is one that the protocol has.
    Explained,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.text)
    }
}

/// What came of a check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) violations: Vec<Violation>,
    /// How many sessions were followed.
    pub(crate) sessions: usize,
    /// How long after the acknowledgement a verifier last accepted what it took back.
    pub(crate) latest_acceptance: Micros,
    /// Sessions whose end only a call explains that was not answered in time and came late, after its
    /// caller had gone on with the successor.
    pub(crate) killed_by_a_late_call: usize,
}

impl Findings {
    /// Adds what nothing explains.
    pub(crate) fn explain_none_of(&mut self, these: Vec<String>) {
        these.into_iter().for_each(|text| self.add(Promise::Explained, text));
    }

    fn add(&mut self, promise: Promise, text: String) {
        self.violations.push(Violation { promise, text });
    }
}

/// Holds a history against the promises.
pub(crate) fn check(history: &History, rules: Rules) -> Findings {
    let mut findings = Findings::default();
    for call in &history.calls {
        if let Answer::Strange(what) = &call.answer {
            let (name, caller) = (call.asked.name(), call.caller);
            findings
                .add(Promise::Explained, format!("{name} of {caller} at {}: {what}", call.invoked));
        }
    }
    let measures = Measures { rules, doubts: &history.doubts };
    let books = Books::of(history, &mut findings);
    line::check(history, &books, measures, &mut findings);
    reads::check(history, &books, measures, &mut findings);
    watch::check(history, measures, &mut findings);
    findings
}
