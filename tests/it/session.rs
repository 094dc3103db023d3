//! Sessions: login, refresh, logout, and what becomes of the tokens.

use chrono::Duration;
use futures_util::future::join_all;
use identity::{
    domain::session::MAX_SESSIONS,
    entity::{
        audit_event, session,
        user::{self, PasswordHash},
    },
    pb,
};
use prost::Message;
use reqwest::Method;
use sea_orm::{ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, PASSWORD, Service,
    actor::{Outcome, claims, outcome_of},
    everywhere, on_each_store,
};
use crate::user::{set_flags, user_id};

pub async fn login(service: &Service, face: Face, email: &str, password: &str) -> Outcome {
    let credentials = json!({ "email": email, "password": password });
    service.anonymous().call(face, "AuthService.Login", credentials).await
}

pub async fn refresh(actor: &Actor, face: Face, token: &str) -> Outcome {
    actor.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await
}

pub async fn me(actor: &Actor, face: Face) -> Outcome {
    actor.call(face, "ProfileService.GetMyProfile", json!({})).await
}

/// A claim of one of the tokens of an answer.
pub fn claim(answer: &Value, token: &str, name: &str) -> String {
    claims(answer[token].as_str().unwrap())[name].as_str().unwrap().to_owned()
}

pub fn refresh_token(answer: &Value) -> String {
    answer["refresh_token"].as_str().unwrap().to_owned()
}

/// What the audit trail says happened, in order.
pub async fn audit_trail(service: &Service) -> Vec<audit_event::Model> {
    audit_event::Entity::find().order_by_asc(audit_event::Column::Id).all(service.app.db.reader()).await.unwrap()
}

pub async fn store_password(service: &Service, email: &str, hash: &str) {
    let user = user::Entity::find().filter(user::Column::Email.eq(email)).one(service.app.db.reader()).await.unwrap();
    let mut user: user::ActiveModel = user.unwrap().into();
    user.password = Set(PasswordHash(hash.to_owned()));
    let tx = service.app.db.begin().await.unwrap();
    user.update(&tx).await.unwrap();
    tx.commit().await.unwrap();
}

pub async fn stored_password(service: &Service, email: &str) -> String {
    let user = user::Entity::find().filter(user::Column::Email.eq(email)).one(service.app.db.reader()).await.unwrap();
    user.unwrap().password.0
}

// Login.

#[tokio::test(flavor = "multi_thread")]
async fn a_login_answers_as_documented() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        set_flags(service, user_id(&user), &[(user::Column::IsFreelancer, true), (user::Column::IsVerified, true)])
            .await;
        let mut answer = login(service, face, " User@Example.com", PASSWORD).await.expect(200);
        for token in ["access_token", "refresh_token"] {
            assert!(answer[token].take().is_string());
        }
        assert_eq!(
            answer,
            json!({
                "access_token": null, "refresh_token": null,
                "user": {
                    "id": user_id(&user), "email": "user@example.com", "first_name": "Jane", "last_name": "Doe",
                    "is_active": true, "is_verified": true, "roles": ["User", "Freelancer"],
                },
            })
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_says_why_as_documented() {
    const NO_ACCOUNT: &str = "No active account found with the given credentials";
    on_each_store(async |service| {
        service.user("user@example.com").await;
        let gone = service.user("gone@example.com").await;
        set_flags(service, user_id(&gone), &[(user::Column::IsActive, false)]).await;
        store_password(service, "gone@example.com", &stored_password(service, "user@example.com").await).await;
        let bad = json!({ "error": "Invalid credentials", "detail": NO_ACCOUNT });
        let cases = [
            ("nobody@example.com", PASSWORD, 404, json!({ "error": "User not found" }), "USER_NOT_FOUND"),
            ("user@example.com", "wrong-password-1", 401, bad.clone(), "INVALID_CREDENTIALS"),
            ("user@example.com", "tr0ub4dor&3x", 401, bad.clone(), "INVALID_CREDENTIALS"),
            ("gone@example.com", PASSWORD, 401, bad.clone(), "INVALID_CREDENTIALS"),
            ("gone@example.com", "wrong-password-1", 401, bad, "INVALID_CREDENTIALS"),
        ];
        for (email, password, status, body, reason) in cases {
            let sent = json!({ "email": email, "password": password });
            let sent = service.anonymous().request(Method::POST, "/api/auth/login/").json(&sent).send().await.unwrap();
            let challenge = sent.headers().get("www-authenticate").map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(challenge.as_deref(), (status == 401).then_some("Bearer"), "{email}");
            let outcome = outcome_of(sent).await;
            assert_eq!(outcome.status, status, "{email}: {outcome:?}");
            assert_eq!(serde_json::from_str::<Value>(&outcome.text).unwrap(), body, "{email}");

            let outcome = login(service, Face::Grpc, email, password).await;
            assert_eq!((outcome.status, outcome.reason.as_deref()), (status, Some(reason)), "{email}: {outcome:?}");
        }
        let missing = login_fields(service, json!({})).await;
        assert!(missing.into_iter().all(|outcome| outcome.status == 422 && outcome.fields.len() == 2));
        let absurd = json!({ "email": "user@example.com", "password": "x".repeat(129) });
        let absurd = login_fields(service, absurd).await;
        assert!(absurd.into_iter().all(|outcome| outcome.expect_field(400, "password").len() == 1));
    })
    .await;
}

async fn login_fields(service: &Service, fields: Value) -> Vec<Outcome> {
    let anyone = service.anonymous();
    join_all(Face::ALL.map(|face| anyone.call(face, "AuthService.Login", fields.clone()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_first_logins_at_once_with_a_password_of_the_django_service_both_succeed() {
    let hashes: Vec<Value> = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
    let case = hashes.iter().find(|case| case["name"] == "pbkdf2_sha256_260000").unwrap();
    let [password, hash] = ["password", "hash"].map(|key| case[key].as_str().unwrap());
    on_each_store(async |service| {
        let replica = service.replica().await;
        service.user("user@example.com").await;
        store_password(service, "user@example.com", hash).await;
        let logins = [service, &replica, service, &replica].map(|s| login(s, Face::Rest, "user@example.com", password));
        for outcome in join_all(logins).await {
            outcome.expect(200);
        }
        replica.stop().await;
    })
    .await;
}

// Refresh.

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_gives_the_next_pair_of_tokens() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        service.clock.advance(Duration::minutes(30));
        let spent = user.refresh_token.clone().unwrap();
        let answer = user.call(face, "AuthService.RefreshToken", json!({ "refresh_token": spent })).await.expect(200);
        assert_ne!(claim(&answer, "refresh_token", "jti"), claims(&spent)["jti"].as_str().unwrap());
        let me = user.with_token(answer["access_token"].as_str().unwrap());
        me.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_is_good_for_its_own_use_only() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let [access, refreshing] = [&user.access_token, &user.refresh_token].map(|t| t.clone().unwrap());
        refresh(&user, face, &access).await.expect(401);
        me(&user.with_token(&refreshing), face).await.expect(401);
        for empty in ["", " "] {
            refresh(&user, face, empty).await.expect_field(400, "refresh_token");
        }
        refresh(&user, face, "nonsense").await.expect(401);
        user.call(face, "AuthService.RefreshToken", json!({})).await.expect_field(422, "refresh_token");
        // None of that harmed the session.
        me(&user, face).await.expect(200);
        refresh(&user, face, &refreshing).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_lives_an_hour_and_a_refresh_token_seven_days() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let other = service.login("user@example.com").await;
        let began = service.clock.now();
        let at = async |secs: i64| service.set_clock(began + Duration::seconds(secs));

        at(3_599).await;
        me(&user, face).await.expect(200);
        at(3_600).await;
        let expired = me(&user, face).await;
        assert_eq!(expired.status, 401, "{expired:?}");
        if face == Face::Grpc {
            assert_eq!(expired.reason.as_deref(), Some("TOKEN_EXPIRED"));
        }
        at(604_799).await;
        refresh(&user, face, user.refresh_token.as_deref().unwrap()).await.expect(200);
        at(604_800).await;
        refresh(&other, face, other.refresh_token.as_deref().unwrap()).await.expect(401);
    })
    .await;
}

// Logout.

#[tokio::test(flavor = "multi_thread")]
async fn a_login_beyond_the_hundredth_ends_the_session_that_was_not_refreshed_for_longest() {
    on_each_store(async |service| {
        let oldest = service.user("user@example.com").await;
        let mut younger = Vec::new();
        for _ in 1..MAX_SESSIONS {
            service.clock.advance(Duration::milliseconds(1));
            younger.push(service.login("user@example.com").await);
        }
        service.clock.advance(Duration::milliseconds(1));
        refresh(&oldest, Face::Grpc, oldest.refresh_token.as_deref().unwrap()).await.expect(200);
        me(&younger[0], Face::Rest).await.expect(200);
        let youngest = service.login("user@example.com").await;
        me(&younger[0], Face::Rest).await.expect(401);
        refresh(&younger[0], Face::Grpc, younger[0].refresh_token.as_deref().unwrap()).await.expect(401);
        for actor in [&oldest, &younger[1], &youngest] {
            me(actor, Face::Rest).await.expect(200);
        }
        let trail = audit_trail(service).await;
        let told: Vec<_> =
            trail.iter().filter(|row| row.kind == "session.crowded_out").map(|row| &row.detail).collect();
        assert_eq!(told, [r#"{"sessions":1}"#]);
    })
    .await;
}

// The trail.

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_tells_who_did_what_from_where() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let credentials = json!({ "email": "user@example.com", "password": PASSWORD });
        let by_rest = service.anonymous().request(Method::POST, "/api/auth/login/").json(&credentials);
        let by_rest =
            by_rest.header("x-request-id", "login-1").header("user-agent", format!("Browser/1.0 {}", "x".repeat(300)));
        outcome_of(by_rest.send().await.unwrap()).await.expect(200);

        let message = pb::LoginRequest { email: Some("user@example.com".into()), password: Some(PASSWORD.into()) };
        let mut by_grpc = tonic::Request::new(message.encode_to_vec());
        by_grpc.metadata_mut().insert("x-request-id", "login-2".parse().unwrap());
        service.anonymous().send_grpc("/identity.v1.AuthService/Login", by_grpc).await.unwrap();
        login(service, Face::Rest, "user@example.com", "wrong-password-1").await.expect(401);
        let logout = user.call(Face::Rest, "AuthService.Logout", json!({})).await;

        let trail = audit_trail(service).await;
        let kinds: Vec<_> = trail.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["user.registered", "session.began", "session.began", "session.ended"]);
        for event in &trail {
            assert_eq!((event.actor_id, event.user_id), (Some(user_id(&user)), Some(user_id(&user))), "{event:?}");
            assert_eq!((event.ip.as_deref(), event.created_at), (Some("127.0.0.1"), service.clock.now()));
        }
        let ids: Vec<_> = trail[1..].iter().map(|event| event.request_id.clone()).collect();
        assert_eq!(ids, [Some("login-1".into()), Some("login-2".into()), logout.request_id]);
        let agents: Vec<_> = trail[1..3].iter().map(|event| event.user_agent.clone().unwrap()).collect();
        assert!(agents[0].starts_with("Browser/1.0 xxx") && agents[0].len() == 255, "{agents:?}");
        assert!(agents[1].starts_with("tonic/"), "{agents:?}");

        let sessions = session::Entity::find().filter(session::Column::UserAgent.starts_with("Browser/1.0"));
        assert_eq!(sessions.count(service.app.db.reader()).await.unwrap(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_makes_a_superuser_leaves_a_row_in_the_audit() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let row = audit_trail(service).await.remove(0);
        assert_eq!((row.kind.as_str(), row.user_id), ("user.superuser_made", Some(user_id(&admin))));
        assert_eq!((row.actor_id, row.ip, row.request_id), (None, None, None));
    })
    .await;
}
