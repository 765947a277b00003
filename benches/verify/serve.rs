//! A real server, for the way from `Revoke` to the refusal.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use avouch::pb::v1;
use tonic::transport::{Channel, Endpoint};
use v1::identity_service_client::IdentityServiceClient;

type Failure = Box<dyn Error + Send + Sync>;

/// The process, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it serves gRPC.
    pub(crate) url: String,
    /// Who may do everything.
    pub(crate) admin: v1::ClientAuthentication,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill() {
            eprintln!("the server is left behind: {error}");
        }
        let _reaped = self.child.wait();
    }
}

impl Server {
    /// With its data in `directory`.
    pub(crate) async fn start(directory: &Path) -> Result<Self, Failure> {
        let store = format!("--set=store.path={}", directory.display());
        let child = Command::new(env!("CARGO_BIN_EXE_avouch"))
            .args(["serve", "--dev", "--set=server.listen=127.0.0.1:0", &store])
            .args(["--set=server.public_listen=127.0.0.1:0", "--set=server.ops_listen=127.0.0.1:0"])
            .args(["--set=issuer.url=http://127.0.0.1", "--set=store.min_free_bytes=0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let addresses = directory.join("addresses.json");
        for _ in 0..600 {
            if let Ok(text) = std::fs::read(&addresses)
                && let Ok(read) = serde_json::from_slice::<serde_json::Value>(&text)
                && let Some(grpc) = read["grpc"].as_str()
            {
                let admin = std::fs::read(directory.join("admin-client.json"))?;
                let admin: serde_json::Value = serde_json::from_slice(&admin)?;
                let text = |name: &str| admin[name].as_str().unwrap_or_default().to_owned();
                let admin = v1::ClientAuthentication {
                    client_id: text("client_id"),
                    client_secret: text("client_secret"),
                };
                return Ok(Self { child, url: format!("http://{grpc}"), admin });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let server = Self { child, url: String::new(), admin: v1::ClientAuthentication::default() };
        drop(server);
        Err("the server did not come up".into())
    }

    /// A client of it.
    pub(crate) async fn identity(&self) -> Result<IdentityServiceClient<Channel>, Failure> {
        Ok(IdentityServiceClient::new(Endpoint::from_shared(self.url.clone())?.connect().await?))
    }

    /// An access token of the admin client.
    pub(crate) async fn token(
        &self,
        identity: &mut IdentityServiceClient<Channel>,
    ) -> Result<String, Failure> {
        let request = v1::AuthenticateRequest {
            client: Some(self.admin.clone()),
            grant: Some(v1::authenticate_request::Grant::ClientCredentials(
                v1::ClientCredentialsGrant {},
            )),
            ..Default::default()
        };
        let tokens = identity.authenticate(request).await?.into_inner().tokens;
        Ok(tokens.ok_or("no tokens")?.access_token)
    }
}
