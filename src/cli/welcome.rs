//! What `serve --dev` says once it listens: where it is, and what to type next. A pure function from
//! the facts to the text.

use std::path::{Path, PathBuf};

use super::files::{ADMIN_CLIENT, Addresses, DEV_PASSWORD, DEV_USER, LOGIN_CLIENT};

/// The facts.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// The program as the reader can call it.
    pub program: String,
    /// Where the server listens.
    pub addresses: Addresses,
    /// The data directory, as it was given.
    pub data_dir: PathBuf,
    /// Whether this was the first start, which made the credentials.
    pub first_start: bool,
}

impl Welcome {
    /// The text.
    pub fn text(&self) -> String {
        let Addresses { grpc, public, ops } = self.addresses;
        let file = |name: &str| quoted(&self.data_dir.join(name));
        let (admin, login, password) = (file(ADMIN_CLIENT), file(LOGIN_CLIENT), file(DEV_PASSWORD));
        let program = match grpc.port() {
            7700 if grpc.ip() == std::net::Ipv4Addr::LOCALHOST => self.program.clone(),
            _ => format!("{} --server http://{grpc}", self.program),
        };
        let made = if self.first_start { "made just now" } else { "made at the first start" };
        let secure = "This server is for trying things: plaintext, on this machine only.";
        format!(
            "avouch is ready. {secure}\n\
             \n\
             \x20 gRPC         {grpc}\n\
             \x20 public keys  http://{public}/.well-known/jwks.json\n\
             \x20 health       http://{ops}/readyz\n\
             \x20 metrics      http://{ops}/metrics\n\
             \x20 data         {data}, with the credentials {made}, mode 0600\n\
             \n\
             Next, in another terminal:\n\
             \n\
             # log {user} in and keep the tokens\n\
             {program} login --credentials {login} --username {user} --password-file {password} --save tokens.json\n\
             # is the access token good?\n\
             {program} introspect tokens.json --credentials {admin}\n\
             # exchange the refresh token for new tokens\n\
             {program} refresh tokens.json --credentials {login}\n\
             # watch revocations arrive (leave it running, use a third terminal for what follows)\n\
             {program} watch --credentials {admin}\n\
             # take the session back, and see the token refused\n\
             {program} revoke --token-file tokens.json --reason logout --credentials {login}\n\
             {program} introspect tokens.json --credentials {admin}\n",
            data = self.data_dir.display(),
            user = DEV_USER,
        )
    }
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let text = text.strip_prefix("./").unwrap_or(&text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn welcome(port: u16, dir: &str) -> String {
        let address = |offset| SocketAddr::from(([127, 0, 0, 1], port + offset));
        Welcome {
            program: "target/release/avouch".into(),
            addresses: Addresses { grpc: address(0), public: address(1), ops: address(2) },
            data_dir: dir.into(),
            first_start: true,
        }
        .text()
    }

    #[test]
    fn the_first_command_can_be_pasted() {
        let text = welcome(7700, "./avouch-data");
        let login = "\ntarget/release/avouch login --credentials avouch-data/login-client.json --username ada --password-file avouch-data/ada.password --save tokens.json\n";
        assert!(text.contains(login), "{text}");
        assert!(text.contains("http://127.0.0.1:7701/.well-known/jwks.json"));
    }

    #[test]
    fn every_command_is_one_that_exists() {
        for port in [7700, 9000] {
            let text = welcome(port, "./avouch-data");
            let commands = text.lines().filter(|line| line.starts_with("target/"));
            assert_eq!(commands.clone().count(), 6);
            for command in commands {
                assert_eq!(command.contains("--server http://127.0.0.1:9000"), port == 9000);
                Cli::try_parse_from(command.split(' ')).unwrap();
            }
        }
    }

    #[test]
    fn a_path_with_a_space_is_quoted() {
        assert!(welcome(7700, "/tmp/my data").contains("'/tmp/my data/login-client.json'"));
    }
}
