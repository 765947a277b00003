//! One hash at a time, in memory that is kept between hashes. The only user of `argon2`.

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use crate::domain::secret::{SecretBytes, SecretText};
use crate::password::params::HashParams;
use crate::password::pepper::Pepper;
use crate::password::phc::{OUTPUT_BYTES, PasswordHash, SALT_BYTES};

/// A hash could not be computed: there is no memory for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct EngineError;

/// Runs Argon2id for one thread.
pub(crate) struct Engine {
    current: HashParams,
    pepper: Arc<Pepper>,
    memory: Vec<Block>,
    work: u64,
}

impl Engine {
    /// An engine whose new hashes use the `current` settings and the current key of the pepper. It
    /// takes its memory when it first runs.
    pub(crate) const fn new(current: HashParams, pepper: Arc<Pepper>) -> Self {
        Self { current, pepper, memory: Vec::new(), work: 0 }
    }

    /// Hashes a password that has its canonical spelling.
    pub(crate) fn hash(
        &mut self,
        password: &SecretText,
        salt: [u8; SALT_BYTES],
    ) -> Result<PasswordHash, EngineError> {
        let pepper = Arc::clone(&self.pepper);
        let key = pepper.current();
        let secret = key.and_then(|key| pepper.key(key));
        let output = self.derive(self.current, secret, password, &salt, OUTPUT_BYTES)?;
        Ok(PasswordHash { params: self.current, key, salt: salt.into(), output })
    }

    /// Whether `hash` is of this password. It runs with the settings of `hash`; when those are less
    /// work than the current ones it makes up for the rest, so that the time does not say whose
    /// hash is old. A hash under a key that is not at hand matches nothing, in the same time.
    pub(crate) fn verify(
        &mut self,
        password: &SecretText,
        hash: &PasswordHash,
    ) -> Result<bool, EngineError> {
        let pepper = Arc::clone(&self.pepper);
        let secret = hash.key.and_then(|key| pepper.key(key));
        let output = self.derive(hash.params, secret, password, &hash.salt, hash.output.len())?;
        let matches: bool = output.ct_eq(&hash.output).into();
        if let Some(filler) = hash.params.shortfall(&self.current) {
            self.derive(filler, secret, password, &hash.salt, OUTPUT_BYTES)?;
        }
        if let (Some(version), None) = (hash.key, secret) {
            tracing::error!(version, "a password was hashed under a key that the pepper lacks");
            return Ok(false);
        }
        Ok(matches)
    }

    /// The work since this was last asked, in KiB written.
    pub(crate) const fn take_work(&mut self) -> u64 {
        std::mem::replace(&mut self.work, 0)
    }

    /// Overwrites what the last hash left in memory. From the first blocks of a single pass a guess can
    /// be checked without the cost of a hash, so they should not outlive it. The next hash would
    /// overwrite them too: this is for when none follows.
    pub(crate) fn wipe(&mut self) {
        for block in &mut self.memory {
            block.zeroize();
        }
    }

    fn derive(
        &mut self,
        params: HashParams,
        secret: Option<&SecretBytes<32>>,
        password: &SecretText,
        salt: &[u8],
        length: usize,
    ) -> Result<Zeroizing<Vec<u8>>, EngineError> {
        self.work += params.cost();
        let params = Params::new(
            params.memory_kib(),
            params.iterations(),
            params.parallelism(),
            Some(length),
        )
        .map_err(|_| EngineError)?;
        self.reserve(params.block_count())?;
        let mut output = Zeroizing::new(vec![0; length]);
        let argon2 = match secret {
            None => Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            Some(secret) => {
                let secret = secret.expose();
                Argon2::new_with_secret(secret, Algorithm::Argon2id, Version::V0x13, params)
                    .map_err(|_| EngineError)?
            }
        };
        argon2
            .hash_password_into_with_memory(
                password.expose().as_bytes(),
                salt,
                &mut output,
                &mut self.memory,
            )
            .map_err(|_| EngineError)?;
        Ok(output)
    }

    /// Room for so many blocks and for a current hash, and for no more: one costly row must not leave
    /// the process large.
    fn reserve(&mut self, blocks: usize) -> Result<(), EngineError> {
        let usual = usize::try_from(self.current.memory_kib()).unwrap_or(usize::MAX);
        let wanted = blocks.max(usual);
        if wanted < self.memory.len() {
            self.wipe();
            self.memory.truncate(wanted);
            self.memory.shrink_to_fit();
        }
        if wanted > self.memory.len() {
            // Growing in place could copy the old blocks and leave them behind.
            self.wipe();
            self.memory = Vec::new();
            self.memory.try_reserve_exact(wanted).map_err(|_| EngineError)?;
            self.memory.resize(wanted, Block::new());
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> SecretText {
        SecretText::new(text.into())
    }

    fn weak() -> Engine {
        Engine::new(HashParams::weak_for_tests(), Arc::default())
    }

    #[test]
    fn a_hash_is_of_its_password_only() {
        let mut engine = weak();
        let hash = engine.hash(&text("correct horse"), [7; 16]).unwrap();
        let stored = PasswordHash::from_phc(hash.to_phc().expose()).unwrap();
        assert_eq!(engine.verify(&text("correct horse"), &stored), Ok(true));
        for wrong in ["correct horse ", " correct horse", "Correct horse", "correct hors", "c"] {
            assert_eq!(engine.verify(&text(wrong), &stored), Ok(false), "{wrong:?}");
        }
    }

    #[test]
    fn each_byte_of_a_hash_counts() {
        let mut engine = weak();
        let hash = engine.hash(&text("correct horse"), [7; 16]).unwrap();
        for i in 0..OUTPUT_BYTES {
            let mut tampered = hash.clone();
            tampered.output[i] ^= 1;
            assert_eq!(engine.verify(&text("correct horse"), &tampered), Ok(false));
        }
        for i in 0..SALT_BYTES {
            let mut tampered = hash.clone();
            tampered.salt[i] ^= 1;
            assert_eq!(engine.verify(&text("correct horse"), &tampered), Ok(false));
        }
        let mut tampered = hash;
        tampered.params = HashParams::stored(64, 2, 1).unwrap();
        assert_eq!(engine.verify(&text("correct horse"), &tampered), Ok(false));
    }

    /// From the test suite of the reference implementation (phc-winner-argon2, `src/test.c`).
    #[test]
    fn agrees_with_the_reference_implementation() {
        let mut engine = weak();
        for (password, phc) in [
            (
                "password",
                "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ\
                 $nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            ),
            (
                "password",
                "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ\
                 $bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
            ),
            (
                "password",
                "$argon2id$v=19$m=65536,t=1,p=1$c29tZXNhbHQ\
                 $9qWtwbpyPd3vm1rB1GThgPzZ3/ydHL92zKL+15XZypg",
            ),
        ] {
            let hash = PasswordHash::from_phc(phc).unwrap();
            assert_eq!(engine.verify(&text(password), &hash), Ok(true), "{phc}");
            assert_eq!(engine.verify(&text("differentpassword"), &hash), Ok(false));
        }
    }

    fn peppered(keys: &[(u16, u8)]) -> Engine {
        let key = |&(version, byte)| {
            (std::num::NonZeroU16::new(version).unwrap(), SecretBytes::new([byte; 32]))
        };
        let pepper = Pepper::new(keys.iter().map(key).collect()).unwrap();
        Engine::new(HashParams::weak_for_tests(), Arc::new(pepper))
    }

    #[test]
    fn a_hash_with_a_key_is_of_no_use_without_it() {
        let password = text("correct horse");
        let plain = weak().hash(&password, [7; 16]).unwrap();
        let hash = peppered(&[(1, 1)]).hash(&password, [7; 16]).unwrap();
        assert_ne!(*plain.output, *hash.output);
        let stored = PasswordHash::from_phc(hash.to_phc().expose()).unwrap();
        // What is stored, without the key that it names, and without its name.
        let mut stripped = stored.clone();
        stripped.key = None;
        let mut named = plain.clone();
        named.key = std::num::NonZeroU16::new(9);
        for (name, keys, hash, matches) in [
            ("the key", &[(1, 1)][..], &stored, true),
            ("the key and a newer one", &[(1, 1), (2, 2)], &stored, true),
            ("another key of its version", &[(1, 2)], &stored, false),
            ("a newer key alone", &[(2, 1)], &stored, false),
            ("the key, but its name removed", &[(1, 1)], &stripped, false),
            ("a hash without a key", &[(1, 1)], &plain, true),
            ("a hash without a key that names one", &[(1, 1)], &named, false),
        ] {
            assert_eq!(peppered(keys).verify(&password, hash), Ok(matches), "{name}");
            assert_eq!(peppered(keys).verify(&text("wrong"), hash), Ok(false), "{name}");
        }
        for hash in [&stored, &stripped] {
            assert_eq!(weak().verify(&password, hash), Ok(false), "no key at all");
        }
        let newer = peppered(&[(1, 1), (2, 2)]).hash(&password, [7; 16]).unwrap();
        assert_ne!(newer.to_phc().expose(), hash.to_phc().expose(), "the newest key makes it");
    }

    #[test]
    fn kept_memory_changes_no_result() {
        let mut engine = weak();
        let costly = HashParams::stored(512, 3, 4).unwrap();
        for round in 0_u8..8 {
            let password = text(&format!("password {round}"));
            let kept = engine.hash(&password, [round; 16]).unwrap();
            let fresh = weak().hash(&password, [round; 16]).unwrap();
            assert_eq!(kept.to_phc().expose(), fresh.to_phc().expose());
            let costly = Engine::new(costly, Arc::default()).hash(&password, [round; 16]).unwrap();
            assert_eq!(engine.verify(&password, &costly), Ok(true));
        }
    }

    #[test]
    fn a_costly_row_does_not_leave_the_engine_large() {
        let mut engine = weak();
        let costly = HashParams::stored(4096, 1, 1).unwrap();
        let costly = Engine::new(costly, Arc::default()).hash(&text("a"), [1; 16]).unwrap();
        assert_eq!(engine.verify(&text("a"), &costly), Ok(true));
        assert_eq!(engine.memory.len(), 4096);
        engine.hash(&text("a"), [1; 16]).unwrap();
        assert_eq!((engine.memory.len(), engine.memory.capacity()), (64, 64));
    }

    #[test]
    fn leaves_nothing_behind_when_wiped() {
        let mut engine = weak();
        engine.hash(&text("a"), [1; 16]).unwrap();
        let clean =
            |engine: &Engine| engine.memory.iter().all(|b| b.as_ref().iter().all(|&w| w == 0));
        assert!(!clean(&engine));
        engine.wipe();
        assert!(clean(&engine));
    }
}
