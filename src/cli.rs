//! The command line: what people type, how it is asked of a server over gRPC, and what they see.
//! Starting a server is a function that comes in from outside.

mod agent;
mod args;
mod backup;
mod client;
mod connection;
mod demo;
mod failure;
pub mod files;
mod follow;
mod key;
mod migrate;
pub mod offline;
mod output;
mod password;
mod place;
mod restore;
mod serve;
mod session;
mod sidecar;
mod table;
mod token;
mod top;
mod user;
mod verify_store;
mod view;
mod watch;
pub mod welcome;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::Config;
use crate::config::sidecar::SidecarConfig;
use args::Global;
use failure::Failure;
use output::Output;

pub use agent::NodeAgentOptions;
pub use serve::{ServeError, ServeOptions};
pub use sidecar::SidecarLink;

/// Short-lived tokens, rotating refresh tokens, and revocations pushed to every verifier.
#[derive(Debug, Parser)]
#[command(
    name = "avouch",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  avouch demo\n  avouch serve --dev\n  avouch login --credentials avouch-data/login-client.json --username ada \\\n      --password-file avouch-data/ada.password --save tokens.json"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    CheckConfig(serve::CheckConfig),
    Login(token::Login),
    Refresh(token::Refresh),
    Introspect(token::Introspect),
    Revoke(token::Revoke),
    Watch(watch::Watch),
    Sidecar(sidecar::Sidecar),
    NodeAgent(agent::NodeAgent),
    Top(top::Top),
    #[command(subcommand)]
    Session(session::Session),
    #[command(subcommand)]
    User(user::User),
    #[command(subcommand)]
    Client(client::Client),
    #[command(subcommand)]
    Key(key::Key),
    Backup(backup::Backup),
    Restore(restore::Restore),
    VerifyStore(verify_store::VerifyStore),
    Migrate(migrate::Migrate),
    Adopt(migrate::Adopt),
    Demo(demo::Demo),
}

impl Cli {
    /// What was typed, or the end of the program with help or with what is wrong.
    pub fn parse_or_exit() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command line, without what is of no use: how to reach a server is no question for the
/// commands that start one or need none.
fn command() -> clap::Command {
    let mut command = Cli::command();
    // Arguments of every command reach the single ones here.
    command.build();
    for name in ["adopt", "check-config", "demo", "migrate", "restore", "serve", "verify-store"] {
        command =
            command.mut_subcommand(name, |command| {
                command.mut_args(|argument| {
                    if argument.is_global_set() { argument.hide(true) } else { argument }
                })
            });
    }
    command
}

/// Does what was typed. `serve` runs a server until it is told to stop, `sidecar` a sidecar, `agent` a node
/// agent; `store` does what needs none of them.
///
/// The exit code is 0, or 1 when it failed, 2 when the command makes no sense, 64 when the
/// configuration does not; [`offline::OfflineError`] has more.
pub async fn run(
    cli: Cli,
    serve: impl AsyncFnOnce(Config, ServeOptions) -> Result<(), ServeError>,
    sidecar: impl AsyncFnOnce(SidecarConfig, SidecarLink) -> Result<(), ServeError>,
    agent: impl AsyncFnOnce(NodeAgentOptions) -> Result<(), ServeError>,
    store: impl offline::Offline,
) -> ExitCode {
    let global = &cli.global;
    let mut out = Output::new(global.json);
    let result = match cli.command {
        Command::Serve(command) => command.run(serve).await,
        Command::CheckConfig(command) => command.run(&mut out),
        Command::Login(command) => command.run(global, &mut out).await,
        Command::Refresh(command) => command.run(global, &mut out).await,
        Command::Introspect(command) => command.run(global, &mut out).await,
        Command::Revoke(command) => command.run(global, &mut out).await,
        Command::Watch(command) => command.run(global, &mut out).await,
        Command::Sidecar(command) => command.run(global, &mut out, sidecar).await,
        Command::NodeAgent(command) => command.run(global, agent).await,
        Command::Top(command) => command.run(global, &mut out).await,
        Command::Session(command) => command.run(global, &mut out).await,
        Command::User(command) => command.run(global, &mut out).await,
        Command::Client(command) => command.run(global, &mut out).await,
        Command::Key(command) => command.run(global, &mut out).await,
        Command::Backup(command) => command.run(global, &mut out).await,
        Command::Restore(command) => command.run(&store, &mut out).await,
        Command::VerifyStore(command) => command.run(&store, &mut out).await,
        Command::Migrate(command) => command.run(&store, &mut out).await,
        Command::Adopt(command) => command.run(&store, &mut out).await,
        Command::Demo(command) => command.run(&mut out).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Says on stderr why the program cannot even begin.
pub fn complain_of(error: &dyn std::error::Error) {
    output::note(&format!("error: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_well_formed_and_each_shows_an_example() {
        fn look(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("avouch "), "{path}");
            assert!(command.get_about().is_some(), "{path}");
            for sub in command.get_subcommands() {
                look(sub, &path);
            }
        }
        Cli::command().debug_assert();
        look(&Cli::command(), "");
    }

    #[test]
    fn commands_that_call_no_server_do_not_say_how_to_reach_one() {
        for (name, says) in [
            ("serve", false),
            ("check-config", false),
            ("demo", false),
            ("restore", false),
            ("verify-store", false),
            ("migrate", false),
            ("adopt", false),
            ("login", true),
            ("backup", true),
        ] {
            let mut command = command();
            let help = command.find_subcommand_mut(name).unwrap().render_help().to_string();
            assert_eq!(help.contains("--credentials"), says, "{help}");
            assert!(help.contains("--help"), "{help}");
        }
    }

    #[test]
    fn an_id_may_begin_with_a_hyphen() {
        for id in ["-abc", "-habc", "--habc"] {
            for line in [
                vec!["key", "revoke", id, "--credentials", "x"],
                vec!["key", "revoke", "--credentials", "x", id],
                vec!["session", "get", id, "--credentials", "x"],
                vec!["revoke", "--session", id, "--credentials", "x"],
            ] {
                let parsed =
                    command().try_get_matches_from([vec!["avouch"], line.clone()].concat());
                let cli = Cli::from_arg_matches(&parsed.expect("it parses")).unwrap();
                assert!(format!("{cli:?}").contains(&format!("{id:?}")), "{line:?}");
                assert!(cli.global.credentials.is_some(), "{line:?}");
            }
        }
    }

    /// clap would fill both from one argument: `introspect FILE` once called with the token in FILE.
    #[test]
    fn no_command_has_an_argument_that_is_named_like_one_of_every_command() {
        fn look(command: &clap::Command, globals: &[&str]) {
            for argument in command.get_arguments() {
                assert!(!globals.contains(&argument.get_id().as_str()), "{argument}");
            }
            command.get_subcommands().for_each(|sub| look(sub, globals));
        }
        let root = Cli::command();
        let globals: Vec<&str> = root
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.get_id().as_str())
            .collect();
        assert_eq!(globals.len(), 7);
        root.get_subcommands().for_each(|sub| look(sub, &globals));
    }
}
