//! One row for each call: measured in turns with the RPC that does nothing, with the same sizes, so
//! that what changes on the machine meanwhile changes both.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use crate::bare::Signature;
use crate::calls::{self, Identity, Supply, Wheel};
use crate::child::Server;
use crate::load::{Phase, count, median, saturate};
use crate::nothing::{self, Ask};
use crate::report::{Report, Row};
use crate::{Failure, Plan, Store};

/// Calls in flight.
const IN_FLIGHT: usize = 256;
/// Tokens that the server knows.
const KNOWN: usize = 1000;
/// Refresh tokens for each call in flight.
const TOKENS_EACH: usize = 4;

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    Known,
    SeenFirst,
    Refresh,
    Secret,
    Revoke,
}

const CALLS: [Call; 5] = [Call::Known, Call::SeenFirst, Call::Refresh, Call::Secret, Call::Revoke];

impl Call {
    const fn name(self) -> &'static str {
        match self {
            Self::Known => "Introspect, known token",
            Self::SeenFirst => "Introspect, token seen first",
            Self::Refresh => "Refresh",
            Self::Secret => "Authenticate by secret",
            Self::Revoke => "Revoke a session",
        }
    }
}

/// A call and the RPC that does nothing beside it, over all rounds.
#[derive(Default)]
struct Pair {
    call: Phase,
    nothing: Phase,
    resident: u64,
    /// CPU of the call by that of the RPC that does nothing, of each round.
    ratios: Vec<f64>,
    /// The same by what the target allows.
    parts: Vec<f64>,
}

struct Bench<'a> {
    server: &'a mut Server,
    channels: Arc<Vec<Channel>>,
    signature: Signature,
    known: Arc<Supply<String>>,
    wheels: Arc<Vec<Wheel>>,
    introspect: Ask,
    refresh: Ask,
    plan: &'a Plan,
}

/// More than one phase can use, at so many calls a second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive number of calls"
)]
fn enough(plan: &Plan, each_second: f64) -> usize {
    (plan.phase.as_secs_f64() * each_second) as usize
}

/// More sessions than are revoked in one phase.
pub(crate) fn enough_sessions(plan: &Plan) -> usize {
    enough(plan, if plan.store == Store::Sled { 25_000.0 } else { 10_000.0 })
}

/// Measures them all.
pub(crate) async fn measure(
    server: &mut Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    let channels = Arc::new(server.connect(8).await?);
    let one = || Identity::new(channels[0].clone());
    let tokens = server.tokens(KNOWN).await?;
    let sizes = calls::introspect_sizes(one(), &tokens[0]).await?;
    let introspect = Ask::sized(sizes);
    for token in &tokens {
        calls::introspect(one(), token).await?;
    }
    let mut sessions = server.sessions(IN_FLIGHT * TOKENS_EACH + 1).await?;
    let (_, token) = sessions.pop().ok_or("no session")?;
    let refresh_sizes = calls::refresh_sizes(one(), token).await?;
    report.sizes(sizes, refresh_sizes);
    let wheels = sessions
        .chunks(TOKENS_EACH)
        .map(|sessions| Wheel::new((0, sessions.iter().map(|(_, token)| token.clone()).collect())));
    let mut bench = Bench {
        wheels: Arc::new(wheels.collect()),
        server,
        channels,
        signature: Signature::new()?,
        known: Supply::new(tokens),
        introspect,
        refresh: Ask::sized(refresh_sizes),
        plan,
    };
    bench.warm_up().await?;
    let (mut checks, mut signs) = (Vec::new(), Vec::new());
    let mut pairs: Vec<_> = CALLS
        .into_iter()
        .filter(|call| plan.wants(call.name()))
        .map(|call| (call, Pair::default()))
        .collect();
    for _ in 0..plan.rounds {
        for (call, pair) in &mut pairs {
            let (check, sign) = (bench.signature.check()?, bench.signature.sign()?);
            checks.push(check);
            signs.push(sign);
            let nothing = bench.nothing(*call).await?;
            let phase = bench.call(*call).await?;
            let (less, more) = (nothing.cpu_per_call(), phase.cpu_per_call());
            pair.ratios.push(more / less);
            pair.parts.push(match call {
                Call::Known => more / (1.3 * less),
                Call::SeenFirst => more / (less + 1.2 * check),
                Call::Refresh => more / (3.0 * less + sign),
                Call::Secret | Call::Revoke => 0.0,
            });
            pair.nothing.add(&nothing);
            pair.call.add(&phase);
            pair.resident = bench.server.resident()?;
        }
    }
    report.signature(median(checks), median(signs));
    for (call, pair) in pairs {
        if matches!(call, Call::Known | Call::Refresh) {
            let like = if call == Call::Known { "as Introspect" } else { "as Refresh" };
            report.row(Row::new(format!("nothing, sizes {like}"), &pair.nothing));
        }
        let (ratio, part) = (median(pair.ratios), median(pair.parts));
        let mut row = Row::new(call.name().to_owned(), &pair.call);
        row.ratio = Some(ratio);
        row.resident = Some(pair.resident);
        report.row(row);
        match call {
            Call::Known => report.target(
                "Introspect, known token: CPU at most 1.3 x nothing",
                format!("{ratio:.2} x"),
                part <= 1.0,
            ),
            Call::SeenFirst => report.target(
                "Introspect, token seen first: at most nothing + 1.2 x one check",
                format!("{:.0} % of that", part * 100.0),
                part <= 1.0,
            ),
            Call::Refresh => report.target(
                "Refresh, durable: at most 3 x nothing + one signature",
                format!("{:.0} % of that, {ratio:.2} x nothing", part * 100.0),
                part <= 1.0,
            ),
            Call::Secret | Call::Revoke => {}
        }
    }
    Ok(())
}

impl Bench<'_> {
    async fn warm_up(&mut self) -> Result<(), Failure> {
        let ask = self.introspect.clone();
        self.do_nothing(ask, self.plan.phase).await?;
        self.call(Call::Known).await?;
        Ok(())
    }

    async fn nothing(&self, call: Call) -> Result<Phase, Failure> {
        let ask = match call {
            Call::Known | Call::SeenFirst | Call::Revoke => &self.introspect,
            Call::Refresh | Call::Secret => &self.refresh,
        };
        self.do_nothing(ask.clone(), self.plan.phase).await
    }

    async fn do_nothing(&self, ask: Ask, time: Duration) -> Result<Phase, Failure> {
        let channels = Arc::clone(&self.channels);
        saturate(self.server, IN_FLIGHT, time, move |worker| {
            let (channel, ask) = (channels[worker % channels.len()].clone(), ask.clone());
            async move { nothing::call(&channel, ask).await.map(|()| true) }
        })
        .await
    }

    async fn call(&mut self, call: Call) -> Result<Phase, Failure> {
        let tokens = match call {
            Call::SeenFirst => self.server.tokens(enough(self.plan, 25_000.0)).await?,
            _ => Vec::new(),
        };
        let sessions: Vec<String> = match call {
            Call::Revoke => self
                .server
                .sessions(enough_sessions(self.plan))
                .await?
                .into_iter()
                .map(|(id, _)| id)
                .collect(),
            _ => Vec::new(),
        };
        let (tokens, sessions) = (Supply::new(tokens), Supply::new(sessions));
        let (known, wheels) = (Arc::clone(&self.known), Arc::clone(&self.wheels));
        let channels = Arc::clone(&self.channels);
        let phase = saturate(self.server, IN_FLIGHT, self.plan.phase, move |worker| {
            let client = Identity::new(channels[worker % channels.len()].clone());
            let (tokens, sessions) = (Arc::clone(&tokens), Arc::clone(&sessions));
            let (known, wheels) = (Arc::clone(&known), Arc::clone(&wheels));
            async move {
                match call {
                    Call::Known => calls::introspect(client, &known.around()).await?,
                    Call::SeenFirst => match tokens.next() {
                        Some(token) => calls::introspect(client, &token).await?,
                        None => return Ok(false),
                    },
                    Call::Refresh => calls::turn(client, &wheels[worker]).await?,
                    Call::Secret => calls::by_secret(client).await?,
                    Call::Revoke => match sessions.next() {
                        Some(id) => calls::revoke(client, id).await.map(drop)?,
                        None => return Ok(false),
                    },
                }
                Ok::<_, Status>(true)
            }
        });
        phase.await
    }
}

/// Logins by password, in turns with the bare hashes; and what they do to Introspect meanwhile.
pub(crate) async fn passwords(
    server: &mut Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    const USERS: usize = 16;
    server.users(USERS).await?;
    let channels = Arc::new(server.connect(2).await?);
    let calm = server.connect(1).await?.remove(0);
    let token = server.tokens(1).await?.remove(0);
    calls::introspect(Identity::new(calm.clone()), &token).await?;
    let cores = std::thread::available_parallelism()?.get();
    let paced = |time| {
        let (calm, token) = (calm.clone(), token.clone());
        crate::load::pace(Duration::from_millis(4), time, move || {
            let (client, token) = (Identity::new(calm.clone()), token.clone());
            async move { calls::introspect(client, &token).await }
        })
    };
    let time = plan.phase * 2;
    let (mut bare, mut parts, mut logins) = (Vec::new(), Vec::new(), Phase::default());
    let (mut idle, mut storm) = (Phase::default(), Phase::default());
    let by_password = |time| {
        let channels = Arc::clone(&channels);
        saturate(server, USERS, time, move |worker| {
            let client = Identity::new(channels[worker % channels.len()].clone());
            async move { calls::by_password(client, worker).await }
        })
    };
    for _ in 0..plan.rounds {
        let hashes =
            tokio::task::spawn_blocking(move || crate::bare::hashes(cores, time)).await??;
        let phase = by_password(time).await?;
        parts.push(phase.rate() / hashes);
        bare.push(hashes);
        logins.add(&phase);
        idle.add(&paced(time).await?);
        let (during, _) = tokio::try_join!(paced(time), by_password(time))?;
        storm.add(&during);
    }
    let part = median(parts);
    report.note(format!("bare argon2id on {} cores: {:.0} hashes/s", count(cores), median(bare)));
    let mut row = Row::new("Authenticate by password".to_owned(), &logins);
    row.resident = Some(server.resident()?);
    report.row(row);
    report.target(
        "Authenticate by password: at least 0.9 of the bare hashes",
        format!("{part:.2}"),
        part >= 0.9,
    );
    let (calm, loaded) = (idle.percentile(0.99), storm.percentile(0.99));
    report.target(
        "p99 of Introspect during logins: at most 3 x idle",
        format!("{:.1} ms, idle {:.1} ms, {:.1} x", loaded / 1e3, calm / 1e3, loaded / calm),
        loaded <= 3.0 * calm,
    );
    Ok(())
}
