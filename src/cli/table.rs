//! Text in columns.

/// A text from elsewhere, made safe to print: no control character reaches the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A heading and rows, each column as wide as its widest cell. Cells that are empty show as `-`.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(|&text| text.into()).collect();
    let mut widths: Vec<usize> = heading.iter().map(|text| text.chars().count()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    for row in &rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&heading).chain(&rows) {
        let mut line = String::new();
        for (width, text) in widths.iter().zip(row) {
            line.push_str(&format!("{text:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Names and values, one on a line, the values in one column. What is empty is left out.
pub(super) fn list(pairs: &[(String, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    shown().map(|(name, value)| format!("{name:<width$}  {}\n", printable(value))).collect()
}

fn cell(text: &str) -> String {
    if text.is_empty() { "-".into() } else { printable(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["ada".into(), "x".into()], vec!["b\u{1b}[2J".into(), String::new()]];
        assert_eq!(table(&["NAME", "IT"], &rows), "NAME   IT\nada    x\nb\u{fffd}[2J  -\n");
    }

    #[test]
    fn lists_leave_out_what_is_empty() {
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let text = list(&[pair("subject", "u1"), pair("none", ""), pair("id", "two\nlines")]);
        assert_eq!(text, "subject  u1\nid       two\u{fffd}lines\n");
    }
}
