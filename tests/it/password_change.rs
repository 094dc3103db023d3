//! `ChangePassword`: the owner's, and what it does to sessions.

use identity::entity::{outbox, user};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, sea_query::Expr};
use serde_json::{Value, json};

use crate::{
    harness::{Actor, Face, Outcome, PASSWORD, Service, Store, everywhere, on_each_store},
    user::user_id,
};

pub const NEW: &str = "An0ther-passw0rd";

pub async fn change(actor: &Actor, face: Face, old: &str, new: &str) -> Outcome {
    let fields = json!({ "old_password": old, "new_password": new });
    actor.call(face, "AuthService.ChangePassword", fields).await
}

pub async fn login(service: &Service, face: Face, password: &str) -> Outcome {
    let fields = json!({ "email": "user@example.com", "password": password });
    service.anonymous().call(face, "AuthService.Login", fields).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_old_password_changes_nothing_and_counts_as_a_failed_login() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let started = Service::start_with(store, &[("RATE_LIMIT_LOGIN", "5/15m")]).await;
        let service = &started;
        let user = service.user("user@example.com").await;
        let before = user::Entity::find_by_id(user_id(&user)).one(service.app.db.reader()).await.unwrap();
        for _ in 0..4 {
            let wrong = change(&user, face, "wrong", NEW).await;
            assert_eq!(
                wrong.expect_field(400, "old_password"),
                ["Your old password was entered incorrectly. Please enter it again."]
            );
        }
        login(service, face, "wrong").await.expect(401);
        let throttled = change(&user, face, PASSWORD, NEW).await;
        assert_eq!(throttled.status, 429, "five are five, whichever way: {throttled:?}");
        assert!(throttled.retry_after.is_some_and(|secs| secs > 0));
        assert_eq!(user::Entity::find_by_id(user_id(&user)).one(service.app.db.reader()).await.unwrap(), before);

        service.set_clock(service.clock.now() + chrono::Duration::minutes(15));
        change(&user, face, PASSWORD, NEW).await.expect(200);
        for _ in 0..4 {
            login(service, face, "wrong").await.expect(401); // the success had cleared the count
        }
        login(service, face, NEW).await.expect(200);
        started.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_nobody_verified_gets_no_mail_at_each_change() {
    everywhere(async |service, face| {
        let user = service.user("stranger@example.com").await;
        for (old, new) in [(PASSWORD, NEW), (NEW, PASSWORD)] {
            change(&user, face, old, new).await.expect(200);
        }
        let posted = outbox::Entity::find().all(service.app.db.reader()).await.unwrap();
        let kinds: Vec<_> = posted.iter().map(|message| message.kind.as_str()).collect();
        assert_eq!(kinds, ["verification_code"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_is_as_strong_as_at_registration() {
    everywhere(async |service, face| {
        let mut account = json!({ "email": "user@example.com", "password": PASSWORD });
        account["first_name"] = json!("Tr0ub4dor-name!");
        let mut user = service.anonymous();
        let answer = user.call(face, "AuthService.Register", account).await.expect(201);
        user.take_tokens(&answer);
        for weak in ["short1!", "no-digit-in-it", "n0specialsign", "password1!", "USER@example.com", "tr0ub4dor-NAME!"]
        {
            let messages = change(&user, face, PASSWORD, weak).await.expect_field(400, "new_password");
            assert_eq!(messages[0], "Password is too weak", "{weak}");
            assert!(messages.len() > 1, "{weak}: {messages:?}");
        }
        let missing = user.call(face, "AuthService.ChangePassword", json!({ "new_password": "x" })).await;
        assert_eq!(missing.status, 422);
        assert_eq!(missing.fields.keys().collect::<Vec<_>>(), ["new_password", "old_password"]);
        login(service, face, PASSWORD).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_at_once_one_holds_and_the_other_is_told_that_its_old_password_is_wrong() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let both = ["F1rst-password", "S3cond-password"].map(|new| change(&user, Face::Grpc, PASSWORD, new));
        let outcomes = futures_util::future::join_all(both).await;
        let mut statuses: Vec<_> = outcomes.iter().map(|outcome| outcome.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{outcomes:?}");
        let held = if outcomes[0].status == 200 { "F1rst-password" } else { "S3cond-password" };
        login(service, Face::Rest, held).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_the_django_service_is_changed_too() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let hashes: Value = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
        let django = hashes.as_array().unwrap().iter().find(|hash| hash["name"] == "pbkdf2_sha256_260000").unwrap();
        let tx = service.app.db.begin().await.unwrap();
        let hash = user::PasswordHash(django["hash"].as_str().unwrap().to_owned());
        let stored = user::Entity::update_many().col_expr(user::Column::Password, Expr::value(hash));
        stored.filter(user::Column::Id.eq(user_id(&user))).exec(&tx).await.unwrap();
        tx.commit().await.unwrap();
        change(&user, Face::Rest, django["password"].as_str().unwrap(), NEW).await.expect(200);
        login(service, Face::Rest, NEW).await.expect(200);
    })
    .await;
}
