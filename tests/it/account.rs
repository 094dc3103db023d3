//! Accounts: made by admins, changed, deleted; and what follows from it.

use identity::entity::{audit_event, profile, user};
use reqwest::Method;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::{
    harness::{Actor, Face, PASSWORD, Service, everywhere, on_each_store},
    user::user_id,
};

pub async fn update(actor: &Actor, face: Face, id: i64, change: Value) -> crate::harness::Outcome {
    let mut fields = change;
    fields["id"] = json!(id);
    actor.call(face, "UserService.UpdateUser", fields).await
}

pub async fn row(service: &Service, id: i64) -> user::Model {
    user::Entity::find_by_id(id).one(service.app.db.reader()).await.unwrap().unwrap()
}

/// Marks the user's address as verified, by the code that was mailed to it.
pub async fn verify(service: &Service, email: &str) {
    let code = service.code_mailed_to(email, 1).await;
    let fields = json!({ "email": email, "code": code });
    service.anonymous().call(Face::Rest, "AuthService.VerifyEmail", fields).await.expect(200);
}

/// A user with staff's rights, who is no superuser.
pub async fn staff(service: &Service, superuser: &Actor, email: &str) -> Actor {
    let fields = json!({ "email": email, "password": PASSWORD, "is_staff": true });
    superuser.call(Face::Rest, "UserService.CreateUser", fields).await.expect(201);
    service.login(email).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_makes_a_user_with_roles_who_can_log_in() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let new = json!({
            "email": " New@Example.COM ", "password": PASSWORD, "first_name": "Jane", "last_name": " Smith ",
            "is_freelancer": true, "is_seller": false,
        });
        let mut made = admin.call(face, "UserService.CreateUser", new).await.expect(201);
        for time in ["date_joined", "updated_at"] {
            assert!(made[time].take().is_string());
        }
        let id = made["id"].as_i64().unwrap();
        assert_eq!(
            made,
            json!({
                "id": id, "email": "New@example.com", "first_name": "Jane", "last_name": "Smith", "is_active": true,
                "is_verified": false, "is_freelancer": true, "is_seller": false, "is_moderator": false,
                "roles": ["Freelancer"], "date_joined": null, "updated_at": null,
            })
        );
        let login = json!({ "email": "new@example.com", "password": PASSWORD });
        let login = service.anonymous().call(face, "AuthService.Login", login).await.expect(200);
        assert_eq!(login["user"]["roles"], json!(["User", "Freelancer"]));
        assert!(made.get("access_token").is_none());
        let profiles = profile::Entity::find().filter(profile::Column::UserId.eq(id));
        assert_eq!(profiles.count(service.app.db.reader()).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_may_be_made_inactive_and_then_nobody_logs_in_or_finds_it() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let new = json!({ "email": "off@example.com", "password": PASSWORD, "is_active": false, "is_verified": true });
        let made = admin.call(face, "UserService.CreateUser", new).await.expect(201);
        assert_eq!((&made["is_active"], &made["is_verified"]), (&json!(false), &json!(true)));
        let login = json!({ "email": "off@example.com", "password": PASSWORD });
        service.anonymous().call(face, "AuthService.Login", login).await.expect(401);
        user.call(face, "UserService.GetUser", json!({ "id": made["id"] })).await.expect(404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_changes_the_own_names_and_nothing_else_moves() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        let before = row(service, id).await;
        service.set_clock(service.clock.now() + chrono::Duration::seconds(5));
        let answer = update(&user, face, id, json!({ "first_name": " Jonathan ", "last_name": "Ёлкин" })).await;
        let answer = answer.expect(200);
        assert_eq!((&answer["first_name"], &answer["last_name"]), (&json!("Jonathan"), &json!("Ёлкин")));
        assert_eq!(answer["email"], "user@example.com", "one sees the own address in full");

        let after = row(service, id).await;
        assert_eq!(after.updated_at, service.clock.now());
        assert!(after.version > before.version);
        assert_eq!(after.search_text, "user@example.com jonathan ёлкин");
        assert_eq!(after.name_text, "jonathan ёлкин");
        let unmoved = user::Model {
            first_name: after.first_name.clone(),
            last_name: after.last_name.clone(),
            search_text: after.search_text.clone(),
            name_text: after.name_text.clone(),
            updated_at: after.updated_at,
            version: after.version,
            ..before
        };
        assert_eq!(after, unmoved);

        // What changes nothing leaves no trace.
        update(&user, face, id, json!({ "first_name": "Jonathan" })).await.expect(200);
        update(&user, face, id, json!({})).await.expect(200);
        assert_eq!(row(service, id).await, after);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_self_service_takes_a_verified_address_to_gain_and_none_to_give_up() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        let refused = update(&user, face, id, json!({ "is_seller": true, "first_name": "Joan" })).await;
        assert_eq!(refused.status, 403, "{refused:?}");
        match face {
            Face::Grpc => assert_eq!(refused.reason.as_deref(), Some("EMAIL_NOT_VERIFIED")),
            Face::Rest => assert!(refused.text.contains("Verify your email address first"), "{refused:?}"),
        }
        assert_eq!(row(service, id).await.first_name, "Jane", "all of it or nothing");
        // To say that one is none, being none, is no gain.
        update(&user, face, id, json!({ "is_seller": false })).await.expect(200);

        verify(service, "user@example.com").await;
        let answer = update(&user, face, id, json!({ "is_freelancer": true, "is_seller": true })).await.expect(200);
        assert_eq!(answer["roles"], json!(["Freelancer", "Seller"]));
        let token = json!({ "token": user.access_token });
        let token = service.anonymous().call(face, "AuthService.VerifyToken", token).await.expect(200);
        assert_eq!(token["roles"], json!(["User", "Freelancer", "Seller"]), "a token from before knows at once");
        let answer = update(&user, face, id, json!({ "is_freelancer": false })).await.expect(200);
        assert_eq!(answer["roles"], json!(["Seller"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn which_roles_are_self_service_is_the_operators_to_say() {
    for store in crate::harness::Store::all() {
        let settings = [("SELF_SERVICE_ROLES", "seller"), ("REQUIRE_VERIFIED", "none")];
        let service = Service::start_with(store, &settings).await;
        for face in Face::ALL {
            let user = service.user(&format!("{face:?}@example.com")).await;
            let id = user_id(&user);
            let refused = update(&user, face, id, json!({ "is_freelancer": true })).await;
            assert_eq!(
                (refused.status, refused.reason.as_deref().unwrap_or("PERMISSION_DENIED")),
                (403, "PERMISSION_DENIED")
            );
            update(&user, face, id, json!({ "is_freelancer": false })).await.expect(403);
            update(&user, face, id, json!({ "is_seller": true })).await.expect(200);
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_ones_own_to_set_is_refused_and_nothing_changes() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        verify(service, "user@example.com").await;
        let id = user_id(&user);
        let before = row(service, id).await;
        let privileged = [
            ("email", json!("user@example.com")),
            ("is_active", json!(true)),
            ("is_verified", json!(true)),
            ("is_moderator", json!(false)),
            ("is_staff", json!(true)),
            ("is_superuser", json!(true)),
        ];
        for (key, value) in privileged {
            let outcome = update(&user, face, id, json!({ "first_name": "Joan", "is_seller": true, key: value })).await;
            assert_eq!(outcome.status, 403, "{key}: {outcome:?}");
        }
        // Not even with a value that nobody could read; which is what an admin is told of the same.
        let admin = service.admin("admin@example.com").await;
        let unreadable = json!({ "id": id, "email": "nonsense", "first_name": "x".repeat(151) });
        user.call(face, "UserService.UpdateUser", unreadable.clone()).await.expect(403);
        admin.call(face, "UserService.UpdateUser", unreadable).await.expect_field(400, "email");
        if face == Face::Rest {
            for (key, value) in [("is_staff", json!(null)), ("is_superuser", json!("x")), ("is_moderator", json!(1.5))]
            {
                update(&user, face, id, json!({ "first_name": "Joan", key: value })).await.expect(403);
            }
        } else {
            let unset = json!({ "id": id, "first_name": "Joan", "update_mask": "firstName,isSuperuser" });
            user.call(face, "UserService.UpdateUser", unset).await.expect(403);
        }
        update(&user, face, id, json!({ "first_name": "x".repeat(151) })).await.expect_field(400, "first_name");
        assert_eq!(row(service, id).await, before);
    })
    .await;
    // What nobody may set is ignored, as all unknown keys are.
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let before = row(service, user_id(&user)).await;
        let body = json!({
            "id": 77, "roles": ["Admin"], "date_joined": "2001-01-01T00:00:00Z", "updated_at": null, "password": "x",
            "version": 0, "listed": false, "email_key": "x", "last_login": null, "groups": [1], "nonsense": {},
        });
        let response = user.request(Method::PATCH, "/api/users/1/").json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(row(service, user_id(&user)).await, before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn null_is_no_name_and_no_flag() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let before = row(service, 1).await;
        let body = json!({ "first_name": null, "is_seller": null });
        let response = user.request(Method::PATCH, "/api/users/1/").json(&body).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let errors: Value = response.json().await.unwrap();
        let refusal = ["This field may not be null."];
        assert_eq!(errors, json!({ "first_name": refusal, "is_seller": refusal }));
        let masked = json!({ "id": 1, "update_mask": "firstName" });
        let outcome = user.call(Face::Grpc, "UserService.UpdateUser", masked).await;
        assert_eq!(outcome.expect_field(400, "first_name"), ["This field may not be null."]);
        // With a mask, what it doesn't name stays.
        let masked = json!({ "id": 1, "update_mask": "lastName", "first_name": "Joan", "last_name": "Roe" });
        let answer = user.call(Face::Grpc, "UserService.UpdateUser", masked).await.expect(200);
        assert_eq!((&answer["first_name"], &answer["last_name"]), (&json!("Jane"), &json!("Roe")));
        assert_eq!(row(service, 1).await.first_name, before.first_name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_or_inactive_user_stays_unlisted_whatever_else_changes() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        user.call(face, "ProfileService.UpdateMyProfile", json!({ "is_public": false })).await.expect(200);
        update(&admin, face, id, json!({ "is_active": false })).await.expect(200);
        update(&admin, face, id, json!({ "is_active": true })).await.expect(200);
        assert!(!row(service, id).await.listed, "the profile is still private");
        let user = service.login("user@example.com").await;
        user.call(face, "ProfileService.UpdateMyProfile", json!({ "is_public": true })).await.expect(200);
        assert!(row(service, id).await.listed);
        update(&admin, face, id, json!({ "is_active": false })).await.expect(200);
        assert!(!row(service, id).await.listed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_different_fields_at_once_all_hold() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        let changes = [
            json!({ "first_name": "Joan" }),
            json!({ "last_name": "Roe" }),
            json!({ "is_moderator": true }),
            json!({ "is_seller": true }),
            json!({ "is_freelancer": true }),
            json!({ "email": "new@example.com" }),
        ];
        let all = changes.into_iter().map(|change| update(&admin, Face::Grpc, id, change));
        for outcome in futures_util::future::join_all(all).await {
            outcome.expect(200);
        }
        let row = row(service, id).await;
        assert_eq!(row.search_text, "new@example.com joan roe");
        assert_eq!(row.name_text, "joan roe");
        assert!(row.is_moderator && row.is_seller && row.is_freelancer);
        assert_eq!(row.version, 7);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_what_is_in_the_audit_without_addresses_and_names() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let change = json!({ "email": "new@example.com", "first_name": "Joan", "is_seller": true });
        update(&admin, face, user_id(&user), change).await.expect(200);
        let event = audit_event::Entity::find().filter(audit_event::Column::Kind.eq("user.updated"));
        let event = event.one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!((event.actor_id, event.user_id), (Some(user_id(&admin)), Some(user_id(&user))));
        let detail: Value = serde_json::from_str(&event.detail).unwrap();
        assert_eq!(detail, json!({ "changed": { "email": null, "first_name": null, "is_seller": true } }));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_got_in_batches_in_the_order_asked_for_and_only_those_whom_one_may_see() {
    on_each_store(async |service| {
        let [one, two] = [service.user("one@example.com").await, service.user("two@example.com").await];
        let [private, admin] = [service.user("private@example.com").await, service.admin("admin@example.com").await];
        private.call(Face::Rest, "ProfileService.UpdateMyProfile", json!({ "is_public": false })).await.expect(200);
        let ids: Vec<_> = [&two, &private, &one, &two].map(user_id).to_vec();
        let mut asked = ids.clone();
        asked.extend([999, 0, -1]);
        let batch = async |actor: &Actor| {
            let answer = actor.call(Face::Grpc, "UserService.BatchGetUsers", json!({ "ids": asked })).await.expect(200);
            let users = answer["users"].as_array().unwrap().clone();
            users.iter().map(|user| (user["id"].as_i64().unwrap(), user["email"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(batch(&one).await, [(ids[0], json!("t***@example.com")), (ids[2], json!("one@example.com"))]);
        let all = [(ids[0], "two@example.com"), (ids[1], "private@example.com"), (ids[2], "one@example.com")];
        assert_eq!(batch(&admin).await, all.map(|(id, email)| (id, json!(email))));

        let many = |n: i64| json!({ "ids": (1..=n).collect::<Vec<_>>() });
        one.call(Face::Grpc, "UserService.BatchGetUsers", many(100)).await.expect(200);
        one.call(Face::Grpc, "UserService.BatchGetUsers", many(101)).await.expect_field(400, "ids");
        let none = one.call(Face::Grpc, "UserService.BatchGetUsers", json!({})).await.expect(200);
        assert_eq!(none, json!({ "users": [] }));
    })
    .await;
}
