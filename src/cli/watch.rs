//! `watch`: see revocations arrive.

use serde_json::{Value, json};

use super::args::Global;
use super::failure::Failure;
use super::follow::{Update, follow};
use super::output::{self, Output};
use super::table::printable;
use super::view;
use crate::domain::clock::Timestamp;
use crate::pb::v1::{Revocation, RevocationFilter};

/// See revocations as they arrive, with how long each took. Needs the right `watch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch watch --credentials avouch-data/admin-client.json\n  avouch watch --audience orders --json --credentials sidecar.json \\\n      | jq .latency_ms"
)]
pub(super) struct Watch {
    /// Only tokens and sessions that are good for this audience; repeat for more.
    #[arg(long)]
    audience: Vec<String>,
    /// Only tokens and sessions of this client; repeat for more.
    #[arg(long)]
    client: Vec<String>,
    /// A name for this watcher in the server's metrics and logs.
    #[arg(long, value_name = "NAME", default_value = "avouch-watch")]
    name: String,
}

impl Watch {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let filter = RevocationFilter { audiences: self.audience, client_ids: self.client };
        let mut screen = Screen { live: out.is_live(), headed: false, held: 0, out };
        follow(global, filter, self.name, |update| screen.show(update)).await
    }
}

struct Screen<'a> {
    out: &'a mut Output,
    /// Whether the last line is one that changes in place.
    live: bool,
    /// Whether the heading was printed: not before there is a set to add to.
    headed: bool,
    held: usize,
}

impl Screen<'_> {
    fn show(&mut self, update: Update) -> Result<(), Failure> {
        match update {
            Update::Reset => {
                self.held = 0;
                self.event(&json!({ "type": "reset" }), "the set starts anew")?;
            }
            Update::Synced(revision, held) => {
                self.held = held;
                self.event(
                    &json!({ "type": "synced", "revision": revision, "held": held }),
                    &format!("synced at revision {revision}, {held} revocations held"),
                )?;
                if !self.headed && !self.out.is_json() {
                    self.out.text(&line("REVISION", "LEVEL", "LATENCY", "REASON", "WHAT"))?;
                }
                self.headed = true;
            }
            Update::Quiet(revision) => self.status(revision)?,
            Update::Lost(why) => {
                let text = format!("connection lost, trying again: {}", printable(&why));
                self.event(&json!({ "type": "lost", "reason": why }), &text)?;
            }
            Update::Revoked(revocations, arrived) => {
                self.held += revocations.len();
                for event in &revocations {
                    self.revocation(event, arrived)?;
                }
            }
        }
        Ok(())
    }

    fn revocation(&mut self, event: &Revocation, arrived: Timestamp) -> Result<(), Failure> {
        let mut value = view::revocation(event);
        let made = event.event_time.as_ref().map(view::millis);
        let latency = made.map(|made| arrived.since(Timestamp::from_millis(made)).as_millis());
        let latency = latency.and_then(|millis| u64::try_from(millis).ok());
        if self.out.is_json() {
            value["type"] = "revocation".into();
            value["receive_time"] = arrived.to_string().into();
            value["latency_ms"] = latency.into();
            return self.out.json_line(&value);
        }
        let text = |name: &str| value[name].as_str().map(printable);
        let what = ["token_id", "session_id", "subject", "client_id", "kid"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", text(name)?)))
            .collect::<Vec<_>>()
            .join(" ");
        let latency = latency.map_or_else(String::new, |millis| format!("{millis} ms"));
        let (level, reason) =
            (text("level").unwrap_or_default(), text("reason").unwrap_or_default());
        self.clear()?;
        self.out.text(&line(&event.revision.to_string(), &level, &latency, &reason, &what))
    }

    fn event(&mut self, value: &Value, text: &str) -> Result<(), Failure> {
        if self.out.is_json() {
            return self.out.json_line(value);
        }
        self.clear()?;
        output::note(text);
        Ok(())
    }

    /// The line that changes in place, for eyes on a terminal.
    fn status(&mut self, revision: u64) -> Result<(), Failure> {
        if self.live {
            let held = self.held;
            self.out.text(&format!("\r\x1b[Kup to date at revision {revision}, {held} held"))?;
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Failure> {
        if self.live { self.out.text("\r\x1b[K") } else { Ok(()) }
    }
}

fn line(revision: &str, level: &str, latency: &str, reason: &str, what: &str) -> String {
    format!("{revision:<9} {level:<10} {latency:<8} {reason:<22} {what}\n")
}
