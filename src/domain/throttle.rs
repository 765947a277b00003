//! Throttling of logins by account and source: a pure function of how often they failed.
//!
//! The key is (account, source), so a stranger who guesses locks out themselves and nobody else.
//! Names that do not exist are counted like those that do.

use std::time::Duration;

use crate::domain::clock::Timestamp;

/// How failed attempts are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ThrottlePolicy {
    /// This many failures in a row cost nothing.
    pub free_failures: u32,
    /// The wait after the next one; it doubles with each further failure.
    pub first_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
    /// After this many failures in a row the source is locked out of the account (NIST 800-63B-4
    /// section 3.2.2 allows at most 100).
    pub max_failures: u32,
    /// For how long. Also how long failures are remembered.
    pub lockout: Duration,
}

impl Default for ThrottlePolicy {
    fn default() -> Self {
        Self {
            free_failures: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(300),
            max_failures: 100,
            lockout: Duration::from_secs(24 * 3600),
        }
    }
}

/// What is remembered of one account and one source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attempts {
    /// Attempts since the last success, the one under way included.
    pub count: u32,
    /// No attempt is made before this.
    pub blocked_until: Timestamp,
    /// When it may be forgotten.
    pub expires_at: Timestamp,
}

/// Whether an attempt may be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThrottleDecision {
    /// Yes; and this is what to remember, before the password is looked at, so that parallel
    /// guesses count too.
    Allow(Attempts),
    /// Not before this time. Nothing changes: trying while blocked never makes it longer.
    Wait(Duration),
}

/// Decides whether an attempt may be made at `now`.
pub fn decide_attempt(
    known: Option<Attempts>,
    policy: &ThrottlePolicy,
    now: Timestamp,
) -> ThrottleDecision {
    let known = known.filter(|attempts| now < attempts.expires_at).unwrap_or_default();
    if now < known.blocked_until {
        return ThrottleDecision::Wait(known.blocked_until.since(now));
    }
    let count = known.count.saturating_add(1);
    let delay = if count >= policy.max_failures {
        policy.lockout
    } else if count > policy.free_failures {
        let doublings = (count - policy.free_failures - 1).min(31);
        policy.first_delay.saturating_mul(1 << doublings).min(policy.max_delay)
    } else {
        Duration::ZERO
    };
    ThrottleDecision::Allow(Attempts {
        count,
        blocked_until: now.after(delay),
        expires_at: now.after(policy.lockout),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(known: Option<Attempts>, at: u64) -> Result<Attempts, Duration> {
        match decide_attempt(known, &ThrottlePolicy::default(), Timestamp::from_secs(at)) {
            ThrottleDecision::Allow(attempts) => Ok(attempts),
            ThrottleDecision::Wait(delay) => Err(delay),
        }
    }

    #[test]
    fn waits_double_and_trying_while_blocked_changes_nothing() {
        let mut known = None;
        for _ in 0..5 {
            known = Some(fail(known, 1000).unwrap());
        }
        known = Some(fail(known, 1000).unwrap());
        assert_eq!(fail(known, 1000), Err(Duration::from_secs(1)));
        known = Some(fail(known, 1001).unwrap());
        assert_eq!(fail(known, 1001), Err(Duration::from_secs(2)));
    }

    #[test]
    fn a_hundred_failures_lock_the_source_out_until_the_lockout_has_passed() {
        let mut known = None;
        let mut now = 1000;
        for _ in 0..100 {
            known = Some(fail(known, now).unwrap());
            now += 300;
        }
        let left = fail(known, now).unwrap_err();
        assert_eq!(left, Duration::from_secs(24 * 3600 - 300));
        assert_eq!(fail(known, now + left.as_secs()).unwrap().count, 1);
    }
}
