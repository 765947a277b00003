//! What `top` draws.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, List, Paragraph, Row, Table};

use super::board::Board;

/// What is known.
#[derive(Default)]
pub(super) struct State {
    /// The newest numbers; none before the second look.
    pub(super) board: Option<Board>,
    /// Why there are no new ones.
    pub(super) trouble: Option<String>,
    /// How the stream is; empty while none is followed.
    pub(super) stream: String,
    /// The newest first.
    pub(super) revocations: VecDeque<String>,
}

fn millis(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2}"))
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / 1_048_576.0)
}

/// Draws everything, into whatever room there is.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let [head, calls, below] =
        Layout::vertical([Constraint::Length(7), Constraint::Min(4), Constraint::Percentage(40)])
            .areas(frame.area());
    let block = Block::bordered().title(" avouch top ").title_bottom(" q ends ");
    frame.render_widget(Paragraph::new(summary(state)).block(block), head);

    let rows = state.board.iter().flat_map(|board| &board.calls).map(|call| {
        let style = if call.not_ok > 0.0 { Style::new().yellow() } else { Style::new() };
        Row::new([
            call.method.clone(),
            format!("{:.1}", call.rate),
            format!("{:.1}", call.not_ok),
            format!("{:.0}", call.in_flight),
            millis(call.p50),
            millis(call.p99),
        ])
        .style(style)
    });
    let widths = [22, 10, 10, 10, 10, 10].map(Constraint::Length);
    let heading = Row::new(["METHOD", "CALLS/S", "NOT OK/S", "NOW", "P50 MS", "P99 MS"]).bold();
    let table = Table::new(rows, widths).header(heading);
    frame.render_widget(table.block(Block::bordered().title(" calls ")), calls);

    let title = if state.stream.is_empty() {
        " revocations: --credentials to see them ".to_owned()
    } else {
        format!(" revocations: {} ", state.stream)
    };
    let lines = state.revocations.iter().map(String::as_str);
    frame.render_widget(List::new(lines).block(Block::bordered().title(title)), below);
}

fn summary(state: &State) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(trouble) = &state.trouble {
        lines.push(Line::from(trouble.clone()).red());
    }
    let Some(board) = &state.board else {
        lines.push(Line::from("looking …"));
        return lines;
    };
    lines.extend([
        Line::from(format!(
            "watchers   {:.0} open, lag {:.0}, {:.1} frames/s; revocations {:.1}/s, {:.0} live, to the \
             stream p50 {} p99 {} ms",
            board.watchers,
            board.lag,
            board.frames,
            board.revoked,
            board.live,
            millis(board.propagation_p50),
            millis(board.propagation_p99),
        )),
        Line::from(format!(
            "tokens     {:.1} rotated/s, {:.1} retried/s, {:.0} reused since the start",
            board.rotated, board.retried, board.reuses,
        )),
        Line::from(format!(
            "passwords  {:.1} hashed/s, {:.1} shed/s, {:.0} waiting, {:.0} running",
            board.hashes, board.hashes_shed, board.hashes_queued, board.hashes_running,
        )),
        Line::from(format!(
            "store      {:.1} changes/s, p99 {} ms, {:.0} waiting, {}; process {:.2} cores, {}",
            board.commits,
            millis(board.commit_p99),
            board.store_queued,
            mebibytes(board.store_bytes),
            board.cpu,
            mebibytes(board.resident_bytes),
        )),
    ]);
    lines
}
