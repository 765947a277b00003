//! Files that hold secrets: read only when nobody else can.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::domain::secret::SecretText;

const MAX_BYTES: u64 = 64 * 1024;

/// Why a file with a secret was not read. It never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// Others can read or change it.
    #[error("{0} can be read or changed by others: run chmod 600 {0}")]
    Exposed(PathBuf),
    /// It cannot be read.
    #[error("{0} cannot be read: {1}")]
    Io(PathBuf, #[source] std::io::Error),
    /// It is not text, or far too long to be a secret.
    #[error("{0} does not hold one short text")]
    NotText(PathBuf),
}

/// Whether only its owner can use a file with this mode. Kubernetes gives the files of a mounted
/// secret to root and lets the pod's group read them; such a file has no other reader either.
fn is_private(mode: u32, owner: u32) -> bool {
    let forbidden = if owner == 0 { 0o037 } else { 0o077 };
    mode & forbidden == 0
}

/// Opens a file with a secret, after looking at who else could.
fn open(path: &Path) -> Result<File, SecretFileError> {
    let io = |error| SecretFileError::Io(path.into(), error);
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(SecretFileError::NotText(path.into()));
    }
    if is_private(meta.mode(), meta.uid()) {
        Ok(file)
    } else {
        Err(SecretFileError::Exposed(path.into()))
    }
}

/// Checks that a file with a secret can be read, and by nobody else.
///
/// # Errors
/// As for [`read_secret_file`].
pub(super) fn check(path: &Path) -> Result<(), SecretFileError> {
    open(path).map(drop)
}

/// The text in a file with a secret, without the line end that an editor adds.
///
/// # Errors
/// When it cannot be read, when others could read or change it, or when it is not text.
pub fn read_secret_file(path: &Path) -> Result<SecretText, SecretFileError> {
    let file = open(path)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| {
        if error.kind() == std::io::ErrorKind::InvalidData {
            SecretFileError::NotText(path.into())
        } else {
            SecretFileError::Io(path.into(), error)
        }
    })?;
    if text.len() as u64 > MAX_BYTES {
        return Err(SecretFileError::NotText(path.into()));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(SecretText::new(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "correct horse\r\n").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o644, false), (0o620, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_secret_file(&path).is_ok(), good, "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_secret_file(&path).unwrap().expose(), "correct horse");
    }

    #[test]
    fn only_a_file_of_root_may_be_read_by_its_group() {
        assert!(is_private(0o440, 0));
        assert!(!is_private(0o440, 1000));
        assert!(!is_private(0o444, 0));
    }
}
