//! What it takes to make an access token and to check one.

use std::hint::black_box;
use std::time::Duration;

use avouch::crypto::OsEntropy;
use avouch::domain::claims::Claims;
use avouch::domain::clock::Timestamp;
use avouch::domain::entropy::Entropy;
use avouch::domain::ids::Epochs;
use avouch::domain::key::Algorithm;
use avouch::domain::scope::Names;
use avouch::jwt::{KeyLookup, Rules, SigningKey, VerifyingKey, verify};
use tokio::time::Instant;

use crate::Failure;
use crate::statistics::percentile;

const ISSUER: &str = "https://id.example.com";
const NOW: Timestamp = Timestamp::from_secs(1_795_219_200);

struct One(VerifyingKey);

impl KeyLookup for One {
    fn find_key(&self, _: &str) -> Option<&VerifyingKey> {
        Some(&self.0)
    }
}

fn claims() -> Result<Claims, Failure> {
    let entropy: &dyn Entropy = &OsEntropy;
    Ok(Claims {
        issuer: ISSUER.into(),
        subject: "user-000000000001".parse()?,
        audience: Names::new(["orders", "avouch"])?,
        client: "bench".parse()?,
        scope: Names::new(["orders:read", "orders:write"])?,
        token_id: entropy.token_id(),
        session: Some(entropy.session_id()),
        issued_at: NOW,
        not_before: NOW,
        expires_at: NOW.after(Duration::from_secs(300)),
        authenticated_at: Some(NOW),
        methods: Names::new(["pwd"])?,
        epochs: Epochs::default(),
    })
}

fn median<T>(times: usize, mut work: impl FnMut() -> Result<T, Failure>) -> Result<f64, Failure> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        black_box(work()?);
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile(&took, 0.5))
}

/// Prints a line for each algorithm.
pub(crate) fn measure(times: usize) -> Result<(), Failure> {
    println!("tokens, median of {times}       make us   check us      bytes");
    let rules = Rules::new(ISSUER, Duration::from_secs(3600));
    let claims = claims()?;
    for algorithm in [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256] {
        let (signing, _) = SigningKey::generate(algorithm)?;
        let keys = One(VerifyingKey::new(signing.id().clone(), &signing.public()?)?);
        let token = signing.encode(&claims)?;
        let make = median(times, || Ok(signing.encode(&claims)?))?;
        let check = median(times, || Ok(verify(token.expose(), &keys, &rules, NOW)?))?;
        let bytes = token.expose().len();
        println!("{:<28} {make:>10.1} {check:>10.1} {bytes:>10}", algorithm.as_str());
    }
    println!();
    Ok(())
}
