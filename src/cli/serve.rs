//! `serve` and `check-config`.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use super::args::settings;
use super::failure::Failure;
use super::files::Addresses;
use super::output::{self, Output};
use super::welcome::{Welcome, quoted};
use crate::config::{self, Config, Sources};

/// Run the server until a signal tells it to stop.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch serve --dev\n  avouch serve --config /etc/avouch/avouch.toml\n  avouch serve --config avouch.toml --listen 0.0.0.0:7700 \\\n      --set tokens.access_lifetime=2m\n  avouch serve --config avouch.toml \\\n      --store etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch\n\nA flag goes over the environment (AVOUCH_SERVER_LISTEN), that over the file.\n`avouch check-config --reference` prints every key."
)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Settings,
}

/// Check a configuration without starting anything: exit code 0 or 64.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  avouch check-config --config avouch.toml\n  avouch check-config --config avouch.toml --without-files\n  avouch check-config --reference > avouch.toml"
)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    settings: Settings,
    /// Do not look at the files that it names, which may be on another machine.
    #[arg(long)]
    without_files: bool,
    /// Print every key with its default and what it means.
    #[arg(long)]
    reference: bool,
}

/// Where a configuration comes from.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Configuration")]
struct Settings {
    /// The configuration file, TOML.
    #[arg(long, short, env = "AVOUCH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Try things on this machine: loopback, plaintext, ./avouch-data, credentials made at the first start.
    #[arg(long)]
    dev: bool,
    /// Set any key of the configuration.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// The gRPC address [server.listen].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The address for the public keys [server.public_listen].
    #[arg(long, value_name = "ADDRESS")]
    public_listen: Option<String>,
    /// The address for health and metrics [server.ops_listen].
    #[arg(long, value_name = "ADDRESS")]
    ops_listen: Option<String>,
    /// Listen beyond loopback without TLS, because a mesh encrypts [server.plaintext_mesh].
    #[arg(long)]
    plaintext_behind_mesh: bool,
    /// The data directory, for one server [store.path].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// An etcd, for any number of servers: etcds://host:2379,host:2379,host:2379/prefix [store.url].
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The issuer's URL [issuer.url].
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// How log lines look: human or json [log.format].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or a filter [log.level].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Settings {
    fn load(self) -> Result<Config, Failure> {
        let mesh = self.plaintext_behind_mesh.then(|| "true".to_owned());
        let named = [
            ("--listen", "server.listen", self.listen),
            ("--public-listen", "server.public_listen", self.public_listen),
            ("--ops-listen", "server.ops_listen", self.ops_listen),
            ("--plaintext-behind-mesh", "server.plaintext_mesh", mesh),
            ("--data-dir", "store.path", self.data_dir),
            ("--store", "store.url", self.store),
            ("--issuer", "issuer.url", self.issuer),
            ("--log-format", "log.format", self.log_format),
            ("--log-level", "log.level", self.log_level),
        ];
        let flags = settings(named, self.set);
        let sources =
            Sources { dev: self.dev, file: self.config, environment: config::environment(), flags };
        Ok(config::load(&sources)?)
    }
}

/// A server could not start, or stopped for a reason of its own.
pub struct ServeError(Box<dyn Error + Send + Sync>);

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for ServeError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors tell their cause themselves.
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

/// What a server does for whoever started it.
pub struct ServeOptions {
    dev: bool,
    data_dir: PathBuf,
}

impl ServeOptions {
    /// Call it once, when every listener is bound: with `--dev` it prints what to type next.
    pub fn welcome(&self, addresses: Addresses, first_start: bool) {
        if self.dev {
            let data_dir = self.data_dir.clone();
            let welcome = Welcome { program: program(), addresses, data_dir, first_start };
            // A server whose stdout is closed serves all the same.
            let _ = Output::new(false).text(&welcome.text());
        }
    }
}

/// This program as the reader can call it again from where they are.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "avouch".into() };
    let here = std::env::current_dir().unwrap_or_default();
    quoted(path.strip_prefix(&here).unwrap_or(&path))
}

impl Serve {
    pub(super) async fn run(
        self,
        serve: impl AsyncFnOnce(Config, ServeOptions) -> Result<(), ServeError>,
    ) -> Result<(), Failure> {
        let config = self.settings.load()?;
        config::check_files(&config)?;
        let options = ServeOptions { dev: config.dev, data_dir: config.data_dir() };
        serve(config, options).await.map_err(|error| Failure::Other(error.to_string()))
    }
}

impl CheckConfig {
    pub(super) fn run(self, out: &mut Output) -> Result<(), Failure> {
        if self.reference {
            return out.text(&config::reference());
        }
        let file = self.settings.config.clone();
        let config = self.settings.load()?;
        if !self.without_files {
            config::check_files(&config)?;
        }
        output::note(&format!(
            "{} is good",
            file.as_deref().map_or("the configuration".into(), Path::to_string_lossy)
        ));
        out.text(&format!("{}\n", config.summary()))
    }
}
