//! What the README shows of the proxies is what the other tests run.

use std::path::Path;
use std::process::Command;

use crate::proxy::{ENVOY, NGINX};

const README: &str = include_str!("../../README.md");
const ISTIO: &str = include_str!("../../docs/istio.md");
/// The rules that the tests go by, from the directory of this crate.
const RULES: &str = "docs/sidecar/rules.toml";

/// `avouch sidecar` with the arguments that a document shows.
fn check<'a>(arguments: impl Iterator<Item = &'a str>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_avouch"));
    command.args(["sidecar", "--check"]).args(arguments).env_clear();
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_sidecar_takes_the_arguments_that_are_shown() {
    let pod = ISTIO.lines().filter_map(|line| line.trim().strip_prefix("- --"));
    let pod: Vec<String> = pod.map(|argument| format!("--{argument}")).collect();
    assert!(pod.iter().any(|it| it.starts_with("--ext-authz=")), "{pod:?}");
    let rules = |argument: &String| match argument.strip_prefix("--rules=") {
        Some(_) => format!("--rules={RULES}"),
        None => argument.clone(),
    };
    check(pod.iter().map(rules).collect::<Vec<_>>().iter().map(String::as_str));

    let shown = README.replace("\\\n", "");
    let shown = shown.lines().find_map(|line| line.strip_prefix("avouch sidecar "));
    let shown = shown.expect("the README shows it");
    assert!(shown.contains(RULES), "{shown}");
    check(shown.split_whitespace());
}

#[test]
fn the_readme_shows_what_runs() {
    for (language, whole) in [("yaml", ENVOY), ("nginx", NGINX)] {
        let whole = lines(whole);
        let blocks = blocks(language);
        assert!(!blocks.is_empty(), "the README shows no {language}");
        for block in blocks {
            // What is left out in between is marked.
            for piece in block.split("# …\n") {
                let piece = lines(piece);
                assert!(!piece.is_empty(), "{block}");
                let there = whole.windows(piece.len()).any(|window| window == piece);
                assert!(there, "not in docs/, or not in this order: {piece:#?}");
            }
        }
    }
}

/// The fenced blocks of the README in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("\n```{language}\n");
    README.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// The lines that mean something, however deep they are set in.
fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}
