//! What callers see while the database is away (503 within two seconds, never 401), and that the service finds back by
//! itself. `docs/operations.md` has the table of it, under "When something breaks".

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use reqwest::Method;
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use url::Url;

use crate::{
    harness::{
        Actor, Face, PASSWORD, Service,
        actor::outcome_of,
        has_postgres, on_each_store,
        postgres::{self, PrivatePostgres},
        skip,
    },
    user::user_id,
};

/// How soon gRPC's health knows.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);

/// What gRPC's health says of the service as a whole and of each of its services: it is the same.
async fn grpc_health(of: &Actor) -> ServingStatus {
    let mut client = HealthClient::new(of.channel.clone());
    let services =
        ["AuthService", "UserService", "ProfileService", "RoleService"].map(|name| format!("identity.v1.{name}"));
    let mut said = Vec::new();
    for service in services.into_iter().chain([String::new()]) {
        said.push(client.check(HealthCheckRequest { service }).await.unwrap().into_inner().status());
    }
    // One that changes between two questions is asked again.
    if said.iter().any(|status| *status != said[0]) { ServingStatus::Unknown } else { said[0] }
}

async fn until_grpc_health_is(wanted: ServingStatus, of: &Actor) {
    let since = Instant::now();
    while grpc_health(of).await != wanted {
        assert!(since.elapsed() < KNOWN_WITHIN, "gRPC's health is not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_health_says_when_the_database_is_away() {
    on_each_store(async |service| {
        let anyone = service.anonymous();
        assert_eq!(grpc_health(&anyone).await, ServingStatus::Serving);
        service.app.db.close().await;
        until_grpc_health_is(ServingStatus::NotServing, &anyone).await;
    })
    .await;
}

/// How the database can be away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Killed,
    /// It takes connections and answers nothing.
    Hung,
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_the_service_says_503_within_two_seconds_and_comes_back_by_itself() {
    goes_and_comes(Way::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_database_hangs_the_service_says_503_within_two_seconds_and_comes_back_by_itself() {
    goes_and_comes(Way::Hung).await;
}

async fn goes_and_comes(way: Way) {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes a PostgreSQL server of its own, and there is no `initdb`");
    }
    let server = PrivatePostgres::start().await;
    let service = Service::start_over(&server.url).await;
    let user = service.user("user@example.com").await;
    let credentials = json!({ "email": "user@example.com", "password": PASSWORD });
    let calls = [
        ("ProfileService.GetMyProfile", json!({})),
        ("AuthService.Login", credentials.clone()),
        ("AuthService.RefreshToken", json!({ "refresh_token": user.refresh_token })),
        ("AuthService.Register", json!({ "email": "new@example.com", "password": PASSWORD })),
        ("AuthService.Logout", json!({})),
        ("UserService.ListUsers", json!({})),
        ("ProfileService.UpdateMyProfile", json!({ "bio": "Hello", "update_mask": "bio" })),
    ];
    let health =
        async || outcome_of(service.anonymous().request(Method::GET, "/api/health/").send().await.unwrap()).await;
    assert_eq!(health().await.status, 200);
    let mut watched = HealthClient::new(user.channel.clone())
        .watch(HealthCheckRequest { service: String::new() })
        .await
        .unwrap()
        .into_inner()
        .map(|said| said.unwrap().status());
    assert_eq!(watched.next().await, Some(ServingStatus::Serving));

    // Of the calls of that moment some wait for a connection, some for an answer.
    let calls_of_the_moment = (0..24).map(async |n| {
        let (rpc, fields) = &calls[[0, 5, 6][n % 3]];
        loop {
            let started = Instant::now();
            let outcome = user.call(Face::ALL[n % 2], rpc, fields.clone()).await;
            if outcome.status != 200 {
                return (rpc, outcome, started, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let away = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        match way {
            Way::Killed => server.kill_immediate().await,
            Way::Hung => server.hang().await,
        }
        Instant::now()
    };
    let (outcomes, away_at) = tokio::join!(join_all(calls_of_the_moment), away);
    for (rpc, outcome, started, ended) in outcomes {
        let took = ended.saturating_duration_since(started.max(away_at));
        assert_eq!(outcome.status, 503, "{rpc} of that moment: {outcome:?}");
        assert!(took < Duration::from_millis(2200), "{rpc} of that moment: {took:?}");
    }
    until_grpc_health_is(ServingStatus::NotServing, &user).await;
    assert_eq!(watched.next().await, Some(ServingStatus::NotServing));
    // At first each call finds out by itself; once the revocations are too old to be trusted, tokens are refused unread.
    for moment in ["at once", "after the revocations are stale"] {
        let each = calls.iter().flat_map(|call| Face::ALL.map(|face| (call, face)));
        let all_at_once = each.map(async |((rpc, fields), face)| {
            let started = Instant::now();
            let outcome = user.call(face, rpc, fields.clone()).await;
            let took = started.elapsed();
            assert_eq!(outcome.status, 503, "{rpc} {moment}: {outcome:?}");
            assert!(outcome.retry_after.is_some(), "{rpc} {moment}: {outcome:?}");
            assert!(took < Duration::from_millis(2200), "{rpc} {moment}: {took:?}");
        });
        join_all(all_at_once).await;
        assert_eq!(health().await.status, 503);
        tokio::time::sleep(Duration::from_secs(4)).await;
    }

    match way {
        Way::Killed => server.restart().await,
        Way::Hung => server.wake().await,
    }
    let back = Instant::now();
    while user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.status != 200 {
        assert!(back.elapsed() < Duration::from_secs(2), "it did not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(health().await.status, 200);
    until_grpc_health_is(ServingStatus::Serving, &user).await;
    assert_eq!(watched.next().await, Some(ServingStatus::Serving));
    // Nothing was half done, and nobody was locked out.
    user.call(Face::Grpc, "AuthService.RefreshToken", calls[2].1.clone()).await.expect(200);
    user.call(Face::Grpc, "AuthService.Login", credentials).await.expect(200);
    user.call(Face::Grpc, "AuthService.Register", calls[3].1.clone()).await.expect(201);
    service.stop().await;
    // It said that it goes, and let go.
    assert_eq!(watched.next().await, Some(ServingStatus::NotServing));
    assert_eq!(watched.next().await, None);
}

/// A way to a server. Connections made before it is cut stay open and carry nothing any more, as when a machine in between
/// forgets them; those made later are fine.
struct Relay {
    port: u16,
    cut: watch::Sender<u32>,
}

impl Relay {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        // Held open until the relay goes.
                        _ = cuts.changed() => while cuts.changed().await.is_ok() {},
                    }
                });
            }
        });
        Self { port, cut }
    }

    fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_lost_without_a_word_are_replaced() {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes a PostgreSQL server of its own, and there is no `initdb`");
    }
    let server = PrivatePostgres::start().await;
    let mut url = Url::parse(&server.url).unwrap();
    let relay = Relay::to(url.port().unwrap()).await;
    url.set_port(Some(relay.port)).unwrap();
    let service = Service::start_over(url.as_str()).await;
    let user = service.user("user@example.com").await;
    // Of what is kept in memory nothing would be asked of the database.
    let ids = json!({ "ids": [user_id(&user)] });
    let look = async || user.call(Face::Grpc, "UserService.BatchGetUsers", ids.clone()).await;

    // All connections are busy at the moment, so that none is tried before it is used.
    let busy = async || {
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && look().await.status == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let cut = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        relay.cut();
        Instant::now()
    };
    let (_, cut_at) = tokio::join!(join_all((0..32).map(|_| busy())), cut);
    // One is found out after the other: until all at once are served.
    while join_all((0..32).map(|_| look())).await.iter().any(|outcome| outcome.status != 200) {
        assert!(cut_at.elapsed() < Duration::from_secs(15), "the lost connections are still used");
    }
    eprintln!("served again after {:?}", cut_at.elapsed());

    // Those that rest are tried first: nobody notices.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    relay.cut();
    for outcome in join_all((0..4).map(|_| look())).await {
        outcome.expect(200);
    }
    service.stop().await;
}
