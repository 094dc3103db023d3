//! Users: who sees whom, and how much of them.

use identity::{
    entity::user::{self, Column},
    feed::Entry,
};
use reqwest::Method;
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, sea_query::Expr};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, Service, Store,
    actor::{Outcome, claims, outcome_of},
    everywhere, on_each_store,
};

/// Whom the actor's token names.
pub fn user_id(actor: &Actor) -> i64 {
    let claims = claims(actor.access_token.as_deref().expect("a token"));
    claims["user_id"].as_str().unwrap().parse().unwrap()
}

/// Changes flags of a user, and tells the other replicas by a row of the feed, in one transaction.
pub async fn set_flags(service: &Service, user_id: i64, flags: &[(Column, bool)]) {
    let now = service.clock.now();
    let tx = service.app.db.begin().await.unwrap();
    let mut update = user::Entity::update_many()
        .col_expr(Column::Version, Expr::col(Column::Version).add(1))
        .filter(Column::Id.eq(user_id));
    for (column, value) in flags {
        update = update.col_expr(*column, Expr::value(*value));
    }
    let user =
        update.exec_with_returning(&tx).await.unwrap().pop().unwrap_or_else(|| panic!("there is no user {user_id}"));
    let changed = [Entry::of_user(user_id, user.version, now, service.app.keys.last_access_expiry(now))];
    tx.insert(Entry::inserts(&changed)).await.unwrap();
    tx.commit().await.unwrap();
    service.app.feed.apply(&changed);
}

async fn get(actor: &Actor, face: Face, id: i64) -> Outcome {
    actor.call(face, "UserService.GetUser", json!({ "id": id })).await
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_shown_with_every_documented_key() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        set_flags(service, id, &[(Column::IsFreelancer, true), (Column::IsSeller, true)]).await;
        let joined = service.clock.now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let mut answer = get(&user, face, id).await.expect(200);
        for time in ["date_joined", "updated_at"] {
            let shown = answer[time].take();
            let shown = chrono::DateTime::parse_from_rfc3339(shown.as_str().filter(|t| t.ends_with('Z')).unwrap());
            assert_eq!(shown.unwrap(), chrono::DateTime::parse_from_rfc3339(&joined).unwrap(), "{time}");
        }
        assert_eq!(
            answer,
            json!({
                "id": id, "email": "user@example.com", "first_name": "Jane", "last_name": "Doe", "is_active": true,
                "is_verified": false, "is_freelancer": true, "is_seller": true, "is_moderator": false,
                "roles": ["Freelancer", "Seller"], "date_joined": null, "updated_at": null,
            })
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sees_whom() {
    everywhere(async |service, face| {
        let [user, moderator] = [service.user("user@example.com").await, service.user("moderator@example.com").await];
        set_flags(service, user_id(&moderator), &[(Column::IsModerator, true)]).await;
        let admin = service.admin("admin@example.com").await;
        let [public, private, inactive] = [
            service.user("Public@example.com").await,
            service.user("private@example.com").await,
            service.user("inactive@example.com").await,
        ];
        let hide = json!({ "is_public": false });
        private.call(face, "ProfileService.UpdateMyProfile", hide).await.expect(200);
        set_flags(service, user_id(&inactive), &[(Column::IsActive, false), (Column::Listed, false)]).await;

        let seen = [
            (&user, &public, Some("P***@example.com")),
            (&user, &private, None),
            (&user, &inactive, None),
            (&user, &admin, Some("a***@example.com")),
            (&private, &private, Some("private@example.com")),
            (&private, &public, Some("P***@example.com")),
            (&moderator, &public, Some("Public@example.com")),
            (&moderator, &private, Some("private@example.com")),
            (&moderator, &inactive, Some("inactive@example.com")),
            (&admin, &private, Some("private@example.com")),
            (&admin, &inactive, Some("inactive@example.com")),
        ];
        for (n, (viewer, viewed, email)) in seen.into_iter().enumerate() {
            let id = user_id(viewed);
            let user = get(viewer, face, id).await;
            let profile = viewer.call(face, "ProfileService.GetProfile", json!({ "user_id": id })).await;
            if let Some(email) = email {
                assert_eq!(user.expect(200)["email"], json!(email), "case {n}");
                assert_eq!(profile.expect(200)["user"]["email"], json!(email), "case {n}");
            } else {
                // As if there were nobody: the answer tells no more than that of an id that was never given.
                let nobody = get(viewer, face, i64::MAX).await;
                assert_eq!((user.status, user.text), (404, nobody.text), "case {n}");
                let nobody = viewer.call(face, "ProfileService.GetProfile", json!({ "user_id": i64::MAX })).await;
                assert_eq!((profile.status, profile.text), (404, nobody.text), "case {n}");
            }
        }
        get(&service.anonymous(), face, user_id(&public)).await.expect(401);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_may_show_addresses_in_full() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("DIRECTORY_EMAILS", "full")]).await;
        let [user, other] = [service.user("user@example.com").await, service.user("other@example.com").await];
        for face in Face::ALL {
            assert_eq!(get(&user, face, user_id(&other)).await.expect(200)["email"], "other@example.com");
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_nobody_can_have_is_not_found() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        for id in [0, -1, i64::MIN, i64::MAX] {
            let outcome = get(&user, face, id).await;
            assert_eq!(outcome.status, 404, "{id}: {outcome:?}");
            let outcome = user.call(face, "ProfileService.GetProfile", json!({ "user_id": id })).await;
            assert_eq!(outcome.status, 404, "{id}: {outcome:?}");
        }
    })
    .await;
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        for id in [
            "9223372036854775808",
            "100000000000000000000",
            "-9223372036854775809",
            "abc",
            "+1",
            "1.0",
            "1e0",
            "%00",
            "١",
        ] {
            for path in [format!("/api/users/{id}/"), format!("/api/users/{id}"), format!("/api/profile/{id}/")] {
                let outcome = outcome_of(user.request(Method::GET, &path).send().await.unwrap()).await;
                assert_eq!(outcome.status, 404, "{path}: {outcome:?}");
                assert_eq!(keys(&serde_json::from_str(&outcome.text).unwrap()), ["error"], "{path}");
            }
        }
    })
    .await;
}
