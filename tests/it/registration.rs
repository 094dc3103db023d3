//! Registration: who gets an account, and with what.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use identity::entity::user;
use reqwest::Method;
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use crate::harness::{
    Face, PASSWORD, Service, Store,
    actor::{Outcome, outcome_of},
    everywhere, on_each_store,
};

const REQUIRED: &str = "This field is required.";
const BLANK: &str = "This field may not be blank.";
const NULL: &str = "This field may not be null.";
const NO_STRING: &str = "Not a valid string.";
pub const NO_ADDRESS: &str = "Enter a valid email address.";
pub const TAKEN: &str = "A user with this email already exists.";
pub const CONTROL: &str = "Control characters are not allowed.";

pub fn account(email: &str) -> Value {
    json!({ "email": email, "password": PASSWORD })
}

/// What is said of which field.
type Complaints = &'static [(&'static str, &'static str)];

/// The first message at each bad field.
pub fn complaints(outcome: &Outcome) -> BTreeMap<&str, &str> {
    outcome.fields.iter().map(|(field, messages)| (field.as_str(), messages[0].as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_answers_as_documented() {
    everywhere(async |service, face| {
        let new = json!({
            "email": "user@example.com", "password": "secure_password_123", "first_name": "John", "last_name": "Doe",
        });
        let mut answer = service.anonymous().call(face, "AuthService.Register", new).await.expect(201);
        let [access, refresh] = ["access_token", "refresh_token"].map(|token| answer[token].take());
        let id = answer["id"].as_i64().unwrap();
        assert_eq!(
            answer,
            json!({
                "id": id, "email": "user@example.com", "first_name": "John", "last_name": "Doe",
                "access_token": null, "refresh_token": null,
                "user": {
                    "id": id, "email": "user@example.com", "first_name": "John", "last_name": "Doe",
                    "is_active": true, "is_verified": false, "roles": ["User"],
                },
            })
        );
        let me = service.anonymous().with_token(access.as_str().unwrap());
        let profile = me.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(profile["user"]["id"], json!(id));
        me.call(face, "AuthService.RefreshToken", json!({ "refresh_token": refresh })).await.expect(200);

        let nameless = account("nameless@example.com");
        let nameless = service.anonymous().call(face, "AuthService.Register", nameless).await.expect(201);
        assert_eq!((&nameless["first_name"], &nameless["last_name"]), (&json!(""), &json!("")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_is_named_at_once_and_a_missing_one_outranks_a_wrong_one() {
    let too_long = "x".repeat(151);
    let cases: [(Value, u16, Complaints); 5] = [
        (json!({}), 422, &[("email", REQUIRED), ("password", REQUIRED)]),
        (json!({ "email": "nobody" }), 422, &[("email", NO_ADDRESS), ("password", REQUIRED)]),
        (json!({ "password": "weak" }), 422, &[("email", REQUIRED), ("password", "Password is too weak")]),
        (json!({ "email": "", "password": "" }), 400, &[("email", BLANK), ("password", BLANK)]),
        (
            json!({ "email": "nobody", "password": "weak", "first_name": too_long, "last_name": "a\0b" }),
            400,
            &[
                ("email", NO_ADDRESS),
                ("password", "Password is too weak"),
                ("first_name", "Ensure this field has no more than 150 characters."),
                ("last_name", CONTROL),
            ],
        ),
    ];
    everywhere(async |service, face| {
        let anyone = service.anonymous();
        for (request, status, expected) in &cases {
            let outcome = anyone.call(face, "AuthService.Register", request.clone()).await;
            assert_eq!(outcome.status, *status, "{request}: {outcome:?}");
            assert_eq!(complaints(&outcome), expected.iter().copied().collect(), "{request}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_another_type_is_a_wrong_value_not_a_missing_one() {
    let cases: [(Value, u16, Complaints); 2] = [
        (
            json!({ "email": null, "password": 12_345_678, "first_name": ["Jane"], "last_name": {} }),
            400,
            &[("email", NULL), ("password", NO_STRING), ("first_name", NO_STRING), ("last_name", NO_STRING)],
        ),
        (
            json!({ "email": true, "first_name": null }),
            422,
            &[("email", NO_STRING), ("first_name", NULL), ("password", REQUIRED)],
        ),
    ];
    on_each_store(async |service| {
        for (request, status, expected) in &cases {
            let outcome = service.anonymous().call(Face::Rest, "AuthService.Register", request.clone()).await;
            assert_eq!(outcome.status, *status, "{request}: {outcome:?}");
            assert_eq!(complaints(&outcome), expected.iter().copied().collect(), "{request}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_with_tokens_are_not_to_be_stored() {
    on_each_store(async |service| {
        let (anyone, new) = (service.anonymous(), account("user@example.com"));
        for path in ["/api/auth/register/", "/api/auth/login/"] {
            let response = anyone.request(Method::POST, path).json(&new).send().await.unwrap();
            assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
            assert!(outcome_of(response).await.answer["refresh_token"].is_string(), "{path}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_people_who_register_at_once_are_all_let_in() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("HASH_THREADS", "2")]).await;
        let anyone = service.anonymous();
        let emails: Vec<_> = (0..100).map(|n| format!("user{n}@example.com")).collect();
        let attempts = emails
            .iter()
            .enumerate()
            .map(|(n, email)| anyone.call(Face::ALL[n % 2], "AuthService.Register", account(email)));
        for outcome in join_all(attempts).await {
            outcome.expect(201);
        }
        assert_eq!(user::Entity::find().count(service.app.db.reader()).await.unwrap(), 100);
        service.stop().await;
    }
}
