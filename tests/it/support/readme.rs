//! Examples that the README shows: they compile, they work, and they are the ones that it shows.

/// The README must have the part of `source` between the two comments that name `example`.
#[track_caller]
pub(crate) fn assert_shown(source: &str, example: &str) {
    let (begin, end) =
        (format!("// README: begin {example}\n"), format!("// README: end {example}"));
    let (_, rest) = source.split_once(&begin).expect("its beginning");
    let (lines, _) = rest.split_once(&end).expect("its end");
    let dedented: Vec<_> = lines.lines().map(|it| it.strip_prefix("    ").unwrap_or(it)).collect();
    let shown = format!("```rust\n{}\n```\n", dedented.join("\n").trim_end());
    assert!(include_str!("../../../README.md").contains(&shown), "not in the README:\n{shown}");
}
