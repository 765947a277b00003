//! The example of the README: it compiles, it works, and it is the one that the README shows.

use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use tonic::transport::Channel;

use crate::harness::{Server, memory, options};
use crate::support::readme::assert_shown;

type Authorized = avouch::client::authorization::Authorized<Channel>;

#[rustfmt::skip]
async fn shown(
    url: &str, id: &str, secret: &str, channel: Channel,
) -> Result<(Authorized, String), Box<dyn std::error::Error>> {
    // README: begin client
    use std::sync::Arc;
    use avouch::client::{authorization::*, balance::*, identity::*, token_source::*};
    use avouch::{crypto::OsEntropy, domain::clock::SystemClock};
    use tower_layer::Layer as _;

    let (entropy, clock) = (Arc::new(OsEntropy), Arc::new(SystemClock::default()));
    let (target, every) = (Target::plaintext(url)?, BalanceSettings::default());
    let replicas = Replicas::start(target, Arc::new(SystemResolver), every, entropy.clone());
    let avouch = Identity::new(replicas, ClientCredential::secret(id, secret), entropy.clone());
    let login = Login::client_credentials().for_audiences(["orders"]);
    let tokens = TokenSource::client_credentials(avouch.clone(), login, clock, entropy);
    let orders = AuthorizationLayer::new(tokens.clone()).layer(channel); // for any generated client
    let token = tokens.token().await?; // for anything else: token.header()
    let claims = avouch.introspect(token.secret().clone()).await?; // None if it is no longer good
    // README: end client
    Ok((orders, claims.expect("it is good").client_id))
}

#[tokio::test]
async fn the_example_of_the_readme_works_and_is_this_one() {
    assert_shown(include_str!("example.rs"), "client");

    let server = Server::with_system_clock(options(memory())).await;
    let app = server.first_party("app").await;
    // By a name that the system resolves.
    let url = format!("http://localhost:{}", server.grpc.port());
    let shown = shown(&url, &app.client_id, &app.client_secret, server.channel.clone());
    let (orders, client_id) = shown.await.expect("it works");
    assert_eq!(client_id, "app");
    let mut orders = IdentityServiceClient::new(orders);
    let keys = orders.get_key_set(avouch::pb::v1::GetKeySetRequest {}).await;
    assert!(!keys.expect("keys").into_inner().keys.is_empty());
    server.stop().await;
}
