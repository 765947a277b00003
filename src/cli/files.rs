//! The files that avouch writes for people and reads again: credentials, tokens, addresses. Mode
//! 0600 each, and replaced whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::{SecretFileError, read_secret_file};
use crate::domain::secret::SecretText;

/// The admin client that the first start makes, in the data directory.
pub const ADMIN_CLIENT: &str = "admin-client.json";
/// The first-party client that the first start with `--dev` makes.
pub const LOGIN_CLIENT: &str = "login-client.json";
/// The user that the first start with `--dev` makes.
pub const DEV_USER: &str = "ada";
/// That user's password.
pub const DEV_PASSWORD: &str = "ada.password";
/// Where a running server can be reached.
pub const ADDRESSES: &str = "addresses.json";

/// Why a file does not hold what it should. It never shows what it does hold.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read, or others can read it.
    #[error("{0}")]
    Secret(#[from] SecretFileError),
    /// It is not of the expected form.
    #[error("{0} does not hold {1}")]
    Form(PathBuf, &'static str),
}

/// A client's id and secret.
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    /// The client's id.
    pub client_id: String,
    /// Its secret; `None` for a public client.
    pub client_secret: Option<SecretText>,
}

impl ClientCredentials {
    /// Reads `{"client_id": …, "client_secret": …}`.
    ///
    /// # Errors
    /// When the file cannot be read, others can read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let form = || FileError::Form(path.into(), "JSON with client_id and client_secret");
        let value = read_json(path)?.ok_or_else(form)?;
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            client_id: field("client_id").ok_or_else(form)?,
            client_secret: field("client_secret").map(SecretText::new),
        })
    }

    /// Writes the same.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let secret = self.client_secret.as_ref().map(SecretText::expose);
        write_json(path, &json!({ "client_id": self.client_id, "client_secret": secret }))
    }
}

/// Where a running server can be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// The public keys and the metadata.
    pub public: SocketAddr,
    /// Health and metrics.
    pub ops: SocketAddr,
}

impl Addresses {
    /// Writes them to `addresses.json` in `dir`, with the number of this process, by which whoever
    /// waits for a server tells its file from one that an earlier server left.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let Self { grpc, public, ops } = self;
        let pid = std::process::id();
        let value = json!({ "grpc": grpc, "public": public, "ops": ops, "pid": pid });
        write_json(&dir.join(ADDRESSES), &value)
    }

    /// Reads them from `addresses.json` in `dir`.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn read(dir: &Path) -> Result<Self, FileError> {
        let path = dir.join(ADDRESSES);
        let form = || FileError::Form(path.clone(), "JSON with the addresses of a server");
        let value = read_json(&path)?.ok_or_else(form)?;
        let field =
            |name: &str| value.get(name).and_then(Value::as_str).and_then(|text| text.parse().ok());
        Ok(Self {
            grpc: field("grpc").ok_or_else(form)?,
            public: field("public").ok_or_else(form)?,
            ops: field("ops").ok_or_else(form)?,
        })
    }
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>, SecretFileError> {
    Ok(serde_json::from_str(read_secret_file(path)?.expose()).ok())
}

pub(super) fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    write_private(path, &format!("{value:#}\n"))
}

/// Puts a whole new file with mode 0600 in the place of the old one, for good. A reader sees the old
/// or the new, and after a crash one of them is there.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| match path.parent() {
            Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
            Some(_) | None => Ok(()),
        });
    if written.is_err() {
        // The error to report is the first one.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_are_private_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ADMIN_CLIENT);
        std::fs::write(&path, "old").unwrap();
        let secret = Some(SecretText::new("s3cret".into()));
        let credentials = ClientCredentials { client_id: "admin".into(), client_secret: secret };
        credentials.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let back = ClientCredentials::read(&path).unwrap();
        assert_eq!(back.client_id, "admin");
        assert_eq!(back.client_secret.unwrap().expose(), "s3cret");
        assert!(!format!("{credentials:?}").contains("s3cret"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { grpc: address(1), public: address(2), ops: address(3) };
        addresses.write(dir.path()).unwrap();
        assert_eq!(Addresses::read(dir.path()).unwrap(), addresses);
    }

    #[test]
    fn an_error_does_not_show_what_the_file_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        write_private(&path, "s3cret").unwrap();
        let error = ClientCredentials::read(&path).unwrap_err();
        assert!(error.to_string().ends_with("does not hold JSON with client_id and client_secret"));
    }
}
