//! Whether what introspection and verifiers said of access tokens agrees with what was taken back.

use std::collections::HashMap;

use super::books::{Books, Page, lasts_until};
use super::{Findings, Measures, Promise};
use crate::history::{Answer, Asked, Call, History, Judged, Micros, Session, Token};

/// A revocation that was acknowledged.
struct Taken {
    returned: Micros,
    replica: Option<usize>,
    cursor: u64,
    /// The one token that it took; None for the session.
    token: Option<Token>,
}

/// What is certain and what is possible of a session and its tokens.
struct Fate {
    taken: Vec<Taken>,
    /// Refreshes that were refused: the session was dead by then.
    refused: Option<Micros>,
    /// From here on the session may be dead.
    may_die: Option<Micros>,
    /// The same of single tokens.
    tokens_may_die: HashMap<Token, Micros>,
}

fn earlier(one: Option<Micros>, other: Micros) -> Option<Micros> {
    Some(one.map_or(other, |one| one.min(other)))
}

impl Fate {
    fn of(calls: &[Call], page: &Page, measures: Measures<'_>) -> Self {
        let mut fate = Self {
            taken: Vec::new(),
            refused: None,
            may_die: None,
            tokens_may_die: HashMap::new(),
        };
        let login = &calls[page.login];
        for number in &page.kills {
            let call = &calls[*number];
            fate.may_die = earlier(fate.may_die, call.invoked.max(login.invoked));
            let Answer::Revoked { cursor, .. } = call.answer else { continue };
            // If the login was under way meanwhile, it may have been the later of the two.
            if login.returned <= call.invoked {
                let (returned, replica) = (call.returned, call.replica);
                fate.taken.push(Taken { returned, replica, cursor, token: None });
            }
        }
        for number in &page.token_kills {
            let call = &calls[*number];
            let Asked::RevokeToken { token, .. } = call.asked else { continue };
            let known = fate.tokens_may_die.get(&token).copied();
            fate.tokens_may_die.extend(earlier(known, call.invoked).map(|from| (token, from)));
            if let Answer::Revoked { cursor, .. } = call.answer {
                let (returned, replica) = (call.returned, call.replica);
                fate.taken.push(Taken { returned, replica, cursor, token: Some(token) });
            }
        }
        // When somebody went on with each token for the first time.
        let mut first: HashMap<Token, Micros> = HashMap::new();
        for number in &page.refreshes {
            let call = &calls[*number];
            let Asked::Refresh { token, .. } = call.asked else { continue };
            let known = first.get(&token).copied();
            first.extend(earlier(known, call.invoked).map(|from| (token, from)));
        }
        for number in &page.refreshes {
            let call = &calls[*number];
            let Asked::Refresh { token, .. } = call.asked else { continue };
            match call.answer {
                Answer::Issued(_) => {}
                Answer::Refused => {
                    fate.refused = earlier(fate.refused, call.returned);
                    fate.may_die = earlier(fate.may_die, call.invoked);
                }
                // It is a replay if it comes late.
                _ => {
                    let next = page.successors.get(&token).and_then(|it| first.get(it)).copied();
                    let begun = first.get(&token).copied().unwrap_or(call.invoked);
                    let over = begun + page.window;
                    let late = over.saturating_sub(measures.slack(begun, over));
                    let from = next.unwrap_or(late).min(late).max(call.invoked);
                    fate.may_die = earlier(fate.may_die, from);
                }
            }
        }
        fate
    }

    /// When a token was certainly dead.
    fn dead_by(&self, token: Token) -> Option<Micros> {
        let taken = self.taken.iter().filter(|it| it.token.is_none_or(|it| it == token));
        taken.map(|it| it.returned).chain(self.refused).min()
    }

    /// From when on a token may have been dead.
    fn may_be_dead_from(&self, token: Token) -> Option<Micros> {
        self.may_die.into_iter().chain(self.tokens_may_die.get(&token).copied()).min()
    }
}

pub(super) fn check(
    history: &History,
    books: &Books,
    measures: Measures<'_>,
    findings: &mut Findings,
) {
    let fate = |page: &Page| Fate::of(&history.calls, page, measures);
    let fates: HashMap<Session, Fate> =
        books.pages.iter().map(|(session, page)| (*session, fate(page))).collect();
    let ends = |session: Session, token: Token| {
        books.pages.get(&session).and_then(|page| page.access.get(&token)).copied()
    };
    for call in &history.calls {
        let (Asked::Introspect { session, token, at_least }, Answer::Active(active)) =
            (call.asked, &call.answer)
        else {
            continue;
        };
        let (Some(fate), Some(ends)) = (fates.get(&session), ends(session, token)) else {
            continue;
        };
        if *active {
            let seen = fate.taken.iter().find(|taken| {
                let of_token = taken.token.is_none_or(|it| it == token);
                let here = taken.replica.is_some() && taken.replica == call.replica;
                let named = at_least.is_some_and(|at_least| at_least >= taken.cursor);
                of_token && taken.returned <= call.invoked && (here || named)
            });
            if let Some(taken) = seen {
                let text = format!(
                    "active at replica {:?} at {}, though replica {:?} acknowledged its revocation at {} \
                     with cursor {}: {call:?}",
                    call.replica, call.invoked, taken.replica, taken.returned, taken.cursor
                );
                findings.add(Promise::ReadYourRevocation, text);
            }
        } else if call.returned + measures.slack(call.invoked, call.returned) < ends
            // A token may be too early where clocks are further apart.
            && measures.beyond_lead(call.invoked, call.returned) == 0
            && fate.may_be_dead_from(token).is_none_or(|from| from > call.returned)
        {
            let text = format!("inactive, though nobody took it back: {call:?}");
            findings.add(Promise::OneOrder, text);
        }
    }
    verdicts(history, &fates, measures, findings, &ends);
    logins(history, findings);
}

/// A login with the right password is refused only when its subject was taken back meanwhile: what was
/// read of the user is not true any more then.
fn logins(history: &History, findings: &mut Findings) {
    let refused = history.calls.iter().filter(|call| call.answer == Answer::Refused);
    for call in refused {
        let Asked::Login { subject: of, .. } = call.asked else { continue };
        let met = history.calls.iter().any(|other| {
            let takes = match other.asked {
                Asked::RevokeSubject(subject) => subject == of,
                Asked::RevokeEverything => true,
                _ => false,
            };
            takes && other.invoked <= call.returned && lasts_until(other, call.invoked)
        });
        if !met {
            findings.add(Promise::OneOrder, format!("a login was refused: {call:?}"));
        }
    }
}

fn verdicts(
    history: &History,
    fates: &HashMap<Session, Fate>,
    measures: Measures<'_>,
    findings: &mut Findings,
    ends: &dyn Fn(Session, Token) -> Option<Micros>,
) {
    for verdict in &history.verdicts {
        let who = verdict.verifier;
        let (Some(fate), Some(ends)) =
            (fates.get(&verdict.session), ends(verdict.session, verdict.token))
        else {
            continue;
        };
        match verdict.judged {
            Judged::Good => {
                let Some(dead_by) = fate.dead_by(verdict.token) else { continue };
                let late = verdict.invoked.saturating_sub(dead_by);
                findings.latest_acceptance = findings.latest_acceptance.max(late);
                // By the moment of its issue a token is taken for newer than it is.
                let more = measures.beyond_lead(dead_by, verdict.returned);
                if late > measures.rules.bound + more {
                    let text = format!(
                        "verifier {who} accepted {late} us after its revocation was acknowledged: {verdict:?}"
                    );
                    findings.add(Promise::Bound, text);
                }
            }
            Judged::Revoked => {
                let from = fate.may_be_dead_from(verdict.token);
                if from.is_none_or(|from| from > verdict.returned) {
                    let text =
                        format!("verifier {who} refused as revoked, which it was not: {verdict:?}");
                    findings.add(Promise::Bound, text);
                }
            }
            Judged::Invalid
                if verdict.returned + measures.slack(verdict.invoked, verdict.returned) < ends
                    && measures.apart(verdict.invoked, verdict.returned)
                        <= measures.rules.leeway =>
            {
                findings
                    .add(Promise::Bound, format!("verifier {who} refused as none: {verdict:?}"));
            }
            Judged::Invalid | Judged::Unsure => {}
        }
    }
}
