//! The feed: what changed since a token was made counts on every replica within a second.

use std::time::Duration;

use futures_util::future::join_all;
use identity::{
    entity::user::Column,
    feed::{Entry, Feed, Verdict},
};
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{
    Actor, Face, PASSWORD, Service, Store, actor::claims, everywhere, has_postgres, on_each_store, within_a_second,
};
use crate::user::{set_flags, user_id};

/// What the service says of the actor's access token.
async fn looked_into(actor: &Actor, face: Face) -> Result<Value, u16> {
    let outcome = actor.call(face, "AuthService.VerifyToken", json!({ "token": actor.access_token })).await;
    if outcome.status == 200 { Ok(outcome.answer) } else { Err(outcome.status) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_role_counts_for_tokens_that_are_out_already() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let there = user.at(replica.address);
        let hidden = service.user("hidden@example.com").await;
        hidden.call(face, "ProfileService.UpdateMyProfile", json!({ "is_public": false })).await.expect(200);
        let look = async |actor: &Actor| {
            actor.call(face, "UserService.GetUser", json!({ "id": user_id(&hidden) })).await.status
        };
        assert_eq!((look(&user).await, look(&there).await), (404, 404));

        set_flags(service, user_id(&user), &[(Column::IsModerator, true), (Column::IsVerified, true)]).await;
        assert_eq!(look(&user).await, 200);
        within_a_second(async || look(&there).await == 200).await;
        let told = looked_into(&there, face).await.unwrap();
        assert_eq!((&told["roles"], &told["is_verified"]), (&json!(["User", "Moderator"]), &json!(true)));
        assert_eq!(told["permissions"], json!(["moderate_content", "manage_disputes"]));

        set_flags(service, user_id(&user), &[(Column::IsModerator, false)]).await;
        assert_eq!(look(&user).await, 404);
        // It is looked up already: the change counts without a wait.
        assert_eq!(look(&there).await, 404);
        replica.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_user_is_out_everywhere() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let there = user.at(replica.address);
        set_flags(service, user_id(&user), &[(Column::IsActive, false)]).await;
        assert_eq!(looked_into(&user, face).await, Err(401));
        within_a_second(async || looked_into(&there, face).await == Err(401)).await;
        for actor in [&user, &there] {
            actor.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
            let token = actor.refresh_token.clone();
            actor.call(face, "AuthService.VerifyToken", json!({ "token": token })).await.expect(401);
            actor.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await.expect(401);
            let login = json!({ "email": "user@example.com", "password": PASSWORD });
            actor.call(face, "AuthService.Login", login).await.expect(401);
        }
        replica.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_changed_an_hour_ago_is_in_the_token_itself() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        set_flags(service, user_id(&user), &[(Column::IsSeller, true)]).await;
        let login = service.login("user@example.com").await;
        assert_eq!(claims(login.access_token.as_deref().unwrap())["roles"], json!(["Seller"]));
        let refresh = json!({ "refresh_token": user.refresh_token });
        let refreshed = user.call(Face::Grpc, "AuthService.RefreshToken", refresh).await.expect(200);
        assert_eq!(claims(refreshed["access_token"].as_str().unwrap())["roles"], json!(["Seller"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_committed_late_is_not_overlooked() {
    // On SQLite rows become visible in the order of their ids.
    if !has_postgres() {
        return;
    }
    let service = Service::start(Store::Postgres).await;
    let replica = service.replica().await;
    let [early, late] = [service.user("early@example.com").await, service.user("late@example.com").await];
    let session =
        |actor: &Actor| claims(actor.access_token.as_deref().unwrap())["sid"].as_str().unwrap().parse().unwrap();
    let now = service.clock.now();
    let until = service.app.keys.last_access_expiry(now);

    let slow = service.app.db.begin().await.unwrap();
    slow.insert(Entry::inserts(&[Entry::of_session(session(&late), now, until)])).await.unwrap();
    let quick = service.app.db.begin().await.unwrap();
    quick.insert(Entry::inserts(&[Entry::of_session(session(&early), now, until)])).await.unwrap();
    quick.commit().await.unwrap();
    let (early, late) = (early.at(replica.address), late.at(replica.address));
    within_a_second(async || looked_into(&early, Face::Rest).await == Err(401)).await;
    looked_into(&late, Face::Rest).await.unwrap();

    slow.commit().await.unwrap();
    within_a_second(async || looked_into(&late, Face::Rest).await == Err(401)).await;
    replica.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_can_not_follow_the_feed_lets_nobody_in() {
    join_all(Store::all().into_iter().map(async |store| {
        let service = Service::start(store).await;
        let user = service.user("user@example.com").await;
        looked_into(&user, Face::Rest).await.unwrap();

        rename_table(&service, "revocations", "away").await;
        tokio::time::sleep(Duration::from_millis(6500)).await;
        for face in Face::ALL {
            let outcome = user.call(face, "AuthService.VerifyToken", json!({ "token": user.access_token })).await;
            assert_eq!((outcome.status, outcome.retry_after), (503, Some(1)), "{store:?} {outcome:?}");
            for rpc in ["ProfileService.GetMyProfile", "AuthService.Logout"] {
                let outcome = user.call(face, rpc, json!({})).await;
                assert_eq!(outcome.status, 503, "{store:?} {outcome:?}");
            }
            // What no feed could save is refused for what it is.
            user.with_token("nonsense").call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        }
        rename_table(&service, "away", "revocations").await;
        within_a_second(async || looked_into(&user, Face::Rest).await.is_ok()).await;
        service.stop().await;
    }))
    .await;
}

async fn rename_table(service: &Service, from: &str, to: &str) {
    let tx = service.app.db.begin().await.unwrap();
    tx.execute_unprepared(&format!("ALTER TABLE {from} RENAME TO {to}")).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_reads_neither_rows_that_ran_out_nor_those_that_were_read_long_ago() {
    on_each_store(async |service| {
        let (db, now) = (&service.app.db, service.clock.now());
        let (long_ago, in_an_hour) = (now - chrono::Duration::minutes(5), now + chrono::Duration::hours(1));
        let yesterday = now - chrono::Duration::days(1);
        let tx = db.begin().await.unwrap();
        for (user, changed_at, expires_at) in [(1, long_ago, in_an_hour), (2, now, yesterday), (3, now, in_an_hour)] {
            tx.insert(Entry::inserts(&[Entry::of_user(user, 2, changed_at, expires_at)])).await.unwrap();
        }
        tx.commit().await.unwrap();
        let feed = Feed::load(db, &service.clock).await.unwrap();
        let changed =
            |users: [i64; 3]| users.map(|user| feed.verdict(Uuid::nil(), user, long_ago).unwrap() == Verdict::Changed);
        assert_eq!(changed([1, 2, 3]), [true, false, true]);

        // Whichever row is read from now on names a user whom the feed doesn't know.
        let tx = db.begin().await.unwrap();
        tx.execute_unprepared("UPDATE revocations SET user_id = user_id + 10").await.unwrap();
        tx.commit().await.unwrap();
        feed.poll(db, &service.clock).await.unwrap();
        assert_eq!(changed([11, 12, 13]), [false, false, true]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_made_after_the_change_speaks_for_itself() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        set_flags(service, id, &[(Column::IsSeller, true)]).await;
        service.clock.advance(chrono::Duration::seconds(15));
        let fresh = service.login("user@example.com").await;
        // Behind the feed's back: whoever looks the user up sees it, whoever trusts the token doesn't.
        let tx = service.app.db.begin().await.unwrap();
        tx.execute_unprepared("UPDATE users SET is_seller = false").await.unwrap();
        tx.commit().await.unwrap();
        let roles = async |actor: &Actor| {
            let token = json!({ "token": actor.access_token });
            actor.call(Face::Rest, "AuthService.VerifyToken", token).await.expect(200)["roles"].clone()
        };
        assert_eq!(roles(&fresh).await, json!(["User", "Seller"]));
        assert_eq!(roles(&user).await, json!(["User"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_made_while_the_change_may_have_been_under_way_is_doubted() {
    on_each_store(async |service| {
        let id = user_id(&service.user("user@example.com").await);
        // A change that began now and took the eight seconds that it may: until they were over, logins read what was before.
        let (changed_at, until) = (service.clock.now(), service.clock.now() + chrono::Duration::hours(1));
        service.clock.advance(chrono::Duration::seconds(8));
        let before_its_end = service.login("user@example.com").await;
        let tx = service.app.db.begin().await.unwrap();
        tx.execute_unprepared("UPDATE users SET is_moderator = true, version = 2").await.unwrap();
        tx.commit().await.unwrap();
        service.app.feed.apply(&[Entry::of_user(id, 2, changed_at, until)]);
        let token = json!({ "token": before_its_end.access_token });
        let told = before_its_end.call(Face::Rest, "AuthService.VerifyToken", token).await.expect(200);
        assert_eq!(told["roles"], json!(["User", "Moderator"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_became_visible_while_nobody_could_poll_is_read_afterwards() {
    // Only where two transactions can be under way can a row be overtaken by one with a higher id.
    if !has_postgres() {
        return;
    }
    let service = Service::start(Store::Postgres).await;
    let (db, now) = (&service.app.db, service.clock.now());
    let until = service.app.keys.last_access_expiry(now);
    let (overtaken, overtaking) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let feed = Feed::load(db, &service.clock).await.unwrap();

    let slow = db.begin().await.unwrap();
    slow.insert(Entry::inserts(&[Entry::of_session(overtaken, now, until)])).await.unwrap();
    let quick = db.begin().await.unwrap();
    quick.insert(Entry::inserts(&[Entry::of_session(overtaking, now, until)])).await.unwrap();
    quick.commit().await.unwrap();
    feed.poll(db, &service.clock).await.unwrap();
    assert_eq!(feed.verdict(overtaking, 1, now).unwrap(), Verdict::Ended);
    slow.commit().await.unwrap();
    // Longer than each poll reads back.
    tokio::time::sleep(Duration::from_secs(11)).await;
    feed.poll(db, &service.clock).await.unwrap();
    assert_eq!(feed.verdict(overtaken, 1, now).unwrap(), Verdict::Ended);
    service.stop().await;
}
