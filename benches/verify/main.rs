//! What it costs to verify a token where it is used, beside what that is made of; and how long a
//! revocation takes from `Revoke` to the refusal. Prints the targets, reached or missed.
//!
//! `cargo bench --bench verify`, or with `-- --quick` for a look in some seconds whose numbers say
//! little; `-- --entries N` for another number of revocations than a million.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use avouch::client::watch::WatchSettings;
use avouch::crypto::OsEntropy;
use avouch::domain::claims::Claims;
use avouch::domain::clock::{Clock as _, SystemClock, Timestamp};
use avouch::domain::entropy::Entropy;
use avouch::domain::ids::Epochs;
use avouch::domain::key::{Algorithm, PublicKey};
use avouch::domain::scope::Names;
use avouch::domain::view::{Marks, Standing, TOKEN_BUCKET_SECS, View, bucket_end};
use avouch::jwt::SigningKey;
use avouch::pb::v1;
use avouch::verifier::{Verdict, Verifier, VerifierSettings};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;
use tonic::transport::Endpoint;

mod serve;
mod stub;

type Failure = Box<dyn Error + Send + Sync>;

const ISSUER: &str = "https://id.example.com";

/// How much is measured.
struct Plan {
    entries: usize,
    tokens: usize,
    rounds: usize,
    revocations: usize,
}

impl Plan {
    fn of(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut plan = Self { entries: 1_000_000, tokens: 4_000, rounds: 15, revocations: 500 };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // What cargo says.
                "--bench" => {}
                "--quick" => {
                    plan = Self { entries: 50_000, tokens: 200, rounds: 3, revocations: 20 };
                }
                "--entries" => plan.entries = arguments.next().ok_or("how many?")?.parse()?,
                other => return Err(format!("no such flag: {other}").into()),
            }
        }
        Ok(plan)
    }
}

fn main() -> Result<(), Failure> {
    let plan = Plan::of(std::env::args().skip(1))?;
    tokio::runtime::Runtime::new()?.block_on(bench(&plan))
}

/// Signs as a server would.
struct Issuer {
    key: SigningKey,
    public: ParsedPublicKey,
    jwk: v1::JsonWebKey,
    now: Timestamp,
}

impl Issuer {
    fn new() -> Result<Self, Failure> {
        let (key, _) = SigningKey::generate(Algorithm::Es256)?;
        let PublicKey::P256 { x, y } = key.public()? else { return Err("not a P-256 key".into()) };
        let point = [&[4], &*URL_SAFE_NO_PAD.decode(&*x)?, &*URL_SAFE_NO_PAD.decode(&*y)?].concat();
        let jwk = v1::JsonWebKey {
            kid: key.id().to_string(),
            alg: "ES256".to_owned(),
            kty: "EC".to_owned(),
            crv: "P-256".to_owned(),
            x: x.into(),
            y: y.into(),
            state: v1::KeyState::Active.into(),
            ..Default::default()
        };
        let now = Timestamp::from_secs(SystemClock::default().now().as_secs());
        Ok(Self { key, public: ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)?, jwk, now })
    }

    fn claims(&self, number: usize) -> Result<Claims, Failure> {
        let entropy: &dyn Entropy = &OsEntropy;
        Ok(Claims {
            issuer: ISSUER.into(),
            subject: format!("user-{number:012}").parse()?,
            audience: Names::new(["orders", "avouch"])?,
            client: "bench".parse()?,
            scope: Names::new(["orders:read", "orders:write"])?,
            token_id: entropy.token_id(),
            session: Some(entropy.session_id()),
            issued_at: self.now,
            not_before: self.now,
            expires_at: self.now.after(Duration::from_secs(3000)),
            authenticated_at: Some(self.now),
            methods: Names::new(["pwd"])?,
            epochs: Epochs::default(),
        })
    }

    fn tokens(&self, count: usize) -> Result<Vec<String>, Failure> {
        let token = |number| Ok(self.key.encode(&self.claims(number)?)?.into_exposed());
        (0..count).map(token).collect()
    }

    /// What is signed of a token, and the signature.
    fn parts(token: &str) -> Result<(&[u8], Vec<u8>), Failure> {
        let (message, signature) = token.rsplit_once('.').ok_or("no signature")?;
        Ok((message.as_bytes(), URL_SAFE_NO_PAD.decode(signature)?))
    }
}

/// Nanoseconds a call, the median over rounds.
fn median(rounds: usize, calls: usize, mut round: impl FnMut()) -> f64 {
    let mut taken: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            round();
            began.elapsed().as_secs_f64() * 1e9 / calls as f64
        })
        .collect();
    taken.sort_by(f64::total_cmp);
    taken[taken.len() / 2]
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The lines beneath each other, and the targets.
#[derive(Default)]
struct Report {
    missed: usize,
}

impl Report {
    fn line(&self, what: &str, value: String) {
        println!("{what:<66} {value:>14}");
    }

    fn target(&mut self, what: &str, value: String, reached: bool) {
        let came = if reached { "reached" } else { "MISSED" };
        self.missed += usize::from(!reached);
        println!("{what:<66} {value:>14}  {came}");
    }
}

async fn bench(plan: &Plan) -> Result<(), Failure> {
    let issuer = Issuer::new()?;
    let stub = stub::Stub::new(plan.entries, issuer.jwk.clone(), issuer.now);
    let verifier = start(stub.serve().await?).await?;
    let mut report = Report::default();
    println!("{} revocations held\n", verifier.status().entries);
    verify(plan, &issuer, &verifier, &mut report)?;
    check(plan, &issuer, &mut report)?;
    apply(&issuer, &stub, &verifier, &mut report).await?;
    propagation(plan, &mut report).await?;
    println!("\n{} targets missed", report.missed);
    Ok(())
}

async fn start(address: std::net::SocketAddr) -> Result<Verifier, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let settings = VerifierSettings::new(ISSUER, WatchSettings::new(vec![endpoint]));
    let clock = Arc::new(SystemClock::default());
    let verifier = Verifier::start(settings, clock, Arc::new(OsEntropy), None);
    tokio::time::timeout(Duration::from_secs(60), verifier.synced()).await?;
    Ok(verifier)
}

/// Tokens seen first and seen before, beside one signature check.
fn verify(
    plan: &Plan,
    issuer: &Issuer,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut first = Vec::new();
    let mut bare = Vec::new();
    for _ in 0..plan.rounds {
        let tokens = issuer.tokens(plan.tokens / 10)?;
        let parts: Vec<_> = tokens.iter().map(|it| Issuer::parts(it)).collect::<Result<_, _>>()?;
        bare.push(median(1, parts.len(), || {
            for (message, signature) in &parts {
                assert!(issuer.public.verify_sig(message, signature).is_ok());
            }
        }));
        first.push(median(1, tokens.len(), || {
            for token in &tokens {
                assert!(matches!(verifier.check(token), Verdict::Good(_)));
            }
        }));
    }
    bare.sort_by(f64::total_cmp);
    first.sort_by(f64::total_cmp);
    let (bare, first) = (bare[bare.len() / 2], first[first.len() / 2]);
    report.line("one signature check (ES256)", format!("{:.2} us", bare / 1e3));
    report.target(
        "verify, token seen first: at most one signature check + 10 %",
        format!("{:.2} us = {:.2}x", first / 1e3, first / bare),
        first <= bare * 1.1,
    );
    let tokens = issuer.tokens(plan.tokens)?;
    report.line("length of a token", format!("{} bytes", tokens[0].len()));
    tokens.iter().for_each(|token| drop(verifier.check(token)));
    let digest = median(plan.rounds, tokens.len(), || {
        for token in &tokens {
            black_box(avouch::crypto::sha256(token.as_bytes()));
        }
    });
    report.line("the digest of a token", format!("{digest:.0} ns"));
    let before = median(plan.rounds, tokens.len(), || {
        for token in &tokens {
            assert!(matches!(verifier.check(token), Verdict::Good(_)));
        }
    });
    report.target("verify, token seen before: under 1 us", format!("{before:.0} ns"), before < 1e3);
    Ok(())
}

/// The look into the set, and what an entry of it takes.
fn check(plan: &Plan, issuer: &Issuer, report: &mut Report) -> Result<(), Failure> {
    let view = View::default();
    let entropy: &dyn Entropy = &OsEntropy;
    let bucket = bucket_end(issuer.now.after(Duration::from_secs(3060)), TOKEN_BUCKET_SECS);
    for number in 0..plan.entries {
        // In the bucket of the tokens under test too, as that is the one that is looked into.
        let end = bucket - TOKEN_BUCKET_SECS * (number as u64 % 51);
        if number % 10 == 0 {
            let width = avouch::domain::view::SESSION_BUCKET_SECS;
            let end = bucket_end(Timestamp::from_secs(end), width);
            view.insert_session(end, u64::from_le_bytes(entropy.bytes()));
        } else {
            view.insert_token(end, u64::from_le_bytes(entropy.bytes()));
        }
    }
    let marks: Vec<Marks> = (0..plan.tokens)
        .map(|number| Ok(Marks::of(&issuer.claims(number)?, issuer.key.id())))
        .collect::<Result<_, Failure>>()?;
    let look = median(plan.rounds, marks.len(), || {
        for marks in &marks {
            assert_eq!(black_box(view.standing(marks)), Standing::Clear);
        }
    });
    let (entries, bytes) = (view.len() as f64, view.bytes() as f64);
    report.target("revocation check alone: under 100 ns", format!("{look:.0} ns"), look < 100.0);
    report.target(
        "memory of an entry: at most 21 bytes",
        format!("{:.1} bytes", bytes / entries),
        bytes <= entries * 21.0,
    );
    Ok(())
}

/// A whole new set over the stream, while others verify.
async fn apply(
    issuer: &Issuer,
    stub: &stub::Stub,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(), Failure> {
    let tokens = Arc::new(issuer.tokens(100)?);
    tokens.iter().for_each(|token| drop(verifier.check(token)));
    let stop = Arc::new(AtomicBool::new(false));
    let read = |stop: Arc<AtomicBool>| {
        let (tokens, verifier) = (Arc::clone(&tokens), verifier.clone());
        std::thread::spawn(move || {
            let mut taken = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for token in &*tokens {
                    let began = Instant::now();
                    let verdict = verifier.check(token);
                    taken.push(began.elapsed().as_secs_f64() * 1e6);
                    assert!(matches!(verdict, Verdict::Good(_)));
                }
            }
            taken.sort_by(f64::total_cmp);
            taken
        })
    };
    let idle = read(Arc::clone(&stop));
    tokio::time::sleep(Duration::from_millis(400)).await;
    stop.store(true, Ordering::Relaxed);
    let idle = idle.join().map_err(|_| "a reader failed")?;
    stop.store(false, Ordering::Relaxed);
    let busy = read(Arc::clone(&stop));
    let before = verifier.status().cursor;
    let began = Instant::now();
    stub.reset();
    while verifier.status().cursor == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let taken = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let busy = busy.join().map_err(|_| "a reader failed")?;
    let entries = verifier.status().entries;
    report.target(
        &format!("a new set of {entries} entries over the stream: under 1 s"),
        format!("{:.2} s", taken.as_secs_f64()),
        taken < Duration::from_secs(1),
    );
    for (name, taken) in [("idle", &idle), ("meanwhile", &busy)] {
        report.line(
            &format!("verify, token seen before, {name}: p50 / p99.9"),
            format!("{:.2} / {:.2} us", percentile(taken, 0.5), percentile(taken, 0.999)),
        );
    }
    Ok(())
}

/// From the moment that `Revoke` has returned until the token is refused here.
async fn propagation(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let directory = tempfile::Builder::new()
        .prefix("verify-bench-")
        .tempdir_in(std::env::current_exe()?.parent().ok_or("no directory")?)?;
    let server = serve::Server::start(directory.path()).await?;
    let mut identity = server.identity().await?;
    let bearer = format!("Bearer {}", server.token(&mut identity).await?);
    let watch = WatchSettings {
        authorization: Some(Arc::new(move || bearer.parse().ok())),
        ..WatchSettings::new(vec![Endpoint::from_shared(server.url.clone())?])
    };
    let settings = VerifierSettings::new("http://127.0.0.1", watch);
    let clock = Arc::new(SystemClock::default());
    let verifier = Verifier::start(settings, clock, Arc::new(OsEntropy), None);
    tokio::time::timeout(Duration::from_secs(60), verifier.synced()).await?;
    let mut taken = Vec::new();
    for _ in 0..plan.revocations {
        let token = server.token(&mut identity).await?;
        verifier.verify(&token).await?;
        let request = v1::RevokeRequest {
            client: Some(server.admin.clone()),
            target: Some(v1::revoke_request::Target::Token(token.clone())),
            ..Default::default()
        };
        identity.revoke(request).await?;
        let returned = Instant::now();
        while matches!(verifier.check(&token), Verdict::Good(_)) {
            tokio::task::yield_now().await;
            if returned.elapsed() > Duration::from_secs(10) {
                return Err("a revoked token is accepted after 10 s".into());
            }
        }
        taken.push(returned.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    let p99 = percentile(&taken, 0.99);
    report
        .line("Revoke returned -> refused here, p50", format!("{:.3} ms", percentile(&taken, 0.5)));
    report.target("Revoke returned -> refused here, p99: 5 ms", format!("{p99:.3} ms"), p99 < 5.0);
    Ok(())
}
