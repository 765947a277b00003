//! The `avouch` program.

use avouch::config::{Sources, environment, load};

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // There is nobody to tell if this fails.
            let _ = writeln!(std::io::stderr(), "avouch: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let flags = std::env::args().skip(2).filter_map(|flag| {
        let (key, value) = flag.strip_prefix("--set=")?.split_once('=')?;
        Some(("--set".to_owned(), key.to_owned(), value.to_owned()))
    });
    let sources =
        Sources { dev: true, file: None, environment: environment(), flags: flags.collect() };
    let config = load(&sources)?;
    avouch::telemetry::init(false, &config.log.level)?;
    avouch::app::serve::serve(config, |_| {}).await?;
    Ok(())
}
