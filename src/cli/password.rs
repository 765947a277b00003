//! How a password comes in: from a file, from stdin, or from fingers; never from the command line.

use std::io::{ErrorKind, IsTerminal as _, Read as _};
use std::path::Path;

use super::failure::Failure;
use crate::config::read_secret_file;
use crate::domain::secret::SecretText;

/// The longest text that is read from stdin.
const MAX_STDIN_BYTES: u64 = 64 * 1024;

/// A secret from a file, or from stdin when the file is `-`.
pub(super) fn from_file(path: &Path) -> Result<SecretText, Failure> {
    if path != Path::new("-") {
        return Ok(read_secret_file(path)?);
    }
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_STDIN_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Failure::Other(format!("stdin cannot be read: {error}")))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(SecretText::new(text))
}

/// A password from a file, or asked for without echo; twice if it is a new one.
pub(super) fn ask(file: Option<&Path>, prompt: &str, new: bool) -> Result<SecretText, Failure> {
    if let Some(path) = file {
        return from_file(path);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to ask for the password: use --password-file".into(),
        ));
    }
    let first = prompted(prompt)?;
    if new {
        let second = prompted(&format!("{prompt} again"))?;
        if first.expose() != second.expose() {
            return Err(Failure::Other("the two passwords differ".into()));
        }
    }
    Ok(first)
}

fn prompted(prompt: &str) -> Result<SecretText, Failure> {
    rpassword::prompt_password(format!("{prompt}: ")).map(SecretText::new).map_err(|error| {
        Failure::Other(match error.kind() {
            // Ctrl-D.
            ErrorKind::UnexpectedEof => "no password was typed".into(),
            _ => format!("the password cannot be read from the terminal: {error}"),
        })
    })
}
