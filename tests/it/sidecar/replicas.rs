//! Several servers behind one name.

use avouch::app::StoreOptions;
use avouch::pb::v1 as pb;
use avouch::store::memory::SharedMemory;
use tokio::time::timeout;

use super::rig::{RULES, Said, Sidecar, until};
use crate::client::balance::{Names, WHEN_NEEDED, replicas};
use crate::harness::{Server, options};
use crate::peers::rig::{LOG, waiting};
use crate::process::PATIENCE;

/// Two servers over one memory.
async fn two() -> Vec<Server> {
    let memory = SharedMemory::new(LOG);
    let mut servers = Vec::new();
    for _ in 0..2 {
        let store = StoreOptions::Shared(memory.replica());
        servers.push(Server::with_system_clock(options(store)).await);
    }
    servers
}

#[tokio::test]
async fn it_follows_one_replica_of_many_and_another_when_that_goes() {
    let mut servers = two().await;
    let client = servers[0].powerful("sidecar").await;
    let app = servers[0].first_party("app").await;
    servers[0].add_user("ada").await;
    let token = servers[0].login(&app, "ada").await.access_token;
    // The name is not there yet when the sidecar starts.
    let names = Names::new([]);
    let sidecar = Sidecar::with(replicas(&names, WHEN_NEEDED), Some(client), RULES, &[]).await;
    names.say([servers[0].grpc, servers[1].grpc]);
    timeout(PATIENCE, sidecar.verifier.synced()).await.expect("it follows");
    assert!(sidecar.check_token("GET", "/orders", &token).await.passes());

    let followed = |server: &Server| !server.service.feed().watchers().is_empty();
    let at = servers.iter().position(followed).expect("one of them is followed");
    servers.remove(at).stop().await;
    until("the other is followed", async || followed(&servers[0])).await;
    let target = pb::revoke_request::Target::Token(token.clone());
    let answer = servers[0].identity().revoke(waiting(&app, target, 30)).await;
    let answer = answer.expect("revoked").into_inner();
    assert!(answer.wait_result.is_some_and(|it| it.complete), "{answer:?}");
    assert_eq!(sidecar.check_token("GET", "/orders", &token).await, Said::invalid_token());
}

/// In the order in which a name is answered they would all be at the same one.
#[tokio::test]
async fn sidecars_spread_over_the_replicas() {
    let servers = two().await;
    let client = servers[0].powerful("sidecar").await;
    let names = Names::new([servers[0].grpc, servers[1].grpc]);
    let followers = |server: &Server| server.service.feed().watchers().len();
    let mut sidecars = Vec::new();
    while servers.iter().any(|server| followers(server) == 0) {
        // That all these are at one is as likely as 32 coins that fall alike.
        assert!(sidecars.len() < 32, "all are at one");
        let upstream = replicas(&names, WHEN_NEEDED);
        let sidecar = Sidecar::with(upstream, Some(client.clone()), RULES, &[]).await;
        timeout(PATIENCE, sidecar.verifier.synced()).await.expect("it follows");
        sidecars.push(sidecar);
    }
}
