//! What was called, when, and what came of it. Times are microseconds since the run began, by the one
//! clock of this process.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Microseconds since the run began.
pub(crate) type Micros = u64;

/// A token, by its digest: a history holds a million of them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    pub(crate) fn of(text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A session, by its number in the history.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Session(pub(crate) u32);

/// A subject, by its number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Subject(pub(crate) u32);

/// What Authenticate and Refresh gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Issued {
    pub(crate) session: Session,
    pub(crate) refresh: Token,
    pub(crate) access: Token,
    /// When the access token ends by itself, no earlier.
    pub(crate) ends: Micros,
}

/// What a call asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    /// `window` is the retry window of the client.
    Login {
        subject: Subject,
        window: Micros,
    },
    Refresh {
        session: Session,
        token: Token,
    },
    RevokeSession(Session),
    /// One access token alone.
    RevokeToken {
        session: Session,
        token: Token,
    },
    RevokeSubject(Subject),
    RevokeEverything,
    /// About an access token.
    Introspect {
        session: Session,
        token: Token,
        at_least: Option<u64>,
    },
}

impl Asked {
    /// The name of the kind of call.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Login { .. } => "Authenticate",
            Self::Refresh { .. } => "Refresh",
            Self::RevokeSession(_) | Self::RevokeToken { .. } => "Revoke",
            Self::RevokeSubject(_) => "Revoke (subject)",
            Self::RevokeEverything => "Revoke (everything)",
            Self::Introspect { at_least: None, .. } => "Introspect",
            Self::Introspect { at_least: Some(_), .. } => "Introspect (cursor)",
        }
    }
}

/// What a call answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    Issued(Issued),
    /// UNAUTHENTICATED.
    Refused,
    /// Where the log stands, the event if this call made one, and whether all watchers are said to have
    /// applied it, if the call waited for them.
    Revoked {
        cursor: u64,
        event: Option<Shown>,
        applied: Option<bool>,
    },
    Active(bool),
    /// It may have happened or not, and may yet happen: no answer, or one that says nothing.
    Unknown,
    /// An answer that nothing explains.
    Strange(String),
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) caller: &'static str,
    /// None where the client library has chosen one, or several.
    pub(crate) replica: Option<usize>,
    pub(crate) asked: Asked,
    pub(crate) invoked: Micros,
    pub(crate) returned: Micros,
    pub(crate) answer: Answer,
}

/// What a verifier said of an access token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Judged {
    Good,
    Revoked,
    /// Not now: what is known is too old.
    Unsure,
    /// It is none, which is wrong of every token that has not expired.
    Invalid,
}

/// One verdict.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) verifier: usize,
    pub(crate) session: Session,
    pub(crate) token: Token,
    /// Before it was asked, and after it had answered.
    pub(crate) invoked: Micros,
    pub(crate) returned: Micros,
    pub(crate) judged: Judged,
}

/// A revocation as watchers and lists show it: what it is about, in words, and the epoch if it has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Shown {
    pub(crate) revision: u64,
    pub(crate) about: String,
    pub(crate) epoch: u32,
    /// When it may be forgotten.
    pub(crate) ends: Micros,
}

/// What a watcher saw.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// The stream began, and goes on from its cursor or not.
    Connected {
        resumed: bool,
    },
    /// The set is complete up to here.
    Synced(u64),
    /// These were new; everything up to `through` was shown.
    Batch {
        shown: Vec<Shown>,
        through: u64,
    },
    /// Nothing was new up to here.
    Heartbeat(u64),
    /// The set begins anew.
    Reset,
    Lost(String),
}

/// What there is at the end, with everything healed and nobody calling.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    pub(crate) at: Micros,
    /// Where the log stands.
    pub(crate) head: u64,
    /// The live revocations that each replica lists.
    pub(crate) lists: Vec<Vec<Shown>>,
    /// Of each watcher, whether its set is that of the lists.
    pub(crate) whole: Vec<bool>,
}

/// Between two moments the clocks of replicas were so far apart, or what came of that was not over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubt {
    pub(crate) from: Micros,
    pub(crate) to: Micros,
    pub(crate) apart: Micros,
}

/// All that was written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: Vec<Call>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) doubts: Vec<Doubt>,
    /// By watcher.
    pub(crate) watched: Vec<Vec<(Micros, Seen)>>,
    pub(crate) end: Option<End>,
}

/// Where everybody writes it down.
pub(crate) struct Recorder {
    began: Instant,
    history: Mutex<History>,
    sessions: Mutex<std::collections::HashMap<String, Session>>,
}

impl Recorder {
    pub(crate) fn new(watchers: usize) -> Self {
        let history = History { watched: vec![Vec::new(); watchers], ..History::default() };
        Self { began: Instant::now(), history: Mutex::new(history), sessions: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a session.
    pub(crate) fn session(&self, id: &str) -> Session {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Session(u32::try_from(sessions.len()).expect("few sessions"));
        *sessions.entry(id.to_owned()).or_insert(next)
    }

    pub(crate) fn call(&self, call: Call) {
        self.lock().calls.push(call);
    }

    pub(crate) fn verdict(&self, verdict: Verdict) {
        self.lock().verdicts.push(verdict);
    }

    pub(crate) fn doubt(&self, doubt: Doubt) {
        self.lock().doubts.push(doubt);
    }

    pub(crate) fn seen(&self, watcher: usize, seen: Seen) {
        let now = self.now();
        self.lock().watched[watcher].push((now, seen));
    }

    /// Something of what was written down so far.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.lock())
    }

    /// Everything, which is not here any more then.
    pub(crate) fn take(&self) -> History {
        std::mem::take(&mut *self.lock())
    }
}
