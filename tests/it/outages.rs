//! What callers see while the database is away, and that the service finds back by itself. Contract §9.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Face, PASSWORD, Service,
    actor::outcome_of,
    has_postgres,
    postgres::{self, PrivatePostgres},
    skip,
};

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_the_service_says_503_within_two_seconds_and_comes_back_by_itself() {
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
    ];
    let health =
        async || outcome_of(service.anonymous().request(Method::GET, "/api/health/").send().await.unwrap()).await;
    assert_eq!(health().await.status, 200);

    server.kill_immediate().await;
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

    server.restart().await;
    let back = Instant::now();
    while user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.status != 200 {
        assert!(back.elapsed() < Duration::from_secs(5), "it did not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(health().await.status, 200);
    // Nothing was half done, and nobody was locked out.
    user.call(Face::Grpc, "AuthService.RefreshToken", calls[2].1.clone()).await.expect(200);
    user.call(Face::Grpc, "AuthService.Login", credentials).await.expect(200);
    user.call(Face::Grpc, "AuthService.Register", calls[3].1.clone()).await.expect(201);
    service.stop().await;
}
