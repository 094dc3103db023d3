//! Housekeeping: what ran out goes, and nothing else does.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use identity::{
    domain::housekeeping::Swept,
    entity::{
        audit_event,
        outbox::{self, State},
        revocation, session, verification_code,
    },
};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait, IntoActiveModel, PaginatorTrait};
use serde_json::json;
use uuid::Uuid;

use crate::harness::{Actor, Face, Service, Store, on_each_store, wait_until};

async fn refresh(user: &Actor) -> u16 {
    user.call(Face::Rest, "AuthService.RefreshToken", json!({ "refresh_token": user.refresh_token })).await.status
}

/// So many audit rows of this age.
async fn insert_audit_rows(service: &Service, count: usize, created_at: DateTime<Utc>) {
    let row = audit_event::ActiveModel {
        kind: Set("test".into()),
        actor_id: Set(None),
        user_id: Set(None),
        ip: Set(None),
        user_agent: Set(None),
        request_id: Set(None),
        detail: Set("{}".into()),
        created_at: Set(created_at),
        ..Default::default()
    };
    let tx = service.app.db.begin().await.unwrap();
    for chunk in vec![row; count].chunks(500) {
        audit_event::Entity::insert_many(chunk.to_vec()).exec(&tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn count<E: EntityTrait>(service: &Service) -> u64
where
    for<'db> sea_orm::Select<E>: PaginatorTrait<'db, identity::db::Pool>,
{
    E::find().count(service.app.db.reader()).await.unwrap()
}

/// What is left: sessions, codes, revocations, messages.
async fn left(service: &Service) -> [u64; 4] {
    [
        count::<session::Entity>(service).await,
        count::<verification_code::Entity>(service).await,
        count::<revocation::Entity>(service).await,
        count::<outbox::Entity>(service).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_stays_for_its_time_and_then_goes() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        service.mails_to("user@example.com", 1).await;
        user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        // The mail is written down as sent a moment after it is.
        wait_until(Duration::from_secs(5), "the settling", async || {
            outbox::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap().state == State::Sent
        })
        .await;
        let began = service.clock.now();
        let sweep = async |after: TimeDelta| {
            service.set_clock(began + after);
            service.app.sweep().await.unwrap()
        };
        let none = Swept::default();
        assert_eq!((sweep(TimeDelta::zero()).await, left(service).await), (none, [1, 1, 1, 1]));
        // An access token lives for an hour, and the revocation that outlives it for another.
        assert_eq!(sweep(TimeDelta::minutes(119)).await, none);
        assert_eq!(sweep(TimeDelta::minutes(125)).await, Swept { revocations: 1, ..none });
        assert_eq!(sweep(TimeDelta::hours(23)).await, none);
        assert_eq!(sweep(TimeDelta::hours(25)).await, Swept { messages: 1, ..none });
        // A refresh token lives for a week, and its session for a day more.
        assert_eq!(sweep(TimeDelta::hours(8 * 24 - 1)).await, none);
        assert_eq!(sweep(TimeDelta::hours(8 * 24 + 1)).await, Swept { sessions: 1, ..none });
        assert_eq!(sweep(TimeDelta::days(30)).await, none);
        assert_eq!(sweep(TimeDelta::days(32)).await, Swept { codes: 1, ..none });
        assert_eq!(left(service).await, [0, 0, 0, 0]);
        // Registered and logged out.
        assert_eq!(sweep(TimeDelta::days(364)).await, none);
        assert_eq!(sweep(TimeDelta::days(366)).await, Swept { audit_events: 2, ..none });
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_never_swept_and_what_was_given_up_stays_for_a_month() {
    on_each_store(async |service| {
        let old = service.clock.now() - TimeDelta::days(40);
        let row = |kind: &str, state, at: DateTime<Utc>| outbox::Model {
            id: 0,
            kind: kind.into(),
            dedup_id: Uuid::new_v4(),
            payload: "unreadable".into(),
            user_id: None,
            attempts: 0,
            next_attempt_at: at,
            leased_until: None,
            state,
            last_error: None,
            created_at: old,
        };
        let recent = service.clock.now() - TimeDelta::days(29);
        for row in [
            // Of a newer release.
            row("of_tomorrow", State::Pending, old),
            // For a service that nobody names any more.
            row("user.registered", State::Pending, old),
            row("user.registered", State::Pending, recent),
            row("verification_code", State::Abandoned, old),
            row("verification_code", State::Abandoned, recent),
        ] {
            let mut row = row.into_active_model();
            row.id = sea_orm::ActiveValue::NotSet;
            let tx = service.app.db.begin().await.unwrap();
            row.insert(&tx).await.unwrap();
            tx.commit().await.unwrap();
        }
        let swept = service.app.sweep().await.unwrap();
        assert_eq!(swept, Swept { messages: 2, ..Swept::default() });
        let rest = outbox::Entity::find().all(service.app.db.reader()).await.unwrap();
        let mut rest: Vec<_> = rest.into_iter().map(|row| (row.kind, row.state as i16)).collect();
        rest.sort();
        let expected = [("of_tomorrow", 0), ("user.registered", 0), ("verification_code", 2)];
        assert_eq!(rest, expected.map(|(kind, state)| (kind.to_owned(), state)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_lives_is_kept_and_its_reuse_still_found_out() {
    on_each_store(async |service| {
        let mut user = service.user("user@example.com").await;
        let first = user.clone();
        service.clock.advance(TimeDelta::days(6));
        let answer = user
            .call(Face::Rest, "AuthService.RefreshToken", json!({ "refresh_token": user.refresh_token }))
            .await
            .expect(200);
        user.take_tokens(&answer);
        service.clock.advance(TimeDelta::hours(23));
        assert_eq!(service.app.sweep().await.unwrap().sessions, 0);
        assert_eq!(refresh(&first).await, 401, "a token that was replaced");
        assert_eq!(refresh(&user).await, 401, "its reuse ended the session");
        let events = audit_event::Entity::find().all(service.app.db.reader()).await.unwrap();
        assert!(events.iter().any(|event| event.kind == "session.refresh_token_reused"), "{events:?}");

        // Of a session that was swept no token is worth anything, either.
        service.clock.advance(TimeDelta::days(9));
        assert_eq!(service.app.sweep().await.unwrap().sessions, 1);
        assert_eq!([refresh(&user).await, refresh(&first).await], [401, 401]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_still_counts_everywhere_after_a_sweep() {
    on_each_store(async |service| {
        let early = service.user("early@example.com").await;
        early.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        service.clock.advance(TimeDelta::hours(3));
        let replica = service.replica().await;
        let user = service.login("early@example.com").await;
        let there = user.at(replica.address);
        let me = async || there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.status;
        assert_eq!(me().await, 200);
        assert_eq!(service.app.sweep().await.unwrap().revocations, 1);
        user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(me().await, 401);
        assert_eq!(service.app.sweep().await.unwrap().revocations, 0, "it counts for another hour");
        // And for one that starts after all of it.
        let late = service.replica().await;
        assert_eq!(user.at(late.address).call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.status, 401);
        replica.stop().await;
        late.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_sweep_together_in_batches_while_calls_go_on() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let now = service.clock.now();
        insert_audit_rows(service, 5500, now - TimeDelta::days(400)).await;
        insert_audit_rows(service, 10, now - TimeDelta::days(300)).await;
        let (one, other, user) =
            tokio::join!(service.app.sweep(), replica.app.sweep(), service.user("user@example.com"));
        assert_eq!(one.unwrap().audit_events + other.unwrap().audit_events, 5500);
        // The registration left one.
        assert_eq!(count::<audit_event::Entity>(service).await, 11);
        user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        replica.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_is_kept_for_as_long_as_the_operator_says() {
    for (retention, left) in [("2d", 1), ("off", 2)] {
        let service = Service::start_with(Store::Sqlite, &[("AUDIT_RETENTION", retention)]).await;
        let now = service.clock.now();
        insert_audit_rows(&service, 1, now - TimeDelta::days(5000)).await;
        insert_audit_rows(&service, 1, now - TimeDelta::days(1)).await;
        service.app.sweep().await.unwrap();
        assert_eq!(count::<audit_event::Entity>(&service).await, left, "{retention}");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sweeps_by_itself_soon_after_its_start() {
    on_each_store(async |service| {
        insert_audit_rows(service, 3, service.clock.now() - TimeDelta::days(400)).await;
        wait_until(Duration::from_secs(15), "a sweep", async || count::<audit_event::Entity>(service).await == 0).await;
    })
    .await;
}
