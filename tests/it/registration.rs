//! Registration: who gets an account, and with what.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use identity::entity::{profile, session, user};
use reqwest::Method;
use sea_orm::{EntityTrait, PaginatorTrait};
use serde_json::{Value, json};

use crate::harness::{
    Face, PASSWORD, Service, Store,
    actor::{Outcome, claims, outcome_of},
    everywhere, on_each_store, wait_until,
};

const REQUIRED: &str = "This field is required.";
const BLANK: &str = "This field may not be blank.";
const NULL: &str = "This field may not be null.";
const NO_STRING: &str = "Not a valid string.";
const NO_ADDRESS: &str = "Enter a valid email address.";
const TAKEN: &str = "A user with this email already exists.";
const CONTROL: &str = "Control characters are not allowed.";

fn account(email: &str) -> Value {
    json!({ "email": email, "password": PASSWORD })
}

/// What is said of which field.
type Complaints = &'static [(&'static str, &'static str)];

/// The first message at each bad field.
fn complaints(outcome: &Outcome) -> BTreeMap<&str, &str> {
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
async fn what_is_no_address_is_refused_at_registration_and_login_alike() {
    let long_local = format!("{}@example.com", "a".repeat(65));
    let too_long = format!("{}@{}.com", "a".repeat(60), "b.".repeat(95));
    let bad = [
        "plain",
        "@example.com",
        "user@",
        "user@localhost",
        "user@.com",
        "user@example..com",
        "user@-example.com",
        "user@example.c",
        "user@127.0.0.1",
        "user@[127.0.0.1]",
        "a b@example.com",
        "user@exa mple.com",
        "a..b@example.com",
        ".a@example.com",
        "\"quoted\"@example.com",
        "user@example.com\r\nBcc: other@example.com",
        "us\r\ner@example.com",
        "user\0@example.com",
        "user@example\0.com",
        &long_local,
    ];
    everywhere(async |service, face| {
        for rpc in ["AuthService.Register", "AuthService.Login"] {
            for email in bad {
                let outcome = service.anonymous().call(face, rpc, account(email)).await;
                assert_eq!(complaints(&outcome), [("email", NO_ADDRESS)].into(), "{rpc} {email:?}: {outcome:?}");
                assert_eq!(outcome.status, 400, "{rpc} {email:?}");
            }
            assert_eq!(too_long.len(), 255);
            // 154 characters, but what IDNA makes of the ligatures are three letters each.
            let grows = format!("{}@{}.{}.com", "a".repeat(64), ["ﬃ".repeat(21).as_str(); 3].join("."), "ﬃ".repeat(19));
            for email in [&too_long, &grows] {
                let messages = service.anonymous().call(face, rpc, account(email)).await.expect_field(400, "email");
                assert_eq!(messages, ["Ensure this field has no more than 254 characters."]);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_kept_as_typed_with_its_domain_in_lower_case() {
    let cases = [
        (" User.Name+Tag@EXAMPLE.Com\n", "User.Name+Tag@example.com"),
        ("o'brien@sub.example.co", "o'brien@sub.example.co"),
        ("Почта@Пример.РФ", "Почта@пример.рф"),
        ("user@XN--E1AFMKFD.xn--p1ai", "user@xn--e1afmkfd.xn--p1ai"),
    ];
    everywhere(async |service, face| {
        for (typed, kept) in cases {
            let new = json!({ "email": typed, "password": PASSWORD, "first_name": " Jane\t", "last_name": "李 " });
            let answer = service.anonymous().call(face, "AuthService.Register", new).await.expect(201);
            assert_eq!((&answer["email"], &answer["user"]["email"]), (&json!(kept), &json!(kept)));
            assert_eq!((&answer["first_name"], &answer["last_name"]), (&json!("Jane"), &json!("李")));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_one_account_however_it_is_spelled() {
    let cases = [
        ("user@example.com", "USER@Example.COM"),
        ("straße@example.com", "STRASSE@example.com"),
        ("jos\u{e9}@example.com", "JOSE\u{301}@example.com"),
        ("почта@example.com", "ПОЧТА@example.com"),
        ("user@пример.рф", "user@xn--e1afmkfd.xn--p1ai"),
        ("user@example.org", "user@ｅｘａｍｐｌｅ.org"),
    ];
    everywhere(async |service, face| {
        for (first, second) in cases {
            let anyone = service.anonymous();
            let registered = anyone.call(face, "AuthService.Register", account(first)).await.expect(201);
            let again = anyone.call(face, "AuthService.Register", account(second)).await;
            assert_eq!((again.status, complaints(&again)), (400, [("email", TAKEN)].into()), "{second}: {again:?}");
            if face == Face::Grpc {
                assert_eq!(again.reason.as_deref(), Some("EMAIL_TAKEN"));
            }
            let login = anyone.call(face, "AuthService.Login", account(second)).await.expect(200);
            assert_eq!(login["user"]["id"], registered["id"], "{second}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_has_no_control_characters() {
    everywhere(async |service, face| {
        for name in ["a\0b", "a\nb", "a\tb", "\u{1b}[31mred", "a\u{7f}b", "a\u{85}b"] {
            let new = json!({ "email": "user@example.com", "password": PASSWORD, "first_name": name });
            let outcome = service.anonymous().call(face, "AuthService.Register", new).await;
            assert_eq!((outcome.status, complaints(&outcome)), (400, [("first_name", CONTROL)].into()), "{name:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_registers_as_more_than_a_user() {
    on_each_store(async |service| {
        let new = json!({
            "email": "user@example.com", "password": PASSWORD, "id": 77, "is_active": false, "is_staff": true,
            "is_superuser": true, "is_verified": true, "is_freelancer": true, "is_seller": true, "is_moderator": true,
            "role": "admin", "roles": ["Admin"], "listed": false,
        });
        let answer = service.anonymous().call(Face::Rest, "AuthService.Register", new).await.expect(201);
        assert_eq!(claims(answer["access_token"].as_str().unwrap())["roles"], json!(["User"]));
        let user = user::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_ne!(user.id, 77);
        assert!(user.is_active && user.listed);
        assert!(!(user.is_staff || user.is_superuser || user.is_verified));
        assert!(!(user.is_freelancer || user.is_seller || user.is_moderator));
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
async fn a_hundred_registrations_of_one_address_at_once_make_one_account() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let actors = [service.anonymous(), replica.anonymous()];
        let attempts = (0..100).map(|n| {
            let (actor, face) = (&actors[n % 2], Face::ALL[n / 2 % 2]);
            actor.call(face, "AuthService.Register", account("user@example.com"))
        });
        let outcomes = join_all(attempts).await;
        let refused: Vec<_> = outcomes.iter().filter(|outcome| outcome.status != 201).collect();
        assert_eq!(refused.len(), 99);
        for outcome in refused {
            assert_eq!((outcome.status, complaints(outcome)), (400, [("email", TAKEN)].into()), "{outcome:?}");
        }
        let db = service.app.db.reader();
        assert_eq!(user::Entity::find().count(db).await.unwrap(), 1);
        assert_eq!(profile::Entity::find().count(db).await.unwrap(), 1);
        assert_eq!(session::Entity::find().count(db).await.unwrap(), 1);

        // One mail, from whichever replica takes it out of the outbox.
        let sent = || service.mails.lock().unwrap().len() + replica.mails.lock().unwrap().len();
        wait_until(Duration::from_secs(5), "the mail", async || sent() > 0).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(sent(), 1);
        replica.stop().await;
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
