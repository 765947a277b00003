//! Those who call while things fail: honest clients, clients that refresh twice at once, thieves,
//! clients that come back too late, and those who take things back and ask about them.

use std::sync::Arc;
use std::time::Duration;

use avouch::pb::v1::revoke_request::Target;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::calls::{Caller, Shared, Tokens};
use crate::cast::{App, USERS};
use crate::dice::Dice;
use crate::history::{Answer, Asked, Subject, Token};

/// How many of each there are, and how quick they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) honest: usize,
    pub(crate) racers: usize,
    pub(crate) thieves: usize,
    pub(crate) late: usize,
    pub(crate) revokers: usize,
    pub(crate) askers: usize,
    /// The longest pause between two calls of one caller.
    pub(crate) pause: Duration,
    /// Between two revocations of a subject.
    pub(crate) subject_every: Duration,
    /// Between two revocations of everything.
    pub(crate) everything_every: Duration,
}

/// One who calls until it is told to stop.
struct Worker {
    caller: Caller,
    dice: Dice,
    load: Load,
    /// The users that it logs in.
    users: std::ops::Range<usize>,
}

/// Lets them all begin. They are done when `stop` of `shared` is cancelled and their calls have
/// returned.
pub(crate) fn begin(shared: &Arc<Shared>, load: Load, seed: u64) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let worker = |name: &'static str, number: usize| Worker {
        caller: Caller::new(name, shared),
        dice: Dice::new(seed, &format!("{name} {number}")),
        load,
        users: 0..USERS,
    };
    for number in 0..load.honest {
        tasks.spawn(worker("honest", number).honest(1));
    }
    for number in 0..load.racers {
        tasks.spawn(worker("racer", number).honest(3));
    }
    for number in 0..load.thieves {
        tasks.spawn(worker("thief", number).thief());
    }
    for number in 0..load.late {
        tasks.spawn(worker("late", number).late());
    }
    for number in 0..load.revokers {
        tasks.spawn(worker("revoker", number).revoker());
    }
    for number in 0..load.askers {
        tasks.spawn(worker("asker", number).asker());
    }
    tasks.spawn(worker("operator", 0).operator());
    tasks
}

/// How a client came out of presenting a token until there was an answer.
enum Presented {
    Next(Tokens),
    Refused,
    /// There was no answer inside the window, or the run is over.
    GaveUp,
}

impl Worker {
    fn stopped(&self) -> bool {
        self.caller.shared.stop.is_cancelled()
    }

    async fn pause(&self) {
        sleep(self.dice.between(Duration::from_millis(1), self.load.pause)).await;
    }

    /// Logs somebody in, however long it takes.
    async fn login(&self, app: &App) -> Option<Tokens> {
        while !self.stopped() {
            let user = self.users.start + self.dice.below(self.users.len());
            let tokens = self.caller.login(self.caller.any(&self.dice), user, app).await;
            if tokens.is_some() {
                return tokens;
            }
            self.pause().await;
        }
        None
    }

    /// Presents the current token, with so many calls at once, and again as long as none is answered:
    /// as the documentation tells clients to.
    async fn present(&self, tokens: &Tokens, app: &App, at_once: usize) -> Presented {
        let began = Instant::now();
        // A good part of the window is left for the last call to arrive in.
        while began.elapsed() < app.window / 2 && !self.stopped() {
            let calls = (0..at_once).map(|_| {
                let replica = self.caller.any(&self.dice);
                self.caller.refresh(replica, tokens.session, &tokens.refresh, app)
            });
            let mut refused = false;
            let mut next = None;
            for (answer, tokens) in futures_util::future::join_all(calls).await {
                refused |= answer == Answer::Refused;
                next = next.or(tokens);
            }
            match next {
                Some(next) => return Presented::Next(next),
                None if refused => return Presented::Refused,
                None => self.pause().await,
            }
        }
        Presented::GaveUp
    }

    /// Refreshes until it logs out, or its session is taken back.
    async fn honest(self, at_once: usize) {
        let app = self.caller.shared.cast.patient.clone();
        while !self.stopped() {
            let Some(mut tokens) = self.login(&app).await else { return };
            for _ in 0..10 + self.dice.below(40) {
                self.pause().await;
                let at_once = 1 + self.dice.below(at_once);
                match self.present(&tokens, &app, at_once).await {
                    Presented::Next(next) => tokens = next,
                    Presented::Refused => {
                        self.caller.shared.pool.taken(tokens.session, &tokens.access, None);
                        break;
                    }
                    Presented::GaveUp => break,
                }
            }
            if self.dice.chance(70) {
                self.log_out(&tokens).await;
            }
        }
    }

    /// Takes back its own session, and reads that where it was done and elsewhere.
    async fn log_out(&self, tokens: &Tokens) {
        let replica = self.caller.any(&self.dice);
        let Answer::Revoked { cursor, .. } = self.caller.revoke_session(replica, tokens).await
        else {
            return;
        };
        let (session, access) = (tokens.session, tokens.access.as_str());
        self.caller.introspect(replica, session, access, None).await;
        for replica in 0..self.caller.shared.replicas {
            self.caller.introspect(replica, session, access, Some(cursor)).await;
        }
    }

    /// Keeps old tokens of its own sessions and replays one; then the one who was robbed comes back.
    async fn thief(self) {
        let app = self.caller.shared.cast.patient.clone();
        while !self.stopped() {
            let Some(first) = self.login(&app).await else { return };
            let mut spent = Vec::new();
            let mut current = first;
            for _ in 0..2 + self.dice.below(4) {
                self.pause().await;
                match self.present(&current, &app, 1).await {
                    Presented::Next(next) => spent.push(std::mem::replace(&mut current, next)),
                    Presented::Refused | Presented::GaveUp => break,
                }
            }
            // The parent would be a retry.
            spent.pop();
            let Some(stolen) = spent.get(self.dice.below(spent.len())) else { continue };
            for _ in 0..1 + self.dice.below(2) {
                let replica = self.caller.any(&self.dice);
                let (answer, _) =
                    self.caller.refresh(replica, stolen.session, &stolen.refresh, &app).await;
                if answer == Answer::Refused {
                    self.caller.shared.pool.taken(current.session, &current.access, None);
                    self.caller.introspect(replica, current.session, &current.access, None).await;
                }
            }
            self.present(&current, &app, 1).await;
        }
    }

    /// Comes back with a spent token, inside its short window or after it.
    async fn late(self) {
        let app = self.caller.shared.cast.hasty.clone();
        while !self.stopped() {
            let Some(first) = self.login(&app).await else { return };
            let replica = self.caller.any(&self.dice);
            let (_, Some(next)) =
                self.caller.refresh(replica, first.session, &first.refresh, &app).await
            else {
                continue;
            };
            let long = self.dice.chance(60);
            sleep(if long { app.window + Duration::from_millis(1500) } else { app.window / 8 })
                .await;
            let replica = self.caller.any(&self.dice);
            self.caller.refresh(replica, first.session, &first.refresh, &app).await;
            self.pause().await;
            let replica = self.caller.any(&self.dice);
            self.caller.refresh(replica, next.session, &next.refresh, &app).await;
        }
    }

    /// Opens sessions and takes them or their tokens back, whoever uses them meanwhile.
    async fn revoker(self) {
        let app = self.caller.shared.cast.patient.clone();
        while !self.stopped() {
            let Some(tokens) = self.login(&app).await else { return };
            let current = match self.dice.chance(50) {
                true => match self.present(&tokens, &app, 1).await {
                    Presented::Next(next) => next,
                    Presented::Refused | Presented::GaveUp => continue,
                },
                false => tokens,
            };
            let replica = self.caller.any(&self.dice);
            let (session, access) = (current.session, current.access.as_str());
            let other = self.caller.any(&self.dice);
            if self.dice.chance(20) {
                let target = Target::SessionId(current.session_id.clone());
                let asked = Asked::RevokeSession(session);
                let wait = Some(Duration::from_secs(1));
                let answer = self.caller.revoke_and_wait(replica, asked, target, wait).await;
                if let Answer::Revoked { cursor, .. } = answer {
                    self.caller.shared.pool.taken(session, access, Some(cursor));
                    self.caller.introspect(replica, session, access, None).await;
                }
            } else if self.dice.chance(40) {
                let asked = Asked::RevokeToken { session, token: Token::of(access) };
                let target = Target::Token(access.to_owned());
                let answer = self.caller.revoke(replica, asked, target).await;
                if let Answer::Revoked { cursor, .. } = answer {
                    self.caller.shared.pool.taken(session, access, Some(cursor));
                    self.caller.introspect(replica, session, access, None).await;
                    self.caller.introspect(other, session, access, Some(cursor)).await;
                }
            } else {
                // Somebody uses it at the same time.
                let refresh = self.caller.refresh(other, session, &current.refresh, &app);
                let revoke = self.caller.revoke_session(replica, &current);
                let ((_, next), answer) = tokio::join!(refresh, revoke);
                if matches!(answer, Answer::Revoked { .. }) {
                    self.caller.introspect(replica, session, access, None).await;
                    let after = next.as_ref().unwrap_or(&current);
                    self.caller.introspect(replica, session, &after.access, None).await;
                    self.caller.refresh(other, session, &after.refresh, &app).await;
                }
            }
            self.pause().await;
        }
    }

    /// Asks about any token.
    async fn asker(self) {
        while !self.stopped() {
            if let Some(known) = self.caller.shared.pool.any(&self.dice) {
                let replica = self.caller.any(&self.dice);
                let at_least = known.cursor.filter(|_| self.dice.chance(50));
                self.caller.introspect(replica, known.session, &known.access, at_least).await;
            }
            self.pause().await;
        }
    }

    /// Takes back subjects, and now and then everything.
    async fn operator(self) {
        let mut next_everything = Instant::now() + self.load.everything_every;
        while !self.stopped() {
            let pause = self.dice.between(self.load.subject_every / 2, self.load.subject_every);
            if self.caller.shared.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            let replica = self.caller.any(&self.dice);
            if Instant::now() >= next_everything {
                next_everything = Instant::now() + self.load.everything_every;
                self.caller
                    .revoke(replica, Asked::RevokeEverything, Target::Everything(true))
                    .await;
                continue;
            }
            let user = self.dice.below(USERS);
            let subject = self.caller.shared.cast.users[user].1.clone();
            let asked = Asked::RevokeSubject(Subject(u32::try_from(user).expect("few users")));
            self.caller.revoke(replica, asked, Target::Subject(subject)).await;
        }
    }
}
