//! How much work a hash is: which settings we use, and which of a stored hash we are ready to run.

use std::fmt;

/// The most memory a hash may take, in KiB.
pub const MAX_MEMORY_KIB: u32 = 256 * 1024;
/// The most passes a hash may make over its memory.
pub const MAX_ITERATIONS: u32 = 64;
/// The most lanes a hash may have. They run one after the other.
pub const MAX_PARALLELISM: u32 = 16;
/// The most work a hash may be: KiB times passes. About a second of one core.
const MAX_COST: u64 = 1024 * 1024;

/// Settings of equal strength by the OWASP password storage cheat sheet: KiB and passes.
const STRONG_ENOUGH: [(u32, u32); 5] =
    [(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)];

/// Why hash settings are not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParamsError {
    /// They are below every set that OWASP recommends.
    #[error(
        "too weak: use at least 19456 KiB with 2 iterations, or 47104/1, 12288/3, 9216/4, 7168/5"
    )]
    TooWeak,
    /// One is zero, or the memory is less than 8 KiB for each lane, so Argon2 does not define them.
    #[error("not possible: each must be at least 1, and the memory at least 8 KiB for each lane")]
    Impossible,
    /// They would take more memory or time than one login may.
    #[error("too much: at most 262144 KiB, 64 iterations, 16 lanes, and 1048576 KiB passes in all")]
    TooMuch,
}

/// The settings of one Argon2id hash. Whatever holds one may run it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HashParams {
    memory_kib: u32,
    iterations: u32,
    parallelism: u32,
}

impl Default for HashParams {
    /// What OWASP names first: 19 MiB, 2 passes, 1 lane.
    fn default() -> Self {
        Self { memory_kib: 19_456, iterations: 2, parallelism: 1 }
    }
}

impl HashParams {
    /// Settings for new hashes.
    ///
    /// # Errors
    /// When they are weaker than each of OWASP's sets, or more than a login may cost.
    pub fn new(memory_kib: u32, iterations: u32, parallelism: u32) -> Result<Self, ParamsError> {
        let params = Self::stored(memory_kib, iterations, parallelism)?;
        if params.is_strong() { Ok(params) } else { Err(ParamsError::TooWeak) }
    }

    /// The settings of a hash that somebody stored, perhaps long ago and weak. Only their cost is
    /// bounded, so that a row cannot make us run it out of memory or time.
    pub(crate) fn stored(
        memory_kib: u32,
        iterations: u32,
        parallelism: u32,
    ) -> Result<Self, ParamsError> {
        let params = Self { memory_kib, iterations, parallelism };
        if memory_kib > MAX_MEMORY_KIB
            || iterations > MAX_ITERATIONS
            || parallelism > MAX_PARALLELISM
            || params.cost() > MAX_COST
        {
            return Err(ParamsError::TooMuch);
        }
        if iterations == 0 || parallelism == 0 || memory_kib < 8 * parallelism {
            return Err(ParamsError::Impossible);
        }
        Ok(params)
    }

    /// Settings that protect nothing and take no time. For tests only.
    pub const fn weak_for_tests() -> Self {
        Self { memory_kib: 64, iterations: 1, parallelism: 1 }
    }

    /// How much memory, in KiB.
    pub const fn memory_kib(&self) -> u32 {
        self.memory_kib
    }

    /// How many passes over it.
    pub const fn iterations(&self) -> u32 {
        self.iterations
    }

    /// How many lanes.
    pub const fn parallelism(&self) -> u32 {
        self.parallelism
    }

    /// The work, in KiB written: what the time of a hash is proportional to.
    pub(crate) fn cost(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.iterations)
    }

    /// Whether a hash with these settings should be replaced by one with the `current` settings: it
    /// is less work, or too weak where the current ones are not.
    pub fn is_below(&self, current: &Self) -> bool {
        self.cost() < current.cost() || (current.is_strong() && !self.is_strong())
    }

    /// The settings whose work brings a hash with these up to one with the `current`; none when it is
    /// as much already.
    pub(crate) fn shortfall(&self, current: &Self) -> Option<Self> {
        let missing = current.cost().saturating_sub(self.cost());
        let iterations = missing.div_ceil(u64::from(current.memory_kib)).max(1);
        let memory_kib = u32::try_from(missing / iterations).ok()?;
        Self::stored(memory_kib, u32::try_from(iterations).ok()?, 1).ok()
    }

    fn is_strong(&self) -> bool {
        STRONG_ENOUGH
            .iter()
            .any(|&(memory, passes)| self.memory_kib >= memory && self.iterations >= passes)
    }
}

impl fmt::Display for HashParams {
    /// As PHC strings have them, `m=19456,t=2,p=1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={},t={},p={}", self.memory_kib, self.iterations, self.parallelism)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_owasp_recommends_and_nothing_weaker() {
        assert_eq!(HashParams::new(19_456, 2, 1), Ok(HashParams::default()));
        for (memory, passes) in STRONG_ENOUGH {
            assert!(HashParams::new(memory, passes, 1).is_ok());
            assert!(HashParams::new(memory, passes, 4).is_ok());
            assert_eq!(HashParams::new(memory - 1, passes, 1), Err(ParamsError::TooWeak));
        }
        assert_eq!(HashParams::new(19_456, 1, 1), Err(ParamsError::TooWeak));
        assert_eq!(HashParams::new(7_167, 60, 1), Err(ParamsError::TooWeak));
    }

    #[test]
    fn refuses_what_argon2_does_not_define_or_a_login_may_not_cost() {
        for (memory, passes, lanes) in [(19_456, 0, 1), (19_456, 2, 0), (0, 2, 1), (127, 1, 16)] {
            assert_eq!(HashParams::stored(memory, passes, lanes), Err(ParamsError::Impossible));
        }
        for (memory, passes, lanes) in [
            (MAX_MEMORY_KIB + 1, 1, 1),
            (u32::MAX, 1, 1),
            (4 << 20, 1, 1),
            (64, MAX_ITERATIONS + 1, 1),
            (64, u32::MAX, 1),
            (19_456, 2, MAX_PARALLELISM + 1),
            (u32::MAX, u32::MAX, u32::MAX),
            (MAX_MEMORY_KIB, 5, 1),
        ] {
            assert_eq!(HashParams::stored(memory, passes, lanes), Err(ParamsError::TooMuch));
        }
        assert!(HashParams::stored(MAX_MEMORY_KIB, 4, 4).is_ok());
        assert!(HashParams::stored(128, 1, 16).is_ok());
    }

    #[test]
    fn knows_what_lies_below() {
        let current = HashParams::default();
        let stored = |m, t| HashParams::stored(m, t, 1).unwrap();
        assert!(!current.is_below(&current));
        assert!(!stored(47_104, 1).is_below(&current), "as strong");
        assert!(!stored(65_536, 3).is_below(&current), "stronger");
        assert!(stored(12_288, 3).is_below(&current));
        assert!(stored(64, 1).is_below(&current));
        assert!(stored(4_096, 64).is_below(&current), "more work, but too little memory");
        assert!(!HashParams::weak_for_tests().is_below(&HashParams::weak_for_tests()));
    }

    #[test]
    fn makes_up_for_what_is_missing() {
        let current = HashParams::default();
        for (memory, passes) in [(64, 1), (4_096, 3), (12_288, 3), (9_216, 4), (19_456, 1)] {
            let stored = HashParams::stored(memory, passes, 1).unwrap();
            let filler = stored.shortfall(&current).unwrap();
            assert!(filler.memory_kib() <= current.memory_kib());
            assert!((stored.cost() + filler.cost()).abs_diff(current.cost()) < 8, "{stored}");
        }
        assert_eq!(current.shortfall(&current), None);
        assert_eq!(HashParams::stored(65_536, 3, 1).unwrap().shortfall(&current), None);
    }
}
