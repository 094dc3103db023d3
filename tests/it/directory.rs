//! The directory: who is listed for whom, which part of it, in which order.

mod comparison;
mod paging;
mod plans;

use chrono::{DateTime, Duration, Utc};
use identity::{
    domain::user::{EmailAddress, PersonName, search_texts},
    entity::user::{self, PasswordHash},
};
use reqwest::Method;
use sea_orm::{ActiveModelTrait, ActiveValue::NotSet, EntityTrait, IntoActiveModel};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, Service, Store,
    actor::{Outcome, outcome_of},
    everywhere, on_each_store,
};

pub async fn list(actor: &Actor, face: Face, fields: Value) -> Outcome {
    actor.call(face, "UserService.ListUsers", fields).await
}

/// The answer to a list by REST, with this query to the letter.
pub async fn list_by(actor: &Actor, query: &str) -> Outcome {
    outcome_of(actor.request(Method::GET, &format!("/api/users/?{query}")).send().await.unwrap()).await
}

/// The ids of an answer.
pub fn ids(page: &Value) -> Vec<i64> {
    page["results"].as_array().unwrap().iter().map(|user| user["id"].as_i64().unwrap()).collect()
}

/// The addresses of an answer, without their domain.
pub fn names(page: &Value) -> Vec<&str> {
    let emails = page["results"].as_array().unwrap().iter().map(|user| user["email"].as_str().unwrap());
    emails.map(|email| email.split('@').next().unwrap()).collect()
}

fn noon() -> DateTime<Utc> {
    "2026-11-23T12:00:00.123456Z".parse().unwrap()
}

/// An active user with a public profile, without a role, who joined at noon.
pub fn person(email: &str, first_name: &str, last_name: &str) -> user::Model {
    let address = EmailAddress::parse(email).unwrap_or_else(|error| panic!("{email}: {error}"));
    let [first, last] = [first_name, last_name].map(|name| PersonName::parse(name).unwrap());
    let (search_text, name_text) = search_texts(address.key(), first.as_str(), last.as_str());
    user::Model {
        id: 0,
        email: address.as_str().into(),
        email_key: address.key().into(),
        password: PasswordHash("!".into()),
        first_name: first.as_str().into(),
        last_name: last.as_str().into(),
        is_active: true,
        is_staff: false,
        is_superuser: false,
        is_verified: false,
        is_freelancer: false,
        is_seller: false,
        is_moderator: false,
        listed: true,
        search_text,
        name_text,
        version: 1,
        date_joined: noon(),
        updated_at: noon(),
        last_login: None,
    }
}

/// Puts them into the table, and returns them with their ids.
pub async fn add(service: &Service, people: Vec<user::Model>) -> Vec<user::Model> {
    let tx = service.app.db.begin().await.unwrap();
    let rows = people.into_iter().map(|p| user::ActiveModel { id: NotSet, ..p.into_active_model().reset_all() });
    let added = user::Entity::insert_many(rows).exec_with_returning(&tx).await.unwrap();
    tx.commit().await.unwrap();
    added
}

pub async fn remove(service: &Service, id: i64) {
    let tx = service.app.db.begin().await.unwrap();
    assert_eq!(user::Entity::delete_by_id(id).exec(&tx).await.unwrap().rows_affected, 1);
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_what_the_document_shows() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let joined = "2025-12-01T10:00:00Z".parse().unwrap();
        let user = user::Model {
            is_verified: true,
            is_freelancer: true,
            date_joined: joined,
            updated_at: joined + Duration::days(1),
            ..person("user@example.com", "John", "Doe")
        };
        let id = add(service, vec![user]).await[0].id;
        let mut page = list(&admin, face, json!({ "search": "john" })).await.expect(200);
        page.as_object_mut().unwrap().remove("next_page_token"); // gRPC's alone
        let user = json!({
            "id": id, "email": "user@example.com", "first_name": "John", "last_name": "Doe", "is_active": true,
            "is_verified": true, "is_freelancer": true, "is_seller": false, "is_moderator": false,
            "roles": ["Freelancer"], "date_joined": "2025-12-01T10:00:00Z", "updated_at": "2025-12-02T10:00:00Z",
        });
        let expected = match face {
            Face::Rest => json!({ "count": 1, "next": null, "previous": null, "results": [user] }),
            // Absent is gRPC's null.
            Face::Grpc => json!({ "count": 1, "results": [user] }),
        };
        assert_eq!(page, expected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_cannot_be_is_refused_with_all_that_is_wrong() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        for role in ["", "Seller", "user", "superuser", "seller,admin"] {
            let wrong = list(&user, face, json!({ "role": role })).await.expect_field(400, "role");
            assert_eq!(wrong, ["Not a role. Choose freelancer, seller, moderator or admin."], "{role}");
        }
        let long = "x".repeat(201);
        for search in ["a\u{0}b", "a\tb", "\u{85}", &long, "1 2 3 4 5 6 7 8 9", "1,2,3,4,5,6,7,8,9"] {
            list(&user, face, json!({ "search": search })).await.expect_field(400, "search");
        }
        for search in [&"ж".repeat(200), "1 2 3 4, 5 6 7 8,", "", "  ", " , ,,"] {
            list(&user, face, json!({ "search": search })).await.expect(200);
        }
        // What is wrong outranks a page that isn't there.
        let wrong = list(&user, face, json!({ "role": "x", "search": long, "page": 0 })).await;
        let fields: Vec<_> = wrong.fields.keys().map(String::as_str).collect();
        assert_eq!((wrong.status, fields), (400, vec!["role", "search"]));
    })
    .await;
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        for value in ["yes", "TRUE", "2", "", "null"] {
            let wrong = list_by(&user, &format!("is_verified={value}&page=x")).await;
            assert_eq!(wrong.expect_field(400, "is_verified"), ["Must be a valid boolean."], "{value}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_filtered_by_role_and_by_verification() {
    everywhere(async |service, face| {
        let admin = service.admin("root@example.com").await;
        let who = |name: &str| person(&format!("{name}@example.com"), name, "");
        add(
            service,
            vec![
                user::Model { is_freelancer: true, is_seller: true, ..who("both") },
                user::Model { is_seller: true, is_verified: true, listed: false, ..who("seller") },
                user::Model { is_moderator: true, is_verified: true, ..who("moderator") },
                user::Model { is_staff: true, ..who("staff") },
                user::Model { is_superuser: true, ..who("super") },
                user::Model { is_verified: true, ..who("plain") },
            ],
        )
        .await;
        for (filter, expected) in [
            (json!({ "role": "freelancer" }), vec!["both"]),
            (json!({ "role": "seller" }), vec!["both", "seller"]),
            (json!({ "role": "moderator" }), vec!["moderator"]),
            (json!({ "role": "admin" }), vec!["root", "staff", "super"]),
            (json!({ "is_verified": true }), vec!["root", "seller", "moderator", "plain"]),
            (json!({ "is_verified": false }), vec!["both", "staff", "super"]),
            (json!({ "role": "seller", "is_verified": true }), vec!["seller"]),
            (json!({ "role": "admin", "is_verified": false, "search": "s" }), vec!["staff", "super"]),
            (json!({ "role": "freelancer", "is_verified": true }), vec![]),
        ] {
            let page = list(&admin, face, filter.clone()).await.expect(200);
            assert_eq!((names(&page), &page["count"]), (expected.clone(), &json!(expected.len())), "{filter}");
        }
    })
    .await;
    // As Django and its forms write them.
    on_each_store(async |service| {
        let admin = service.admin("root@example.com").await;
        for (value, count) in [("1", 1), ("true", 1), ("True", 1), ("0", 0), ("false", 0), ("False", 0)] {
            assert_eq!(list_by(&admin, &format!("is_verified={value}")).await.expect(200)["count"], count, "{value}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_full_addresses_still_hides_whom_it_does_not_list() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("DIRECTORY_EMAILS", "full")]).await;
        let user = service.user("user@example.com").await;
        add(
            &service,
            vec![
                person("second@example.com", "", ""),
                user::Model { listed: false, ..person("hidden@example.com", "", "") },
                person("First@example.com", "", ""),
            ],
        )
        .await;
        for face in Face::ALL {
            let page = list(&user, face, json!({ "ordering": "email" })).await.expect(200);
            assert_eq!((names(&page), &page["count"]), (vec!["First", "second", "user"], &json!(3)));
            let page = list(&user, face, json!({ "search": "d@EXAM" })).await.expect(200);
            assert_eq!((names(&page), &page["count"]), (vec!["second"], &json!(1)));
            assert_eq!(list(&user, face, json!({ "search": "dden" })).await.expect(200)["count"], 0);
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_is_exact_however_many_there_are() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let crowd =
            |range: std::ops::Range<u32>| range.map(|n| person(&format!("u{n}@example.com"), "Joe", "")).collect();
        let count = async |who: &Actor, filter: Value| list(who, Face::Grpc, filter).await.expect(200)["count"].clone();
        for from in (2..10_000).step_by(1000) {
            add(service, crowd(from..(from + 1000).min(10_000))).await;
        }
        assert_eq!(count(&admin, json!({})).await, 10_000);
        let hidden = user::Model { listed: false, is_seller: true, ..person("hidden@example.com", "Joe", "") };
        let id = add(service, vec![hidden]).await[0].id;
        assert_eq!(count(&admin, json!({})).await, 10_001);
        assert_eq!(count(&user, json!({})).await, 10_000, "of those that are listed");
        assert_eq!(count(&admin, json!({ "search": "joe" })).await, 9999);
        let sellers = json!({ "role": "seller", "is_verified": true });
        assert_eq!(count(&admin, sellers.clone()).await, 0);
        let verified = json!({ "id": id, "is_verified": true, "is_moderator": true });
        admin.call(Face::Rest, "UserService.UpdateUser", verified).await.expect(200);
        for filter in [sellers, json!({ "role": "moderator" }), json!({ "role": "admin" })] {
            assert_eq!(count(&admin, filter.clone()).await, 1, "{filter}");
        }
        // Folded or not, they add up.
        service.app.sweep().await.unwrap();
        service.app.sweep().await.unwrap();
        assert_eq!(count(&admin, json!({})).await, 10_001);
        remove(service, id).await;
        assert_eq!(count(&admin, json!({})).await, 10_000);
        assert_eq!(count(&admin, json!({ "role": "seller" })).await, 0);
        service.app.sweep().await.unwrap();
        assert_eq!(count(&admin, json!({ "is_verified": false })).await, 9999, "all but the superuser");
    })
    .await;
}
