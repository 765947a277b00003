//! When a call is tried again, after how long, and when no more. It knows what a failed call said,
//! and nothing of the operations.

use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::domain::entropy::Entropy;

/// Where a server, or a balancer before it, says when to try again (gRFC A6).
pub(super) const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";
/// How much a success gives back to the budget, and a failure takes from it: tenths of a retry.
const GIVEN_BACK: u32 = 1;
const TAKEN: u32 = 10;

/// How often, and how fast, a call is tried again that a retry may help.
#[derive(Clone, Copy, Debug)]
pub struct RetrySettings {
    /// The most tries of one call, the first among them.
    pub attempts: u32,
    /// The first wait; each further one is twice as long. Each is up to a fifth longer or shorter.
    pub first: Duration,
    /// The longest wait, unless the server asks for a longer one.
    pub longest: Duration,
    /// How many failures in a row use up the budget that all calls share. While less than half is
    /// left, nothing is tried again; ten successes give one back (the retry throttling of gRPC).
    pub budget: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 4,
            first: Duration::from_millis(100),
            longest: Duration::from_secs(1),
            budget: 10,
        }
    }
}

/// What a server, or the connection to it, said instead of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The code. UNAVAILABLE for a connection that failed.
    pub code: Code,
    /// The `reason` of the ErrorInfo; empty when avouch sent none, as for a lost connection.
    pub reason: String,
    /// The text, for people.
    pub message: String,
    /// The fields that are wrong, and what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// How long to wait before asking again, if the server said so.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.reason.is_empty() {
            write!(f, " [{}]", self.reason)?;
        }
        for (field, problem) in &self.fields {
            write!(f, "; {field}: {problem}")?;
        }
        Ok(())
    }
}

/// How a call failed for good.
#[derive(Debug)]
pub(super) enum Failed {
    /// There was no answer in time.
    Deadline,
    /// This is what was said.
    Said(Failure),
}

/// What `grpc-retry-pushback-ms` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pushback {
    Never,
    After(Duration),
}

/// Which failures a retry of an operation may help.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Retriable {
    /// UNAVAILABLE.
    Unavailable,
    /// That, and RESOURCE_EXHAUSTED when the server says after how long.
    ExhaustedToo,
}

/// Tries calls again, within a budget that they share.
pub(super) struct Retries {
    settings: RetrySettings,
    entropy: Arc<dyn Entropy>,
    /// What is left, in tenths of a retry.
    budget: Mutex<u32>,
}

impl Retries {
    pub(super) fn new(settings: RetrySettings, entropy: Arc<dyn Entropy>) -> Self {
        Self { settings, entropy, budget: Mutex::new(settings.budget.saturating_mul(TAKEN)) }
    }

    /// Calls, with the time that is left, until there is an answer, no retry helps, or `within` is
    /// over. `within` covers all tries and the waits between them.
    pub(super) async fn run<T, C>(
        &self,
        within: Duration,
        retriable: Retriable,
        mut call: impl FnMut(Duration) -> C,
    ) -> Result<T, Failed>
    where
        C: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + within;
        let mut tries = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let status = match timeout_at(deadline, call(left)).await {
                Err(_) => return Err(Failed::Deadline),
                Ok(Err(status)) => status,
                Ok(Ok(answer)) => {
                    self.succeeded();
                    return Ok(answer);
                }
            };
            tries += 1;
            let Some(failure) = read(&status) else { return Err(Failed::Deadline) };
            let pushback = pushback(&status);
            let Some(wait) = self.wait(tries, retriable, &failure, pushback) else {
                return Err(Failed::Said(failure));
            };
            let next = Instant::now() + wait;
            // Nobody would hear the answer.
            if next >= deadline {
                return Err(Failed::Said(failure));
            }
            sleep_until(next).await;
        }
    }

    /// How long to wait before the next try, if there is to be one.
    fn wait(
        &self,
        tries: u32,
        retriable: Retriable,
        failure: &Failure,
        pushback: Option<Pushback>,
    ) -> Option<Duration> {
        let told = failure.retry_after.is_some() || pushback.is_some();
        let helps = match failure.code {
            Code::Unavailable => true,
            Code::ResourceExhausted => retriable == Retriable::ExhaustedToo && told,
            _ => false,
        };
        if !helps {
            return None;
        }
        let left = self.failed();
        if !left || tries >= self.settings.attempts {
            return None;
        }
        match pushback {
            Some(Pushback::Never) => None,
            Some(Pushback::After(wait)) => Some(wait),
            None => {
                let own = doubled(self.settings.first, self.settings.longest, tries - 1);
                Some(match failure.retry_after {
                    // Never sooner than asked for.
                    Some(asked) if asked >= own => {
                        asked.mul_f64(1.0 + 0.2 * fraction(&*self.entropy))
                    }
                    Some(_) | None => jittered(own, &*self.entropy),
                })
            }
        }
    }

    fn succeeded(&self) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = (*budget + GIVEN_BACK).min(self.settings.budget.saturating_mul(TAKEN));
    }

    /// Takes from the budget; whether enough is left to try again.
    fn failed(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        *budget = budget.saturating_sub(TAKEN);
        *budget > self.settings.budget.saturating_mul(TAKEN) / 2
    }
}

/// `first`, doubled `times` times, at most `longest`.
pub(super) fn doubled(first: Duration, longest: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(longest)
}

/// Up to a fifth longer or shorter, so that those who failed together do not come back together.
pub(super) fn jittered(duration: Duration, entropy: &dyn Entropy) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fraction(entropy))
}

/// A random number from 0 to 1.
pub(super) fn fraction(entropy: &dyn Entropy) -> f64 {
    f64::from(u16::from_be_bytes(entropy.bytes())) / f64::from(u16::MAX)
}

/// What a status says; none if it says that the time is over.
fn read(status: &Status) -> Option<Failure> {
    let mut cause = status.source();
    let mut deepest = None;
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return None;
        }
        deepest = Some(error.to_string());
        cause = error.source();
    }
    if status.code() == Code::DeadlineExceeded {
        return None;
    }
    // An error beneath the status means that it was made on this side: there is no answer because
    // the connection failed. tonic gives some of these other codes.
    if let Some(message) = deepest {
        return Some(Failure {
            code: Code::Unavailable,
            reason: String::new(),
            message: format!("no connection: {message}"),
            fields: Vec::new(),
            retry_after: None,
        });
    }
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.as_slice());
    let fields = violations.unwrap_or_default().iter();
    Some(Failure {
        code: status.code(),
        reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
        message: status.message().to_owned(),
        fields: fields.map(|it| (it.field.clone(), it.description.clone())).collect(),
        retry_after: details.retry_info().and_then(|info| info.retry_delay),
    })
}

fn pushback(status: &Status) -> Option<Pushback> {
    let value = status.metadata().get(RETRY_PUSHBACK)?;
    // What is negative, or no number, means never.
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    Some(millis.map_or(Pushback::Never, |it| Pushback::After(Duration::from_millis(it))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::entropy::SeededEntropy;

    fn failure(code: Code, retry_after: Option<u64>) -> Failure {
        let retry_after = retry_after.map(Duration::from_millis);
        let (reason, message) = (String::new(), String::new());
        Failure { code, reason, message, fields: Vec::new(), retry_after }
    }

    fn retries() -> Retries {
        let settings = RetrySettings { attempts: 100, budget: 1000, ..RetrySettings::default() };
        Retries::new(settings, Arc::new(SeededEntropy::new(1)))
    }

    #[test]
    fn waits_double_from_a_tenth_of_a_second_to_one_second_a_fifth_more_or_less() {
        let retries = retries();
        for (tries, millis) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (40, 1000)] {
            let (mut least, mut most) = (u128::MAX, 0);
            for _ in 0..50 {
                let it = failure(Code::Unavailable, None);
                let wait = retries.wait(tries, Retriable::Unavailable, &it, None).expect("again");
                least = least.min(wait.as_millis());
                most = most.max(wait.as_millis());
                assert!((millis * 8 / 10..=millis * 12 / 10).contains(&wait.as_millis()));
            }
            assert!(most > least, "no jitter");
        }
    }

    #[test]
    fn a_wait_that_the_server_asks_for_is_never_shorter() {
        let retries = retries();
        for _ in 0..50 {
            let it = failure(Code::Unavailable, Some(3000));
            let wait = retries.wait(1, Retriable::Unavailable, &it, None).expect("again");
            assert!((3000..=3600).contains(&wait.as_millis()), "{wait:?}");
        }
        let it = failure(Code::Unavailable, Some(3000));
        let after = Some(Pushback::After(Duration::from_millis(7)));
        let wait = retries.wait(1, Retriable::Unavailable, &it, after);
        assert_eq!(wait, Some(Duration::from_millis(7)), "a pushback is exact");
        assert_eq!(retries.wait(1, Retriable::Unavailable, &it, Some(Pushback::Never)), None);
    }

    #[test]
    fn a_budget_that_all_calls_share_stops_the_retries_of_an_outage() {
        let settings = RetrySettings { budget: 10, ..RetrySettings::default() };
        let retries = Retries::new(settings, Arc::new(SeededEntropy::new(1)));
        let it = failure(Code::Unavailable, None);
        let again = || retries.wait(1, Retriable::Unavailable, &it, None).is_some();
        assert_eq!((0..10).filter(|_| again()).count(), 4, "half the budget");
        (0..60).for_each(|_| retries.succeeded());
        assert!(!again(), "six are given back and one is taken: no more than half");
        (0..20).for_each(|_| retries.succeeded());
        assert!(again());
    }
}
