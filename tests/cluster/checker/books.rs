//! A history, sorted by session.

use std::collections::HashMap;

use super::{Findings, Promise};
use crate::history::{Answer, Asked, Call, History, Issued, Micros, Session, Subject, Token};

/// What concerns one session. Calls are numbers in the history.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) subject: Subject,
    pub(crate) window: Micros,
    pub(crate) login: usize,
    pub(crate) refreshes: Vec<usize>,
    /// Revocations that take it back as a whole.
    pub(crate) kills: Vec<usize>,
    /// Revocations of one of its access tokens.
    pub(crate) token_kills: Vec<usize>,
    /// How many rotations each refresh token is from the login.
    pub(crate) generations: HashMap<Token, u32>,
    /// What each refresh token got.
    pub(crate) successors: HashMap<Token, Token>,
    /// The access tokens and when they end.
    pub(crate) access: HashMap<Token, Micros>,
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) pages: HashMap<Session, Page>,
}

/// Whether a call may still have been under way at a moment, or after it.
pub(crate) const fn lasts_until(call: &Call, moment: Micros) -> bool {
    matches!(call.answer, Answer::Unknown | Answer::Strange(_)) || call.returned >= moment
}

impl Books {
    pub(crate) fn of(history: &History, findings: &mut Findings) -> Self {
        let mut books = Self::default();
        let calls = &history.calls;
        for (number, call) in calls.iter().enumerate() {
            if let (Asked::Login { subject, window }, Answer::Issued(issued)) =
                (call.asked, &call.answer)
            {
                let page = Page {
                    subject,
                    window,
                    login: number,
                    refreshes: Vec::new(),
                    kills: Vec::new(),
                    token_kills: Vec::new(),
                    generations: HashMap::from([(issued.refresh, 0)]),
                    successors: HashMap::new(),
                    access: HashMap::from([(issued.access, issued.ends)]),
                };
                if books.pages.insert(issued.session, page).is_some() {
                    let text = format!("two logins opened one session: {call:?}");
                    findings.add(Promise::OneLine, text);
                }
            }
        }
        let mut subjects: HashMap<Subject, Vec<usize>> = HashMap::new();
        let mut everything = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            match call.asked {
                Asked::Refresh { session, token } => {
                    books.refresh(number, call, session, token, findings);
                }
                Asked::RevokeSession(session) => {
                    if let Some(page) = books.pages.get_mut(&session) {
                        page.kills.push(number);
                    }
                }
                Asked::RevokeToken { session, .. } => {
                    if let Some(page) = books.pages.get_mut(&session) {
                        page.token_kills.push(number);
                    }
                }
                Asked::RevokeSubject(subject) => subjects.entry(subject).or_default().push(number),
                Asked::RevokeEverything => everything.push(number),
                Asked::Login { .. } | Asked::Introspect { .. } => {}
            }
        }
        for page in books.pages.values_mut() {
            let born = calls[page.login].invoked;
            let of_subject = subjects.get(&page.subject).into_iter().flatten();
            let over = of_subject.chain(&everything).copied();
            page.kills.extend(over.filter(|number| lasts_until(&calls[*number], born)));
            page.count_generations(findings);
        }
        books
    }

    fn refresh(
        &mut self,
        number: usize,
        call: &Call,
        session: Session,
        token: Token,
        findings: &mut Findings,
    ) {
        let Some(page) = self.pages.get_mut(&session) else {
            let text = format!("a session that nobody opened: {call:?}");
            return findings.add(Promise::OneLine, text);
        };
        page.refreshes.push(number);
        let Answer::Issued(Issued { session: of, refresh, access, ends }) = call.answer else {
            return;
        };
        page.access.insert(access, ends);
        if of != session {
            findings.add(Promise::OneLine, format!("tokens of another session: {call:?}"));
        }
        if let Some(other) = page.successors.insert(token, refresh).filter(|it| *it != refresh) {
            let text = format!("{token:?} of {session:?} got {other:?} and {refresh:?}: {call:?}");
            findings.add(Promise::OneLine, text);
        }
    }
}

impl Page {
    fn count_generations(&mut self, findings: &mut Findings) {
        let mut waiting: Vec<Token> = self.generations.keys().copied().collect();
        while let Some(token) = waiting.pop() {
            let next = self.generations[&token] + 1;
            let Some(successor) = self.successors.get(&token) else { continue };
            if let Some(other) = self.generations.insert(*successor, next) {
                let text = format!("{successor:?} is generation {other} and {next}");
                findings.add(Promise::OneLine, text);
                return;
            }
            waiting.push(*successor);
        }
        for (token, successor) in &self.successors {
            if !self.generations.contains_key(token) {
                let text = format!("{token:?}, which nobody was given, got {successor:?}");
                findings.add(Promise::OneLine, text);
            }
        }
    }
}
