//! Time as a value. `Clock` is the only source of it; nothing else may ask the system.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last moment there is; used where something never expires.
    pub const MAX: Self = Self(u64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// From seconds since the Unix epoch; saturates.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down (the NumericDate of RFC 7519).
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// This moment plus a duration; saturates at [`Timestamp::MAX`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This moment minus a duration; saturates at the Unix epoch.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, `2026-11-21T05:48:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Days to civil date after Howard Hinnant's algorithm, shifted to start on 1 March of year 0.
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            rest / 3_600_000,
            rest / 60_000 % 60,
            rest / 1_000 % 60,
            rest % 1_000
        )
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The present moment. It never runs backwards within one clock.
    fn now(&self) -> Timestamp;

    /// What this clock would show if it knew of nothing but itself: for comparing it with others.
    fn wall(&self) -> Timestamp {
        self.now()
    }

    /// Something was committed at `mark`, by whomever. A clock that is one of several keeps up.
    fn heed(&self, mark: Timestamp) {
        _ = mark;
    }
}

/// The system's clock, held at the latest moment it ever showed: a step back makes time stand
/// still, never return.
#[derive(Debug, Default)]
pub struct SystemClock {
    latest: AtomicU64,
}

impl SystemClock {
    /// A clock that starts no earlier than `floor`, the high-water mark a store has kept.
    pub fn starting_at(floor: Timestamp) -> Self {
        Self { latest: AtomicU64::new(floor.0) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let wall = self.wall().0;
        Timestamp(self.latest.fetch_max(wall, Ordering::Relaxed).max(wall))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// How far ahead of itself the clock of a replica follows the others.
pub const LEAD: Duration = Duration::from_secs(10);

/// The clock of one of several replicas of a store: it keeps up with the one that is ahead, so that what
/// one of them decides by the time the others decide alike. Never further than [`LEAD`] beyond itself:
/// one clock that is far ahead does not take all others with it.
pub struct SharedClock {
    own: Arc<dyn Clock>,
    /// The latest moment that anybody committed, as far as is known here.
    mark: AtomicU64,
    latest: AtomicU64,
}

impl SharedClock {
    /// Keeps up, from now on, with those who committed at `mark`.
    pub fn following(own: Arc<dyn Clock>, mark: Timestamp) -> Self {
        Self { own, mark: AtomicU64::new(mark.0), latest: AtomicU64::new(0) }
    }

    /// Starts at `floor`, however far ahead that is: nobody is there to say that it is wrong.
    pub fn starting_at(own: Arc<dyn Clock>, floor: Timestamp) -> Self {
        Self { own, mark: AtomicU64::new(floor.0), latest: AtomicU64::new(floor.0) }
    }
}

impl Clock for SharedClock {
    fn now(&self) -> Timestamp {
        let own = self.own.now();
        let mark = Timestamp(self.mark.load(Ordering::Relaxed));
        let now = own.max(mark.min(own.after(LEAD))).0;
        Timestamp(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }

    fn wall(&self) -> Timestamp {
        self.own.wall()
    }

    fn heed(&self, mark: Timestamp) {
        self.mark.fetch_max(mark.0, Ordering::Relaxed);
    }
}

/// A clock that tests move by hand.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(AtomicU64::new(start.0))
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Puts the clock anywhere, backwards too.
    pub fn set(&self, to: Timestamp) {
        self.0.store(to.0, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_rfc3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_240_080_123, "2026-11-21T05:48:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn a_shared_clock_keeps_up_with_others_and_is_not_dragged_away() {
        let at = Timestamp::from_secs;
        let own = Arc::new(ManualClock::new(at(1000)));
        let clock = SharedClock::following(Arc::clone(&own) as Arc<dyn Clock>, at(990));
        assert_eq!(clock.now(), at(1000));
        clock.heed(at(1004));
        assert_eq!((clock.now(), clock.wall()), (at(1004), at(1000)));
        own.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), at(1004), "it waits for itself");
        clock.heed(at(1001));
        assert_eq!(clock.now(), at(1004), "never back");
        // Somebody is far ahead: it goes as far as it may, and then at its own pace.
        clock.heed(at(5000));
        assert_eq!(clock.now(), at(1012));
        own.advance(Duration::from_secs(3));
        assert_eq!(clock.now(), at(1015));
        own.set(at(900));
        assert_eq!(clock.now(), at(1015), "never back");
        let alone = SharedClock::starting_at(own, at(9000));
        assert_eq!(alone.now(), at(9000), "nobody says that it is wrong");
    }

    #[test]
    fn system_clock_never_starts_before_its_floor() {
        let floor = Timestamp::from_secs(40_000_000_000);
        assert_eq!(SystemClock::starting_at(floor).now(), floor);
    }
}
