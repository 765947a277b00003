//! What the targets are made of: one signature, one check, and hashes on all cores, with nothing
//! around them.

use std::hint::black_box;
use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use avouch::password::HashParams;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    ParsedPublicKey,
};
use tokio::time::Instant;

use crate::Failure;
use crate::load::count;

/// About what of an access token is signed.
const MESSAGE_BYTES: usize = 480;

/// An ES256 key, parsed once.
pub(crate) struct Signature {
    pair: EcdsaKeyPair,
    public: ParsedPublicKey,
    message: Vec<u8>,
    signature: Vec<u8>,
}

impl Signature {
    /// A new key.
    pub(crate) fn new() -> Result<Self, Failure> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref())?;
        let message = vec![b'm'; MESSAGE_BYTES];
        let signature = pair.sign(&SystemRandom::new(), &message)?.as_ref().to_vec();
        Ok(Self { pair, public, message, signature })
    }

    /// Microseconds of CPU for one check.
    pub(crate) fn check(&self) -> Result<f64, Failure> {
        thread_cpu(400, || Ok(self.public.verify_sig(black_box(&self.message), &self.signature)?))
    }

    /// Microseconds of CPU for one signature.
    pub(crate) fn sign(&self) -> Result<f64, Failure> {
        thread_cpu(400, || {
            black_box(self.pair.sign(&SystemRandom::new(), black_box(&self.message))?);
            Ok(())
        })
    }
}

fn thread_cpu(times: usize, mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let now = || -> Result<f64, Failure> {
        // To be put off the CPU makes the kernel count what was used so far.
        std::thread::yield_now();
        let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse()?)
    };
    let begun = now()?;
    for _ in 0..times {
        work()?;
    }
    Ok((now()? - begun) / 1000.0 / count(times))
}

/// Password hashes a second with so many threads that do nothing else.
pub(crate) fn hashes(threads: usize, time: Duration) -> Result<f64, Failure> {
    let params = HashParams::default();
    let params = Params::new(params.memory_kib(), params.iterations(), params.parallelism(), None)?;
    let hash = move || -> Result<usize, argon2::Error> {
        let blocks = params.block_count();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut memory = vec![Block::new(); blocks];
        let (mut output, mut done) = ([0; 32], 0);
        let begun = Instant::now();
        while begun.elapsed() < time {
            let (password, salt) = (b"correct horse battery staple", b"0123456789abcdef");
            argon2.hash_password_into_with_memory(password, salt, &mut output, &mut memory)?;
            done += 1;
        }
        Ok(done)
    };
    let begun = Instant::now();
    let threads: Vec<_> = (0..threads).map(|_| std::thread::spawn(hash.clone())).collect();
    let mut done = 0;
    for thread in threads {
        done += thread.join().map_err(|_| "a hashing thread panicked")??;
    }
    Ok(count(done) / begun.elapsed().as_secs_f64())
}
