//! The `avouch` program: parse, run, exit code.

use std::process::ExitCode;
use std::time::Duration;

use avouch::app;
use avouch::cli::files::Addresses;
use avouch::cli::{self, Cli, NodeAgentOptions, ServeError, ServeOptions, SidecarLink};
use avouch::config::Config;
use avouch::config::sections::LogFormat;
use avouch::config::sidecar::SidecarConfig;
use avouch::telemetry;

fn main() -> ExitCode {
    let cli = Cli::parse_or_exit();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code =
                runtime.block_on(cli::run(cli, serve, sidecar, node_agent, app::offline::Files));
            // What still waits for a disk or a peer must not hold up the end.
            runtime.shutdown_timeout(Duration::from_secs(1));
            code
        }
        Err(error) => {
            cli::complain_of(&error);
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config, options: ServeOptions) -> Result<(), ServeError> {
    telemetry::init(config.log.format == LogFormat::Json, &config.log.level)?;
    let started = |started: &app::serve::Started| {
        if let (Some(public), Some(ops)) = (started.public, started.ops) {
            let addresses = Addresses { grpc: started.grpc, public, ops };
            options.welcome(addresses, started.made.admin_client.is_some());
        }
    };
    Ok(app::serve::serve(config, started).await?)
}

async fn sidecar(config: SidecarConfig, link: SidecarLink) -> Result<(), ServeError> {
    telemetry::init(config.log.format == LogFormat::Json, &config.log.level)?;
    let SidecarLink { server, client } = link;
    Ok(app::sidecar::serve(app::sidecar::SidecarOptions { config, server, client }).await?)
}

async fn node_agent(options: NodeAgentOptions) -> Result<(), ServeError> {
    telemetry::init(options.log_json, &options.log_level)?;
    let NodeAgentOptions { listen, server, .. } = options;
    let options = app::agent::AgentOptions {
        socket_mode: options.socket_mode,
        ops: options.ops,
        client: options.client,
        name: options.name,
        max_entries: options.max_entries,
        max_neighbours: options.max_neighbours,
        drain_timeout: options.drain_timeout,
        ..app::agent::AgentOptions::new(listen, server)
    };
    Ok(app::agent::serve(options).await?)
}
