//! Whether all that was answered about one session fits one order of events, in which each call took
//! effect at one moment between its beginning and its answer; one without an answer at some moment after
//! its beginning, or never.
//!
//! All orders that are possible so far are kept side by side, and each answer throws out those that it
//! contradicts (just-in-time linearisation, after Lowe). When none is left, there is no order.

use std::collections::HashSet;

use super::books::{Books, Page};
use super::{Findings, Measures, Promise};
use crate::history::{Answer, Asked, Call, History, Micros};

/// More orders than this are not followed, which is said and never passed over.
const MOST_ORDERS: usize = 200_000;

/// How a refresh came out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Got {
    Successor,
    Nothing,
    Unknown,
}

/// What a call does to the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Act {
    Open,
    Refresh { generation: u32, got: Got },
    Kill,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    invoked: Micros,
    /// None when nobody knows whether it took effect.
    returned: Option<Micros>,
    act: Act,
    call: usize,
}

/// Where the session stands in one order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Order {
    open: bool,
    dead: bool,
    generation: u32,
    /// The last rotation was between these.
    rotated: (Micros, Micros),
    /// Steps that have taken effect and are not answered yet, in order. Those without an answer stay.
    done: Vec<usize>,
    /// Whether a refresh that nobody answered has killed it.
    late: bool,
}

impl Order {
    /// Whether whatever can follow the other can follow this one.
    fn covers(&self, other: &Self, steps: &[Step]) -> bool {
        let same = (self.open, self.dead, self.generation, self.late)
            == (other.open, other.dead, other.generation, other.late);
        let answered = |order: &Self| -> Vec<usize> {
            order.done.iter().copied().filter(|n| steps[*n].returned.is_some()).collect()
        };
        same && self.rotated.0 <= other.rotated.0
            && self.rotated.1 >= other.rotated.1
            && self.done.iter().all(|n| other.done.contains(n))
            && answered(self) == answered(other)
    }
}

/// One session's rules.
#[derive(Clone, Copy)]
struct Timing<'a> {
    window: Micros,
    measures: Measures<'a>,
}

impl Order {
    /// The session after a step that takes effect no later than `by`; None if its answer would have been
    /// another, or if nothing would come of a step that was not answered.
    fn after(&self, number: usize, step: &Step, by: Micros, timing: Timing<'_>) -> Option<Self> {
        let by = step.returned.map_or(by, |returned| returned.min(by));
        let unanswered = step.returned.is_none();
        let mut next = self.clone();
        match step.act {
            Act::Open => next.open = true,
            Act::Kill if unanswered && (self.dead || !self.open) => return None,
            // What is revoked before it is there is not revoked.
            Act::Kill => next.dead |= self.open,
            Act::Refresh { .. } if !self.open => return None,
            Act::Refresh { got, .. } if self.dead => {
                if got != Got::Nothing {
                    return None;
                }
            }
            Act::Refresh { generation, got } if generation == self.generation => {
                if got == Got::Nothing {
                    return None;
                }
                next.generation += 1;
                next.rotated = (step.invoked, by);
            }
            Act::Refresh { generation, got } if generation < self.generation => {
                let parent = generation + 1 == self.generation;
                let shortest = step.invoked.saturating_sub(self.rotated.1);
                let longest = by.saturating_sub(self.rotated.0);
                let slack = timing.measures.slack(self.rotated.0, by);
                let may_retry = parent && shortest < timing.window + slack;
                let may_kill = !parent || longest + slack >= timing.window;
                match got {
                    Got::Successor if may_retry => {}
                    Got::Nothing if may_kill => next.dead = true,
                    Got::Unknown if may_kill => (next.dead, next.late) = (true, true),
                    Got::Successor | Got::Nothing | Got::Unknown => return None,
                }
            }
            // A generation that is not there: the rotation that made it is lost.
            Act::Refresh { .. } => return None,
        }
        if next.dead && unanswered {
            // Nothing more comes of what was not answered.
            return Some(next);
        }
        let at = next.done.partition_point(|other| *other < number);
        next.done.insert(at, number);
        Some(next)
    }
}

fn steps(calls: &[Call], page: &Page) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut add = |number: usize, act: Act| {
        let call = &calls[number];
        let answered = !matches!(call.answer, Answer::Unknown | Answer::Strange(_));
        let returned = answered.then_some(call.returned);
        steps.push(Step { invoked: call.invoked, returned, act, call: number });
    };
    add(page.login, Act::Open);
    for number in &page.kills {
        add(*number, Act::Kill);
    }
    for number in &page.refreshes {
        let Asked::Refresh { token, .. } = calls[*number].asked else { continue };
        let Some(generation) = page.generations.get(&token).copied() else { continue };
        let got = match calls[*number].answer {
            Answer::Issued(_) => Got::Successor,
            Answer::Refused => Got::Nothing,
            _ => Got::Unknown,
        };
        add(*number, Act::Refresh { generation, got });
    }
    steps
}

/// What came of following one session.
enum Followed {
    /// There is an order.
    Fits {
        only_late: bool,
    },
    /// There is none once this call was answered.
    Broken(usize),
    TooMany,
}

fn follow(steps: &[Step], timing: Timing<'_>) -> Followed {
    let mut events: Vec<(Micros, bool, usize)> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        events.push((step.invoked, false, number));
        events.extend(step.returned.map(|returned| (returned, true, number)));
    }
    // Of what happens in one microsecond the calls come first: more orders are possible then.
    events.sort_unstable();
    let start = Order {
        open: false,
        dead: false,
        generation: 0,
        rotated: (0, 0),
        done: Vec::new(),
        late: false,
    };
    let mut orders = vec![start];
    let mut pending: Vec<usize> = Vec::new();
    for (now, is_answer, number) in events {
        if !is_answer {
            pending.push(number);
            continue;
        }
        let mut known: HashSet<Order> = orders.iter().cloned().collect();
        let mut waiting = std::mem::take(&mut orders);
        while let Some(mut order) = waiting.pop() {
            if let Ok(at) = order.done.binary_search(&number) {
                order.done.remove(at);
                orders.push(order);
                continue;
            }
            let others = pending.iter().filter(|other| order.done.binary_search(other).is_err());
            for other in others {
                if let Some(next) = order.after(*other, &steps[*other], now, timing)
                    && known.insert(next.clone())
                {
                    waiting.push(next);
                }
            }
            if known.len() > MOST_ORDERS {
                return Followed::TooMany;
            }
        }
        pending.retain(|other| *other != number);
        prune(&mut orders, steps);
        if orders.is_empty() {
            return Followed::Broken(number);
        }
    }
    Followed::Fits { only_late: orders.iter().all(|order| order.late) }
}

/// Drops the orders that another one covers.
fn prune(orders: &mut Vec<Order>, steps: &[Step]) {
    let mut kept: Vec<Order> = Vec::new();
    for order in orders.drain(..) {
        if kept.iter().any(|other| other.covers(&order, steps)) {
            continue;
        }
        kept.retain(|other| !order.covers(other, steps));
        kept.push(order);
    }
    *orders = kept;
}

pub(super) fn check(
    history: &History,
    books: &Books,
    measures: Measures<'_>,
    findings: &mut Findings,
) {
    for (session, page) in &books.pages {
        findings.sessions += 1;
        let steps = steps(&history.calls, page);
        let timing = Timing { window: page.window, measures };
        match follow(&steps, timing) {
            Followed::Fits { only_late } => {
                findings.killed_by_a_late_call += usize::from(only_late)
            }
            Followed::Broken(step) => {
                let text = format!(
                    "{session:?}: nothing explains the answer to call {}:\n{}",
                    steps[step].call,
                    story(history, page, &steps, steps[step])
                );
                findings.add(Promise::OneOrder, text);
            }
            Followed::TooMany => {
                let text =
                    format!("{session:?}: too many orders to follow, of {} calls", steps.len());
                findings.add(Promise::OneOrder, text);
            }
        }
    }
}

/// The calls around the one that fits no order, for people.
fn story(history: &History, page: &Page, steps: &[Step], broken: Step) -> String {
    let mut near: Vec<&Step> = steps.iter().collect();
    near.sort_by_key(|step| step.invoked);
    let at = near.iter().position(|step| step.call == broken.call).unwrap_or(0);
    let from = at.saturating_sub(25);
    let lines = near[from..near.len().min(at + 8)].iter().map(|step| {
        let call = &history.calls[step.call];
        let mark = if step.call == broken.call { ">" } else { " " };
        let returned = step.returned.map_or("never".to_owned(), |it| it.to_string());
        format!(
            "{mark} {:>10}..{returned:>10} {:<16} {:?} {:?}: {:?}",
            step.invoked, call.caller, call.replica, step.act, call.answer
        )
    });
    let lines: Vec<String> = lines.collect();
    format!("  subject {:?}, retry window {} us\n{}", page.subject, page.window, lines.join("\n"))
}
