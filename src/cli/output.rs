//! Where the commands print: tables and lists for eyes, JSON for pipes. The only place that does.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

use super::failure::Failure;
use super::table;

/// Prints what a command found.
#[derive(Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at it as it comes.
    pub(super) fn is_live(&self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }

    /// One thing.
    pub(super) fn record(&mut self, value: &Value) -> Result<(), Failure> {
        if self.json {
            return self.json_line(value);
        }
        let pairs: Vec<(String, String)> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect();
        self.text(&table::list(&pairs))
    }

    /// Many things of a kind, showing to eyes only the named columns.
    pub(super) fn rows(&mut self, columns: &[&str], rows: &[Value]) -> Result<(), Failure> {
        if self.json {
            return rows.iter().try_for_each(|row| self.json_line(row));
        }
        let heading: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let cells: Vec<Vec<String>> =
            rows.iter().map(|row| columns.iter().map(|name| text(&row[*name])).collect()).collect();
        self.text(&table::table(&heading, &cells))
    }

    /// One line of JSON, at once.
    pub(super) fn json_line(&mut self, value: &Value) -> Result<(), Failure> {
        self.text(&format!("{value}\n"))
    }

    /// Text as it is, at once.
    #[expect(clippy::unused_self, reason = "who may print holds an Output")]
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }
}

/// What a value looks like to eyes.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Object(object) => {
            let pairs = object.iter().filter(|(_, value)| !value.is_null());
            pairs
                .map(|(name, value)| format!("{name}={}", text(value)))
                .collect::<Vec<_>>()
                .join(" ")
        }
        Value::Number(number) => number.to_string(),
    }
}

/// Says on stderr why a command failed.
pub(super) fn complain(failure: &Failure) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "error: {failure}");
}

/// Says something on stderr that is not the result.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
