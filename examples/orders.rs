//! A service that tokens open: HTTP by axum and gRPC by tonic on one port, behind one layer. It verifies
//! tokens itself, follows the revocations of an avouch, and ends its open answers when their token does.
//!
//! ```sh
//! cargo run --release -- serve --dev
//! avouch client create orders --audience avouch --grant watch:audience=orders --grant introspect --save orders.json --credentials avouch-data/admin-client.json
//! cargo run --release --example orders -- http://127.0.0.1:7700 http://127.0.0.1:7701 orders.json
//! curl -N -H "authorization: Bearer $(jq -r .access_token tokens.json)" http://127.0.0.1:7800/orders/live
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use avouch::client::balance::Target;
use avouch::client::identity::ClientCredential;
use avouch::client::watch::WatchSettings;
use avouch::domain::scope::Names;
use avouch::layer::VerifyLayer;
use avouch::verifier::{Requirement, VerifiedToken, Verifier, VerifierSettings};
use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use futures_util::stream;
use tokio::net::TcpListener;

/// What goes wrong is only said.
type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("say {what}"));
    let (avouch, issuer) = (next("where avouch is")?, next("who issues the tokens")?);
    let credentials = std::fs::read(next("where the credentials are")?)?;
    let verifier = verifier(&avouch, &issuer, &credentials).await?;
    let listener = TcpListener::bind("127.0.0.1:7800").await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    serve(listener, verifier).await
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, verifier: Verifier) -> Result<(), Failure> {
    let requirement = Requirement { audience: Names::new(["orders"])?, scope: Names::default() };
    let (_reporter, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(health)
        .into_axum_router()
        .merge(Router::new().route("/orders", get(orders)).route("/orders/live", get(live)))
        .layer(VerifyLayer::new(verifier, requirement));
    Ok(axum::serve(listener, routes).await?)
}

/// Follows the revocations with a token of its own, over all replicas of avouch.
pub(crate) async fn verifier(
    avouch: &str,
    issuer: &str,
    credentials: &[u8],
) -> Result<Verifier, Failure> {
    let credentials: serde_json::Value = serde_json::from_slice(credentials)?;
    let text = |name: &str| credentials[name].as_str().unwrap_or_default().to_owned();
    let own = ClientCredential::secret(text("client_id"), text("client_secret"));

    let watch =
        WatchSettings { subscriber_id: "orders".to_owned(), ..WatchSettings::new(Vec::new()) };
    let settings = VerifierSettings::new(issuer, watch);
    let verifier = Verifier::connect(Target::plaintext(avouch)?, own, "avouch", settings).await?;
    tokio::time::timeout(Duration::from_secs(30), verifier.synced()).await?;
    Ok(verifier)
}

/// The layer has verified the token; here is whose it is.
async fn orders(Extension(token): Extension<Arc<VerifiedToken>>) -> String {
    format!("the orders of {}\n", token.claims.subject)
}

/// A line a second, for as long as the token is good.
async fn live() -> Body {
    Body::from_stream(stream::unfold(0_u64, |n| async move {
        if n > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Some((Ok::<_, Infallible>(format!("order {n}\n")), n + 1))
    }))
}
