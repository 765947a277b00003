//! The `avouch` program: parse, run, exit code.

use std::process::ExitCode;

use avouch::cli::{self, Cli, ServeError, ServeOptions};
use avouch::config::Config;
use avouch::config::sections::LogFormat;
use avouch::telemetry;
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(cli, serve)),
        Err(error) => {
            cli::complain_of(&error);
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, _options: ServeOptions) -> Result<(), ServeError> {
    telemetry::init(config.log.format == LogFormat::Json, &config.log.level)?;
    Err("serve is not wired".into())
}
