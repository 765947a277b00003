//! Single values: how each kind is read from text and shown again. A value from a file, from the
//! environment and from a flag goes through the same function.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::key::Algorithm;

/// A kind of value.
pub(crate) trait Value: Sized {
    /// Reads it. The error says what is expected; it never repeats the text.
    fn read(text: &str) -> Result<Self, String>;

    /// Shows it so that `read` gives it back; empty when it is not set.
    fn show(&self) -> String;
}

impl Value for bool {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("must be true or false".into()),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_number {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("must be a whole number, 0 to {}", Self::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

whole_number! { u32 u64 usize }

impl Value for NonZeroU32 {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("must be a whole number, 1 to {}", Self::MAX))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.to_owned()) }
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("must be a path".into()) } else { Ok(text.into()) }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| "must be an IP address and a port, 127.0.0.1:7700 or [::]:7700".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Algorithm {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::domain::key::UnknownAlgorithm| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Nothing, or a value. Empty text means nothing, so that the environment can unset what a file set.
impl<T: Value> Value for Option<T> {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::read(text).map(Some) }
    }

    fn show(&self) -> String {
        self.as_ref().map(Value::show).unwrap_or_default()
    }
}

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Value for Duration {
    /// A sum of numbers with units: `300s`, `5m`, `1h30m`, `250ms`, `7d`; or plain `0`.
    fn read(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "must be a duration such as 250ms, 10s, 5m, 12h or 30d";
        if text == "0" {
            return Ok(Self::ZERO);
        }
        let mut rest = text;
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or(EXPECTED)?.1;
            let number: u64 = number.parse().map_err(|_| EXPECTED)?;
            let part = number.checked_mul(scale).ok_or(EXPECTED)?;
            millis = millis.checked_add(part).ok_or(EXPECTED)?;
            rest = tail;
        }
        if text.is_empty() { Err(EXPECTED.into()) } else { Ok(Self::from_millis(millis)) }
    }

    fn show(&self) -> String {
        let millis = self.as_millis();
        let unit = UNITS.iter().find(|(_, scale)| millis.is_multiple_of(u128::from(*scale)));
        match unit {
            Some((name, scale)) if millis > 0 => format!("{}{name}", millis / u128::from(*scale)),
            _ => "0s".into(),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The number, for what counts in `usize`; saturates.
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZES: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Value for Bytes {
    fn read(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "must be a size such as 16KiB, 64MiB or 1GiB, or a number of bytes";
        let (digits, scale) = SIZES
            .iter()
            .find_map(|(name, scale)| Some((text.strip_suffix(name)?, *scale)))
            .unwrap_or((text, 1));
        let number: u64 = digits.trim_end().parse().map_err(|_| EXPECTED)?;
        number.checked_mul(scale).map(Self).ok_or_else(|| EXPECTED.into())
    }

    fn show(&self) -> String {
        match SIZES.iter().find(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale)) {
            Some((name, scale)) => format!("{}{name}", self.0 / scale),
            None => self.0.to_string(),
        }
    }
}

/// Declares an enumeration by the words that people type for it.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $crate::config::value::Value for $name {
            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("must be one of: {}", [$($word),+].join(", "))),
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $word.into(),)+
                }
            }
        }
    };
}

pub(crate) use choice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis, shown) in [
            ("300s", 300_000, "5m"),
            ("1h30m", 5_400_000, "90m"),
            ("250ms", 250, "250ms"),
            ("7d", 604_800_000, "7d"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
        ] {
            let read = Duration::read(text).unwrap();
            assert_eq!(read, Duration::from_millis(millis), "{text}");
            assert_eq!(read.show(), shown);
            assert_eq!(Duration::read(shown).unwrap(), read);
        }
        for text in ["", "5", "m", "5 m", "-1s", "1.5h", "5M", "99999999999999999999d", "5mm"] {
            assert!(Duration::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("1024", 1024, "1KiB"),
            ("1000", 1000, "1000"),
            ("0", 0, "0"),
        ] {
            assert_eq!(Bytes::read(text), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).show(), shown);
        }
        for text in ["", "MiB", "64MB", "-1", "99999999999GiB"] {
            assert!(Bytes::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn empty_text_unsets_what_may_be_unset() {
        assert_eq!(Option::<PathBuf>::read(""), Ok(None));
        assert!(PathBuf::read("").is_err());
    }
}
