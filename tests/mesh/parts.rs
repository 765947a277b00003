//! Where the programs are that the tests run and that are not avouch.

use std::path::{Path, PathBuf};

/// Envoy as `tests/run` gets it from PyPI: the program itself, not the script that starts it.
pub(crate) fn envoy() -> PathBuf {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/python/lib");
    let versions = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    versions
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("no Envoy under {}: tests/run gets it", lib.display()))
}

/// nginx as Debian installs it, or as `tests/run` unpacks it.
pub(crate) fn nginx() -> PathBuf {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/nginx/usr/sbin");
    found("nginx", &["/usr/sbin", unpacked])
}

/// `ip` of iproute2.
pub(crate) fn ip() -> PathBuf {
    found("ip", &["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
}

fn found(name: &str, directories: &[&str]) -> PathBuf {
    let places = directories.iter().map(|directory| Path::new(directory).join(name));
    let program = places.into_iter().find(|program| program.is_file());
    program.unwrap_or_else(|| panic!("no {name} in {directories:?}: tests/run gets it"))
}
