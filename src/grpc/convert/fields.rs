//! Validation that finds all that is wrong with a request at once, and names fields, never values.

use std::str::FromStr;
use std::time::Duration;

use prost_types::Timestamp as ProtoTime;

use crate::domain::clock::Timestamp;
use crate::domain::scope::Names;

/// What is wrong with a request, by field.
#[derive(Debug, Default)]
pub struct Invalid(Vec<(String, String)>);

impl Invalid {
    /// One wrong field.
    pub fn one(field: &str, problem: &str) -> Self {
        Self(vec![(field.to_owned(), problem.to_owned())])
    }

    /// The wrong fields and what is wrong with them.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(field, problem)| (field.as_str(), problem.as_str()))
    }
}

/// Collects what is wrong while the fields of one request are read.
#[derive(Debug, Default)]
pub struct Fields(Invalid);

impl Fields {
    /// Says that a field is wrong.
    pub fn wrong(&mut self, field: &str, problem: impl ToString) {
        self.0.0.push((field.to_owned(), problem.to_string()));
    }

    /// What was read, if nothing was wrong. `value` is none only if something was.
    ///
    /// # Errors
    /// All that was wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Invalid> {
        match value {
            Some(value) if self.0.0.is_empty() => Ok(value),
            Some(_) => Err(self.0),
            None if self.0.0.is_empty() => Err(Invalid::one("request", "is incomplete")),
            None => Err(self.0),
        }
    }

    /// A text that is parsed; required.
    pub fn parse<T>(&mut self, field: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: ToString,
    {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(field, error);
                None
            }
        }
    }

    /// A text that is parsed unless it is empty.
    pub fn parse_optional<T>(&mut self, field: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: ToString,
    {
        if text.is_empty() { None } else { self.parse(field, text) }
    }

    /// A text for people: at most `max` bytes, and no control characters, which could forge lines in
    /// a log or a terminal.
    pub fn text(&mut self, field: &str, text: String, max: usize) -> Box<str> {
        if text.len() > max {
            self.wrong(field, format!("must be at most {max} bytes"));
        } else if text.chars().any(char::is_control) {
            self.wrong(field, "must not have control characters");
        }
        text.into()
    }

    /// A text that must be there.
    pub fn required(&mut self, field: &str, text: &str) {
        if text.is_empty() {
            self.wrong(field, "must be set");
        }
    }

    /// A list of scopes or audiences.
    pub fn names(&mut self, field: &str, names: &[String]) -> Names {
        Names::new(names).unwrap_or_else(|error| {
            self.wrong(field, error);
            Names::default()
        })
    }

    /// A duration from zero to `max`.
    pub fn duration(
        &mut self,
        field: &str,
        duration: Option<prost_types::Duration>,
        max: Duration,
    ) -> Option<Duration> {
        let duration = Duration::try_from(duration?).ok().filter(|duration| *duration <= max);
        if duration.is_none() {
            self.wrong(field, format!("must be 0 to {} s", max.as_secs()));
        }
        duration
    }

    /// The size of a page.
    pub fn page_size(&mut self, field: &str, size: i32) -> usize {
        match usize::try_from(size) {
            Ok(0) => 100,
            Ok(size) => size.min(1000),
            Err(_) => {
                self.wrong(field, "must not be negative");
                100
            }
        }
    }

    /// A value of an enum that may be unset.
    pub fn number<T>(
        &mut self,
        field: &str,
        number: i32,
        find: impl Fn(i32) -> Option<T>,
    ) -> Option<T> {
        if number == 0 {
            return None;
        }
        let found = find(number);
        if found.is_none() {
            self.wrong(field, "is not a known value");
        }
        found
    }
}

/// A moment on the wire.
pub fn time(at: Timestamp) -> ProtoTime {
    let millis = at.as_millis();
    ProtoTime {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// A duration on the wire.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

/// A moment on the wire; none for the Unix epoch, which stands for not known.
pub fn known_timestamp(at: Timestamp) -> Option<ProtoTime> {
    (at != Timestamp::default()).then(|| time(at))
}
