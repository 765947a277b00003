//! `top`: a server at work, from its metrics and from the stream of revocations.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::board::Board;
use self::sample::Sample;
use super::args::{Global, duration};
use super::failure::Failure;
use super::follow::{Update, follow};
use super::output::Output;
use super::table::{self, printable};
use super::view;

mod board;
mod sample;
mod screen;

/// How many revocations are kept for the screen.
const KEPT: usize = 200;

/// See a server at work: calls, latency, watchers, and revocations as they go out.
///
/// The numbers are those of /metrics. With credentials that have the right `watch` the revocations
/// are shown, too. `q` ends it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch top --credentials avouch-data/admin-client.json\n  avouch top --once --json | jq .watchers"
)]
pub(super) struct Top {
    /// The URL of the server's ops listener.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7702")]
    ops: String,
    /// How often to look.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Print what one interval shows, and end.
    #[arg(long)]
    once: bool,
}

/// What the screen is told.
enum News {
    Seen(Box<Board>),
    /// The server could not be asked.
    Silent(String),
    Watch(Update),
}

impl Top {
    pub(super) async fn run(self, global: &Global, out: &mut Output) -> Result<(), Failure> {
        let interval = self.interval.max(Duration::from_millis(100));
        if self.once || out.is_json() {
            let mut before = self.look().await?;
            loop {
                tokio::time::sleep(interval).await;
                let now = self.look().await?;
                print(&Board::between(&before, &now), out)?;
                if self.once {
                    return Ok(());
                }
                before = now;
            }
        }
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(Failure::Other(
                "this is no terminal: use --once, or --json for an object each interval".to_owned(),
            ));
        }
        // Before the screen is taken: whoever mistyped the URL should read so.
        let first = self.look().await?;
        let (news, mut told) = mpsc::unbounded_channel();
        let mut keys = keys();
        let mut terminal = ratatui::try_init()?;
        let shown = tokio::select! {
            failed = self.watch(global, news.clone()) => failed,
            () = self.look_on(first, interval, news) => Ok(()),
            shown = show(&mut terminal, &mut told, &mut keys) => shown,
        };
        ratatui::restore();
        shown
    }

    async fn look(&self) -> Result<(Sample, Instant), Failure> {
        let text = sample::fetch(&self.ops).await;
        let text = text.map_err(|why| Failure::Other(format!("{}: {why}", self.ops)))?;
        Ok((Sample::parse(&text), Instant::now()))
    }

    async fn look_on(
        &self,
        mut before: (Sample, Instant),
        interval: Duration,
        news: mpsc::UnboundedSender<News>,
    ) {
        let mut ticks = tokio::time::interval(interval);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let seen = match self.look().await {
                Ok(now) => {
                    let board = Board::between(&before, &now);
                    before = now;
                    News::Seen(Box::new(board))
                }
                Err(failure) => News::Silent(failure.to_string()),
            };
            if news.send(seen).is_err() {
                return;
            }
        }
    }

    /// Follows the stream, if there is anything to show who we are. Ends only in failure.
    async fn watch(
        &self,
        global: &Global,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<(), Failure> {
        if global.credentials.is_none() && global.token.is_none() && global.cert.is_none() {
            return std::future::pending().await;
        }
        follow(global, Default::default(), "avouch-top".to_owned(), |update| {
            // The screen is gone only when we are.
            _ = news.send(News::Watch(update));
            Ok(())
        })
        .await
    }
}

/// Prints what one interval shows.
fn print(board: &Board, out: &mut Output) -> Result<(), Failure> {
    if out.is_json() {
        return out.record(&board.json());
    }
    let warnings = board.warnings.iter().map(|what| format!("warning    {what}"));
    let lines: Vec<String> = warnings.chain(board.lines()).collect();
    out.text(&format!("{}\n\n", lines.join("\n")))?;
    let rows: Vec<Vec<String>> = board.calls.iter().map(|call| call.row().to_vec()).collect();
    out.text(&table::table(&board::HEADING, &rows))
}

/// Keys that were pressed, read by a thread of their own: reading blocks.
fn keys() -> mpsc::UnboundedReceiver<Event> {
    let (pressed, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if pressed.send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Draws what is told until somebody has seen enough.
async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    told: &mut mpsc::UnboundedReceiver<News>,
    keys: &mut mpsc::UnboundedReceiver<Event>,
) -> Result<(), Failure> {
    let mut state = screen::State::default();
    loop {
        terminal.draw(|frame| screen::draw(frame, &state))?;
        tokio::select! {
            news = told.recv() => match news {
                Some(news) => take_in(&mut state, news),
                None => return Ok(()),
            },
            event = keys.recv() => match event {
                Some(event) if !is_end(&event) => {}
                Some(_) | None => return Ok(()),
            },
        }
    }
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
            || (control && key.code == KeyCode::Char('c')))
}

fn take_in(state: &mut screen::State, news: News) {
    match news {
        News::Seen(board) => (state.board, state.trouble) = (Some(*board), None),
        News::Silent(why) => state.trouble = Some(printable(&why)),
        News::Watch(update) => match update {
            Update::Synced(revision, held) => {
                state.stream = format!("synced at revision {revision}, {held} held");
            }
            Update::Quiet(revision) => state.stream = format!("at revision {revision}"),
            Update::Reset => state.stream = "the set starts anew".to_owned(),
            Update::Lost(why) => state.stream = format!("lost: {}", printable(&why)),
            Update::Revoked(revocations, arrived) => {
                // RFC 3339; the day is known.
                let arrived = arrived.to_string();
                let time = arrived.get(11..23).unwrap_or(&arrived);
                for event in &revocations {
                    push(&mut state.revocations, &view::revocation(event), time);
                }
                if let Some(last) = revocations.last() {
                    state.stream = format!("at revision {}", last.revision);
                }
            }
        },
    }
}

fn push(lines: &mut VecDeque<String>, value: &serde_json::Value, arrived: &str) {
    let text = |name: &str| value[name].as_str().map(printable);
    let what = ["token_id", "session_id", "subject", "client_id", "kid"]
        .into_iter()
        .filter_map(text)
        .collect::<Vec<_>>();
    let (level, reason) = (text("level").unwrap_or_default(), text("reason").unwrap_or_default());
    // As wide as the longest word of each.
    lines.push_front(format!("{arrived}  {level:10}  {reason:22}  {}", what.join("  ")));
    lines.truncate(KEPT);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    const BEFORE: &str = "avouch_rpc_requests_total{method=\"Refresh\",code=\"OK\"} 10\n";
    const AFTER: &str = "\
# HELP something
avouch_rpc_requests_total{method=\"Refresh\",code=\"OK\"} 30
avouch_rpc_requests_total{method=\"Refresh\",code=\"UNAUTHENTICATED\"} 4
avouch_rpc_latency_seconds_bucket{le=\"0.001\",method=\"Refresh\",code=\"OK\"} 0
avouch_rpc_latency_seconds_bucket{le=\"0.002\",method=\"Refresh\",code=\"OK\"} 20
avouch_rpc_latency_seconds_bucket{le=\"+Inf\",method=\"Refresh\",code=\"OK\"} 20
avouch_watchers 3
avouch_watcher_lag_revisions 7
avouch_store_queued 1
avouch_sessions NaN
";

    fn board() -> Board {
        let at = Instant::now();
        let later = at + Duration::from_secs(2);
        Board::between(&(Sample::parse(BEFORE), at), &(Sample::parse(AFTER), later))
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let json = board().json();
        let call = &json["calls"][0];
        assert_eq!(call["method"], "Refresh");
        assert_eq!((&call["per_second"], &call["not_ok_per_second"]), (&12.0.into(), &2.0.into()));
        // Within the bucket from 1 to 2 ms: half way, and 99 hundredths of it.
        assert_eq!((&call["p50_ms"], &call["p99_ms"]), (&1.5.into(), &1.99.into()));
        assert_eq!((&json["watchers"]["open"], &json["watchers"]["lag"]), (&3.into(), &7.into()));
        assert_eq!(json["store"]["queued"], 1);
        // Not counted yet, which is not none.
        assert_eq!(json["sessions"], serde_json::Value::Null);
        assert_eq!(json["warnings"], serde_json::json!([]));
    }

    #[test]
    fn what_somebody_should_look_at_is_said_in_words() {
        const WELL: &str = "avouch_feed_as_of_timestamp_seconds 7\n";
        let warnings = |now: &str, seconds: u64| {
            let (at, before) = (Instant::now(), Sample::parse(WELL));
            let later = at + Duration::from_secs(seconds);
            Board::between(&(before, at), &(Sample::parse(now), later)).warnings
        };
        for (now, part) in [
            (WELL, "nothing fresh"),
            ("avouch_store_low_space 1\n", "space is low"),
            ("avouch_audit_down 1\n", "audit log is down"),
            ("avouch_signing_keys{state=\"active\"} 0\n", "no key signs"),
        ] {
            let found = warnings(now, 2);
            assert!(found.len() == 1 && found[0].contains(part), "{now}: {found:?}");
        }
        let well = "avouch_feed_as_of_timestamp_seconds 8\navouch_store_low_space 0\n\
                    avouch_audit_down 0\navouch_signing_keys{state=\"active\"} 1\n";
        assert!(warnings(well, 1).is_empty());
        // Two looks one right after the other tell nothing of it.
        assert!(warnings(WELL, 0).is_empty());
    }

    #[test]
    fn a_small_terminal_shows_every_number_whole() {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let mut board = board();
        let call = |board: Board| board.calls.into_iter().next().unwrap();
        board.calls.extend((0..5).map(|_| call(self::board())));
        // As long as they get on a busy server.
        (board.revoked, board.live) = (12_345.6, 1_000_000.0);
        (board.propagation_p50, board.propagation_p99) = (Some(123.45), Some(1234.56));
        (board.commits, board.commit_p99, board.store_bytes) = (98_765.4, Some(4999.99), 5e11);
        let lines = board.lines();
        let state = screen::State { board: Some(board), ..screen::State::default() };
        terminal.draw(|frame| screen::draw(frame, &state)).unwrap();
        let text = terminal.backend().to_string();
        for line in lines {
            assert!(text.contains(&line), "{line} not in\n{text}");
        }
        assert_eq!(text.matches("Refresh").count(), 6, "{text}");
        assert!(text.contains("revocations: --credentials"), "{text}");
    }

    #[test]
    fn the_screen_shows_calls_watchers_revocations_and_trouble() {
        let mut terminal = Terminal::new(TestBackend::new(100, 30)).unwrap();
        let mut state = screen::State::default();
        take_in(&mut state, News::Seen(Box::new(board())));
        let revoked = serde_json::json!({ "level": "session", "session_id": "s1\u{1b}[2J" });
        push(&mut state.revocations, &revoked, "12:00");
        terminal.draw(|frame| screen::draw(frame, &state)).unwrap();
        let text = terminal.backend().to_string();
        for word in ["Refresh", "12.0", "1.99", "3 open", "7 revisions behind", "12:00  session "] {
            assert!(text.contains(word), "{word} not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        take_in(&mut state, News::Silent("nobody listens".to_owned()));
        terminal.draw(|frame| screen::draw(frame, &state)).unwrap();
        assert!(terminal.backend().to_string().contains("nobody listens"));
        // Whatever the size is.
        for (width, height) in [(1, 1), (20, 3), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen::draw(frame, &state)).unwrap();
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_skipped_and_counters_that_began_anew_are_no_rate() {
        let sample = Sample::parse("x{\n{}\nx{a=} y\navouch_watchers\nx 1\n\n");
        assert_eq!(sample.sum("x", &[]), 1.0);
        let at = Instant::now();
        let (high, low) = (Sample::parse(AFTER), Sample::parse(BEFORE));
        let board = Board::between(&(high, at), &(low, at + Duration::from_secs(1)));
        assert_eq!(board.json()["calls"][0]["per_second"], 0.0);
    }
}
