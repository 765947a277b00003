//! Fills a data directory with sessions, to measure with: what `docs/operate.md` says of a million of them
//! is of such a one.
//!
//! ```sh
//! cargo run --release --example fill -- DIR 1000000
//! ```
//!
//! The sessions are of no user that is registered, and no key signs for them: a server starts there, counts
//! them, backs them up and sweeps them, and nobody goes on with one.

use std::path::Path;

use avouch::domain::clock::{Clock as _, SystemClock, Timestamp};

#[expect(clippy::expect_used, reason = "it fills, or it is of no use")]
mod sessions;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, sessions, revoked @ ..] = arguments.as_slice() else {
        return Err("give a directory, how many sessions, and how many of them are revoked".into());
    };
    let revoked = revoked.first().map_or(Ok(0), |revoked| revoked.parse())?;
    let now = SystemClock::starting_at(Timestamp::from_secs(0)).now();
    sessions::fill(Path::new(dir), sessions.parse()?, revoked, now).await;
    Ok(())
}
