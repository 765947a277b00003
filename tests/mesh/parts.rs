//! Where the programs are that the tests run and that are not avouch.

use std::path::{Path, PathBuf};

/// `ip` of iproute2.
pub(crate) fn ip() -> PathBuf {
    found("ip", &["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
}

fn found(name: &str, directories: &[&str]) -> PathBuf {
    let places = directories.iter().map(|directory| Path::new(directory).join(name));
    let program = places.into_iter().find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("no {name} in {directories:?}: tests/run gets it"))
}
