//! The checker refuses what breaks a promise, and nothing else. A bad history is a good one with one
//! thing changed.

mod clocks;

use proptest::prelude::*;

use super::{Findings, Promise, Rules, check};
use crate::dice::Dice;
use crate::history::{
    Answer, Asked, Call, End, History, Issued, Judged, Micros, Seen, Session, Shown, Subject,
    Token, Verdict,
};

const RULES: Rules = Rules { slack: 10, bound: 500, lead: 100, leeway: 50 };
const WINDOW: Micros = 1_000;
const LATER: Micros = 1_000_000;
const SUBJECT: Subject = Subject(3);
const ONE: Session = Session(1);

/// The refresh token of a generation.
const fn token(generation: u64) -> Token {
    Token(100 + generation)
}

const fn access(generation: u64) -> Token {
    Token(200 + generation)
}

const fn issued(generation: u64) -> Answer {
    let (refresh, access) = (token(generation), access(generation));
    Answer::Issued(Issued { session: ONE, refresh, access, ends: LATER })
}

/// A history that is written from above to below.
#[derive(Clone, Default)]
struct Pen(History);

impl Pen {
    /// A call at replica 0, from one moment to another.
    fn call(mut self, at: (Micros, Micros), asked: Asked, answer: Answer) -> Self {
        let (invoked, returned) = at;
        let call = Call { caller: "test", replica: Some(0), asked, invoked, returned, answer };
        self.0.calls.push(call);
        self
    }

    /// A session that is opened at 10 to 20.
    fn login() -> Self {
        let asked = Asked::Login { subject: SUBJECT, window: WINDOW };
        Self::default().call((10, 20), asked, issued(0))
    }

    fn refresh(self, at: (Micros, Micros), generation: u64, answer: Answer) -> Self {
        let asked = Asked::Refresh { session: ONE, token: token(generation) };
        self.call(at, asked, answer)
    }

    fn revoke(self, at: (Micros, Micros)) -> Self {
        let answer = Answer::Revoked { cursor: 7, event: Some(shown(7)), applied: None };
        self.call(at, Asked::RevokeSession(ONE), answer)
    }

    fn introspect(self, at: (Micros, Micros), at_least: Option<u64>, active: bool) -> Self {
        let asked = Asked::Introspect { session: ONE, token: access(0), at_least };
        self.call(at, asked, Answer::Active(active))
    }

    /// The last call was at another replica.
    fn elsewhere(mut self) -> Self {
        self.0.calls.last_mut().expect("a call").replica = Some(1);
        self
    }

    fn verdict(mut self, at: Micros, judged: Judged) -> Self {
        let (invoked, returned) = (at, at + 1);
        let verdict =
            Verdict { verifier: 0, session: ONE, token: access(0), invoked, returned, judged };
        self.0.verdicts.push(verdict);
        self
    }

    fn watcher(mut self, seen: Vec<Seen>) -> Self {
        self.0.watched.push(seen.into_iter().map(|seen| (100, seen)).collect());
        self
    }

    fn end(mut self, head: u64, list: Vec<Shown>, whole: bool) -> Self {
        self.0.end = Some(End { at: 900, head, lists: vec![list], whole: vec![whole] });
        self
    }

    fn findings(&self) -> Findings {
        check(&self.0, RULES)
    }

    #[track_caller]
    fn is_good(&self) {
        let found = self.findings().violations;
        assert!(found.is_empty(), "{found:?}");
    }

    #[track_caller]
    fn breaks(&self, promise: Promise) {
        let found = self.findings().violations;
        assert!(found.iter().any(|it| it.promise == promise), "{promise:?} in {found:?}");
    }
}

fn shown(revision: u64) -> Shown {
    Shown { revision, about: format!("session {revision}"), epoch: 0, ends: LATER }
}

fn batch(revisions: &[u64]) -> Seen {
    let through = *revisions.last().expect("some");
    Seen::Batch { shown: revisions.iter().map(|it| shown(*it)).collect(), through }
}

#[test]
fn a_line_of_rotations_and_a_retry_inside_the_window_is_good() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 0, issued(1));
    pen.refresh((70, 80), 1, issued(2)).is_good();
}

#[test]
fn two_successors_of_one_token_are_refused() {
    let two = Answer::Issued(Issued {
        session: ONE,
        refresh: Token(999),
        access: access(9),
        ends: LATER,
    });
    let pen = Pen::login().refresh((30, 40), 0, issued(1));
    pen.refresh((32, 42), 0, two).breaks(Promise::OneLine);
}

#[test]
fn one_successor_of_two_tokens_is_refused() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, issued(2));
    pen.refresh((70, 80), 2, issued(1)).breaks(Promise::OneLine);
}

#[test]
fn tokens_of_another_session_are_refused() {
    let other = Answer::Issued(Issued {
        session: Session(2),
        refresh: token(1),
        access: access(1),
        ends: LATER,
    });
    Pen::login().refresh((30, 40), 0, other).breaks(Promise::OneLine);
}

#[test]
fn a_replay_that_is_accepted_is_refused() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, issued(2));
    pen.clone().refresh((70, 80), 0, issued(1)).breaks(Promise::OneOrder);
    // Refused it is good, and the session is dead then.
    let pen = pen.refresh((70, 80), 0, Answer::Refused);
    pen.clone().refresh((90, 100), 2, Answer::Refused).is_good();
    pen.refresh((90, 100), 2, issued(3)).breaks(Promise::OneOrder);
}

#[test]
fn a_replay_that_may_have_come_before_the_successor_was_used_is_good() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 90), 1, issued(2));
    pen.refresh((60, 80), 0, issued(1)).is_good();
}

#[test]
fn a_retry_after_the_window_is_accepted_by_no_good_server() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1));
    let over = 40 + WINDOW + RULES.slack;
    pen.clone().refresh((over, over + 5), 0, issued(1)).breaks(Promise::OneOrder);
    pen.clone().refresh((over - 1, over + 5), 0, issued(1)).is_good();
    pen.refresh((over, over + 5), 0, Answer::Refused).is_good();
}

#[test]
fn an_honest_client_is_not_killed_inside_the_window() {
    let pen = Pen::login().refresh((30, 40), 0, issued(1));
    pen.clone().refresh((50, 60), 0, Answer::Refused).breaks(Promise::OneOrder);
    pen.refresh((50, 60), 1, Answer::Refused).breaks(Promise::OneOrder);
}

#[test]
fn a_login_that_was_acknowledged_is_not_lost() {
    Pen::login().refresh((30, 40), 0, Answer::Refused).breaks(Promise::OneOrder);
}

#[test]
fn a_login_is_refused_only_when_its_subject_is_taken_back_meanwhile() {
    let asked = Asked::Login { subject: SUBJECT, window: WINDOW };
    let pen = Pen::default().call((10, 20), asked, Answer::Refused);
    pen.breaks(Promise::OneOrder);
    let revoke = |at, subject| {
        let answer = Answer::Revoked { cursor: 7, event: None, applied: None };
        pen.clone().call(at, Asked::RevokeSubject(subject), answer)
    };
    revoke((15, 30), SUBJECT).is_good();
    revoke((5, 12), SUBJECT).is_good();
    revoke((5, 9), SUBJECT).breaks(Promise::OneOrder);
    revoke((21, 30), SUBJECT).breaks(Promise::OneOrder);
    revoke((15, 30), Subject(4)).breaks(Promise::OneOrder);
}

#[test]
fn a_rotation_that_was_acknowledged_is_not_lost() {
    // The parent rotates anew to the same successor, but the one after it was given out already.
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, issued(2));
    pen.refresh((70, 80), 1, issued(2))
        .refresh((90, 100), 2, Answer::Refused)
        .breaks(Promise::OneOrder);
}

#[test]
fn a_revocation_that_was_acknowledged_is_not_lost() {
    let pen = Pen::login().revoke((30, 40));
    pen.clone().refresh((50, 60), 0, issued(1)).breaks(Promise::OneOrder);
    pen.refresh((50, 60), 0, Answer::Refused).is_good();
    // While it is under way, either may be first.
    Pen::login().revoke((30, 60)).refresh((40, 50), 0, issued(1)).is_good();
}

#[test]
fn revocations_of_the_subject_and_of_everything_take_sessions_that_were_there() {
    let answer = || Answer::Revoked { cursor: 7, event: None, applied: None };
    for asked in [Asked::RevokeSubject(SUBJECT), Asked::RevokeEverything] {
        let pen = Pen::login().call((30, 40), asked, answer());
        pen.clone().refresh((50, 60), 0, issued(1)).breaks(Promise::OneOrder);
        pen.clone().introspect((50, 60), None, true).breaks(Promise::ReadYourRevocation);
        // One that was over before the login takes nothing.
        Pen::login().call((1, 5), asked, answer()).refresh((50, 60), 0, issued(1)).is_good();
        // One that the login met may have been earlier or later.
        let met = Pen::login().call((5, 15), asked, answer());
        met.clone().refresh((50, 60), 0, issued(1)).introspect((70, 80), None, true).is_good();
        met.refresh((50, 60), 0, Answer::Refused).is_good();
    }
    let other = Asked::RevokeSubject(Subject(4));
    let pen = Pen::login().call((30, 40), other, answer());
    pen.refresh((50, 60), 0, Answer::Refused).breaks(Promise::OneOrder);
}

#[test]
fn a_call_without_an_answer_may_have_happened_or_not_but_not_both() {
    let pen = Pen::login().refresh((30, 40), 0, Answer::Unknown);
    pen.refresh((50, 60), 0, issued(1)).is_good();
    let killed = Pen::login().call((30, 40), Asked::RevokeSession(ONE), Answer::Unknown);
    killed.clone().refresh((50, 60), 0, issued(1)).is_good();
    killed.clone().refresh((50, 60), 0, Answer::Refused).is_good();
    let both = killed.refresh((50, 60), 0, Answer::Refused);
    both.refresh((70, 80), 0, issued(1)).breaks(Promise::OneOrder);
}

#[test]
fn a_call_that_comes_late_may_kill_and_is_counted() {
    let pen = Pen::login().refresh((30, 40), 0, Answer::Unknown).refresh((50, 60), 0, issued(1));
    let pen = pen.refresh((70, 80), 1, issued(2)).refresh((90, 100), 2, Answer::Refused);
    pen.is_good();
    assert_eq!(pen.findings().killed_by_a_late_call, 1);
    // Or the call that was answered was a retry, and the other has rotated; it comes late all the same.
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, Answer::Unknown);
    let pen = pen.refresh((70, 80), 1, issued(2)).refresh((90, 100), 2, issued(3));
    pen.refresh((110, 120), 3, Answer::Refused).is_good();
    // An answered call has no second life.
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, issued(2));
    pen.refresh((70, 80), 2, Answer::Refused).breaks(Promise::OneOrder);
}

#[test]
fn introspection_reads_a_revocation_where_it_was_made_and_by_its_cursor() {
    let pen = Pen::login().revoke((30, 40));
    pen.clone().introspect((50, 60), None, true).breaks(Promise::ReadYourRevocation);
    pen.clone().introspect((50, 60), None, false).is_good();
    pen.clone().introspect((50, 60), None, true).elsewhere().is_good();
    pen.clone().introspect((50, 60), Some(6), true).elsewhere().is_good();
    let named = pen.clone().introspect((50, 60), Some(7), true).elsewhere();
    named.breaks(Promise::ReadYourRevocation);
    pen.introspect((35, 45), None, true).is_good();
}

#[test]
fn introspection_of_a_token_that_nobody_took_back_says_active() {
    Pen::login().introspect((30, 40), None, false).breaks(Promise::OneOrder);
    Pen::login().introspect((LATER, LATER + 1), None, false).is_good();
    let token = Asked::RevokeToken { session: ONE, token: access(0) };
    let pen = Pen::login().call((30, 40), token, Answer::Unknown);
    pen.introspect((50, 60), None, false).is_good();
    let other = Asked::RevokeToken { session: ONE, token: access(1) };
    let pen = Pen::login().call((30, 40), other, Answer::Unknown);
    pen.introspect((50, 60), None, false).breaks(Promise::OneOrder);
}

#[test]
fn verifiers_accept_nothing_past_the_bound_and_refuse_nothing_good() {
    let pen = Pen::login().revoke((30, 40));
    pen.clone().verdict(40 + RULES.bound, Judged::Good).is_good();
    let late = pen.clone().verdict(41 + RULES.bound, Judged::Good);
    late.breaks(Promise::Bound);
    assert_eq!(late.findings().latest_acceptance, RULES.bound + 1);
    pen.clone().verdict(5_000, Judged::Unsure).is_good();
    pen.clone().verdict(31, Judged::Revoked).is_good();
    pen.verdict(25, Judged::Revoked).breaks(Promise::Bound);
    Pen::login().verdict(50, Judged::Revoked).breaks(Promise::Bound);
    Pen::login().verdict(50, Judged::Invalid).breaks(Promise::Bound);
    // A refused refresh says that the session was dead by then.
    let pen = Pen::login().refresh((30, 40), 0, issued(1)).refresh((50, 60), 1, issued(2));
    let pen = pen.refresh((70, 80), 0, Answer::Refused);
    pen.verdict(81 + RULES.bound, Judged::Good).breaks(Promise::Bound);
}

#[test]
fn an_answer_that_the_protocol_does_not_have_is_refused() {
    let strange = Answer::Strange("Internal: oh".to_owned());
    Pen::login().refresh((30, 40), 0, strange).breaks(Promise::Explained);
}

/// A watcher that has the whole set at revision 5, and then more.
fn watched(more: Vec<Seen>) -> Vec<Seen> {
    let begin = [Seen::Connected { resumed: false }, Seen::Synced(5)];
    begin.into_iter().chain(more).collect()
}

#[test]
fn a_stream_without_holes_is_good() {
    let lost = || Seen::Lost("it".to_owned());
    let resumed = Seen::Connected { resumed: true };
    let seen = watched(vec![
        batch(&[7, 9]),
        lost(),
        resumed,
        batch(&[12]),
        Seen::Synced(12),
        Seen::Heartbeat(13),
    ]);
    let whole = vec![Seen::Connected { resumed: false }, Seen::Synced(13)];
    let list = [7, 9, 12].map(shown).to_vec();
    Pen::default().watcher(seen).watcher(whole).end(13, list, true).is_good();
}

#[test]
fn a_stream_with_a_hole_is_refused() {
    let told = watched(vec![batch(&[7]), batch(&[9])]);
    let pen = Pen::default().watcher(told);
    for hole in [
        watched(vec![batch(&[9])]),
        watched(vec![batch(&[7]), Seen::Heartbeat(9)]),
        watched(vec![
            Seen::Lost("it".to_owned()),
            Seen::Connected { resumed: true },
            Seen::Synced(9),
        ]),
        watched(vec![Seen::Reset]),
        watched(vec![batch(&[7, 9]), Seen::Connected { resumed: false }, Seen::Synced(8)]),
    ] {
        pen.clone().watcher(hole).breaks(Promise::NoHoles);
    }
    // Nobody has to be told of what has ended.
    let mut ended = Pen::default().watcher(watched(vec![batch(&[9])]));
    let brief = Shown { ends: 50, ..shown(7) };
    ended.0.watched.push(vec![(20, Seen::Batch { shown: vec![brief], through: 7 })]);
    ended.is_good();
}

#[test]
fn revisions_that_do_not_rise_are_refused() {
    for bad in [vec![batch(&[9, 7])], vec![batch(&[7]), batch(&[7])]] {
        Pen::default().watcher(watched(bad)).breaks(Promise::NoHoles);
    }
    let past = Seen::Batch { shown: vec![shown(9)], through: 8 };
    Pen::default().watcher(watched(vec![past])).breaks(Promise::NoHoles);
}

#[test]
fn one_revision_is_one_event_for_everybody() {
    let other = Shown { about: "session 8".to_owned(), ..shown(7) };
    let pen = Pen::default().watcher(watched(vec![batch(&[7])]));
    let other = Seen::Batch { shown: vec![other], through: 7 };
    pen.watcher(watched(vec![other])).breaks(Promise::NoHoles);
}

#[test]
fn whoever_waits_for_the_watchers_is_told_the_truth() {
    // Watchers write everything down at 100.
    let revoke = |at, applied| {
        let answer = Answer::Revoked { cursor: 7, event: Some(shown(7)), applied };
        Pen::login().call(at, Asked::RevokeSession(ONE), answer)
    };
    let told = watched(vec![batch(&[7])]);
    let untold = || revoke((110, 120), Some(true)).watcher(watched(vec![]));
    untold().breaks(Promise::Applied);
    // Unless its good-bye was on its way by then, and is what it hears of next.
    let then = |next: &[Seen]| {
        let mut pen = untold();
        pen.0.watched[0].extend(next.iter().map(|seen| (121, seen.clone())));
        pen
    };
    let bye = Seen::Lost("GoAway(Drain)".to_owned());
    then(&[Seen::Heartbeat(6), bye.clone()]).is_good();
    then(&[Seen::Heartbeat(7), bye]).breaks(Promise::Applied);
    then(&[Seen::Lost("Silent".to_owned())]).breaks(Promise::Applied);
    revoke((110, 120), Some(false)).watcher(watched(vec![])).is_good();
    revoke((110, 120), None).watcher(watched(vec![])).is_good();
    revoke((90, 120), Some(true)).watcher(told.clone()).is_good();
    let lost = watched(vec![Seen::Lost("it".to_owned())]);
    revoke((110, 120), Some(true)).watcher(lost).is_good();
    // It was not there yet, or not all the time.
    revoke((90, 95), Some(true)).watcher(told).is_good();
}

#[test]
fn at_the_end_everybody_has_everything() {
    let told = || watched(vec![batch(&[7])]);
    let pen = || Pen::login().revoke((30, 40)).watcher(told());
    pen().end(7, vec![shown(7)], true).is_good();
    pen().end(7, vec![shown(7)], false).breaks(Promise::NoHoles);
    pen().end(8, vec![shown(7)], true).breaks(Promise::NoHoles);
    pen().end(7, vec![], true).breaks(Promise::Durable);
    let lower = |epoch| Shown { epoch, about: "subject a".to_owned(), ..shown(7) };
    let told = |epoch| watched(vec![Seen::Batch { shown: vec![lower(epoch)], through: 7 }]);
    Pen::default().watcher(told(2)).end(7, vec![lower(3)], true).breaks(Promise::NoHoles);
    let newer = Shown { revision: 9, ..lower(3) };
    Pen::default().watcher(told(2)).end(7, vec![newer], true).is_good();
    let older = Shown { revision: 6, ..lower(1) };
    Pen::default().watcher(told(2)).end(7, vec![older], true).breaks(Promise::Durable);
}

/// A session as a good server keeps it, under calls that take effect one after the other, each at some
/// moment between its beginning and its answer; so many of a hundred calls are heard of again.
fn played(seed: u64, calls: usize, heard: usize) -> History {
    let dice = Dice::new(seed, "played");
    let mut pen = Pen::login();
    let (mut generation, mut dead, mut rotated) = (0, false, 0);
    let mut now = 30;
    for _ in 0..calls {
        now += 1 + dice.below(300) as Micros;
        // Calls meet: they begin earlier and answer later than they take effect. Nobody presents a token
        // before it was given out, though.
        let at = (now - dice.below(8) as Micros, now + dice.below(60) as Micros);
        if dice.chance(4) {
            dead = true;
            let answered = dice.chance(heard);
            let answer = if answered {
                Answer::Revoked { cursor: 7, event: None, applied: None }
            } else {
                Answer::Unknown
            };
            pen = pen.call(at, Asked::RevokeSession(ONE), answer);
            continue;
        }
        let presented = generation - (dice.below(3) as u64 / 2).min(generation);
        let in_window = now - rotated < WINDOW;
        let answer = if dead {
            Answer::Refused
        } else if presented == generation {
            generation += 1;
            rotated = now;
            issued(generation)
        } else if in_window {
            issued(generation)
        } else {
            dead = true;
            Answer::Refused
        };
        let heard = dice.chance(heard);
        pen = pen.refresh(at, presented, if heard { answer } else { Answer::Unknown });
        // A successor that nobody was told of is not presented, until a retry has brought it.
        if !heard && !dead && !pen.knows(generation) {
            now += 1;
            let tries = if now - rotated < WINDOW { issued(generation) } else { Answer::Refused };
            dead |= tries == Answer::Refused;
            pen = pen.refresh((now, now + 1), presented, tries);
        }
    }
    pen.0
}

impl Pen {
    fn knows(&self, generation: u64) -> bool {
        self.0.calls.iter().any(|call| call.answer == issued(generation))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_a_good_server_does_is_good(seed in any::<u64>(), calls in 1_usize..60) {
        let found = check(&played(seed, calls, 80), RULES).violations;
        prop_assert!(found.is_empty(), "{found:?}");
    }

    /// With calls of which each is answered, and of which none meet, there is one order alone.
    #[test]
    fn an_answer_that_is_turned_round_is_noticed(seed in any::<u64>(), calls in 10_usize..60) {
        let mut history = played(seed, calls, 100);
        for (number, call) in history.calls.iter_mut().enumerate() {
            call.invoked = number as Micros * 20;
            call.returned = call.invoked + 1;
        }
        prop_assume!(check(&history, RULES).violations.is_empty());
        let refreshes: Vec<usize> = (0..history.calls.len())
            .filter(|n| matches!(history.calls[*n].asked, Asked::Refresh { .. }))
            .collect();
        prop_assume!(!refreshes.is_empty());
        let at = refreshes[Dice::new(seed, "turned").below(refreshes.len())];
        let Asked::Refresh { token, .. } = history.calls[at].asked else { unreachable!() };
        let turned = match history.calls[at].answer {
            // Refused, though the session lives on or nothing explains its end.
            Answer::Issued(_) => Answer::Refused,
            _ => issued(token.0 - 100 + 1),
        };
        history.calls[at].answer = turned;
        let found = check(&history, RULES).violations;
        prop_assert!(!found.is_empty(), "call {at} of {:?}", history.calls);
    }
}
