//! What `top` draws.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, List, Paragraph, Row, Table};

use super::board::{Board, Call, HEADING};

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

/// The least that the revocations get: three lines and their frame.
const LEAST_BELOW: u16 = 5;

/// Draws everything, into whatever room there is.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let summary = summary(state);
    let rows: Vec<Row<'_>> = state.board.iter().flat_map(|board| &board.calls).map(row).collect();
    // Frames take two lines each, the heading one.
    let height =
        |lines: usize, beside: u16| u16::try_from(lines).unwrap_or(u16::MAX).saturating_add(beside);
    let [head, calls, below] = Layout::vertical([
        Constraint::Length(height(summary.len(), 2)),
        Constraint::Length(height(rows.len(), 3).max(5)),
        Constraint::Min(LEAST_BELOW),
    ])
    .areas(frame.area());
    let block = Block::bordered().title(" avouch top ").title_bottom(" q ends ");
    frame.render_widget(Paragraph::new(summary).block(block), head);

    let widths = [20, 10, 10, 8, 11, 11].map(Constraint::Length);
    let heading = Row::new(cells(HEADING.map(str::to_owned))).bold();
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

fn row(call: &Call) -> Row<'static> {
    let style = if call.not_ok > 0.0 { Style::new().yellow() } else { Style::new() };
    Row::new(cells(call.row())).style(style)
}

/// Numbers end in one column, whatever their length.
fn cells<const N: usize>(texts: [String; N]) -> impl Iterator<Item = Cell<'static>> {
    texts.into_iter().enumerate().map(|(column, text)| {
        let line = Line::from(text);
        Cell::from(if column == 0 { line } else { line.right_aligned() })
    })
}

fn summary(state: &State) -> Vec<Line<'static>> {
    let trouble = state.trouble.iter().map(|why| Line::from(why.clone()).red());
    let Some(board) = &state.board else {
        return trouble.chain([Line::from("looking …")]).collect();
    };
    let warnings = board.warnings.iter().map(|what| Line::from(*what).red());
    trouble.chain(warnings).chain(board.lines().into_iter().map(Line::from)).collect()
}
