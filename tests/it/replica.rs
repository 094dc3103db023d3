//! Lists from a replica of PostgreSQL: whoever asks sees all that was committed before, whatever becomes of the replica.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::harness::{
    Actor, Face, PASSWORD, Service, has_postgres,
    postgres::{self, PrivatePostgres},
    skip, wait_until,
};

/// How soon a replica that is back, or has caught up, is read again.
const SOON: Duration = Duration::from_secs(4);
/// What a list may take when the replica is no use. The machine is busy with other tests.
const PROMPT: Duration = Duration::from_millis(1500);

/// How many lists the replica has served.
fn served(replica: &PrivatePostgres) -> usize {
    let log = replica.log();
    log.lines().filter(|line| line.contains("FROM \"users\"") && line.contains("\"email_key\"")).count()
}

/// Makes a user, and finds it in the list at once, on both faces.
async fn sees_own_write(admin: &Actor, name: &str) {
    let email = format!("{name}@example.com");
    let new = json!({ "email": email, "password": PASSWORD });
    admin.call(Face::Grpc, "UserService.CreateUser", new).await.expect(201);
    for face in Face::ALL {
        let begun = Instant::now();
        let found = admin.call(face, "UserService.ListUsers", json!({ "search": email })).await.expect(200);
        assert_eq!(found["count"], 1, "{name}");
        assert!(begun.elapsed() < PROMPT, "{name}: {:?}", begun.elapsed());
    }
}

/// Lists are read from the replica.
async fn until_served_by(replica: &PrivatePostgres, admin: &Actor) {
    wait_until(SOON, "the replica is read", async || {
        let before = served(replica);
        admin.call(Face::Rest, "UserService.ListUsers", json!({})).await.expect(200);
        served(replica) > before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_from_a_replica_misses_no_write_that_was_acknowledged() {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes PostgreSQL servers of its own, and there is no `initdb`");
    }
    let primary = PrivatePostgres::start_replicated().await;
    let replica = primary.replica().await;
    let service = Service::start_over_with(&primary.url, &[("DATABASE_READ_URL", &replica.url)]).await;
    let admin = service.admin("admin@example.com").await;

    until_served_by(&replica, &admin).await;
    let before = served(&replica);
    for n in 0..10 {
        sees_own_write(&admin, &format!("followed{n}")).await;
    }
    assert!(served(&replica) > before + 10, "most are read from the replica: {}", served(&replica) - before);

    let mut by_hand = PgConnection::connect(&replica.url).await.unwrap();
    let mut tell = async |sql: &str| {
        by_hand.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    };
    tell("SELECT pg_wal_replay_pause()").await;
    for n in 0..3 {
        sees_own_write(&admin, &format!("behind{n}")).await;
    }
    tell("SELECT pg_wal_replay_resume()").await;
    until_served_by(&replica, &admin).await;

    replica.hang().await;
    for n in 0..3 {
        sees_own_write(&admin, &format!("hung{n}")).await;
    }
    replica.wake().await;
    until_served_by(&replica, &admin).await;

    replica.kill_immediate().await;
    for n in 0..3 {
        sees_own_write(&admin, &format!("killed{n}")).await;
    }
    replica.restart().await;
    until_served_by(&replica, &admin).await;

    // Nothing that it takes in from now on is of the primary's.
    replica.promote().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for n in 0..3 {
        sees_own_write(&admin, &format!("promoted{n}")).await;
    }
    service.stop().await;
}
