//! Sessions: login, refresh, logout, and what becomes of the tokens.

use std::collections::BTreeSet;

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
    Actor, Face, PASSWORD, Service, Store,
    actor::{Outcome, claims, outcome_of},
    everywhere, on_each_store,
};
use crate::user::{set_flags, user_id};

async fn login(service: &Service, face: Face, email: &str, password: &str) -> Outcome {
    let credentials = json!({ "email": email, "password": password });
    service.anonymous().call(face, "AuthService.Login", credentials).await
}

async fn refresh(actor: &Actor, face: Face, token: &str) -> Outcome {
    actor.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await
}

async fn me(actor: &Actor, face: Face) -> Outcome {
    actor.call(face, "ProfileService.GetMyProfile", json!({})).await
}

/// A claim of one of the tokens of an answer.
fn claim(answer: &Value, token: &str, name: &str) -> String {
    claims(answer[token].as_str().unwrap())[name].as_str().unwrap().to_owned()
}

fn refresh_token(answer: &Value) -> String {
    answer["refresh_token"].as_str().unwrap().to_owned()
}

/// What the audit trail says happened, in order.
async fn audit_trail(service: &Service) -> Vec<audit_event::Model> {
    audit_event::Entity::find().order_by_asc(audit_event::Column::Id).all(service.app.db.reader()).await.unwrap()
}

async fn store_password(service: &Service, email: &str, hash: &str) {
    let user = user::Entity::find().filter(user::Column::Email.eq(email)).one(service.app.db.reader()).await.unwrap();
    let mut user: user::ActiveModel = user.unwrap().into();
    user.password = Set(PasswordHash(hash.to_owned()));
    let tx = service.app.db.begin().await.unwrap();
    user.update(&tx).await.unwrap();
    tx.commit().await.unwrap();
}

async fn stored_password(service: &Service, email: &str) -> String {
    let user = user::Entity::find().filter(user::Column::Email.eq(email)).one(service.app.db.reader()).await.unwrap();
    user.unwrap().password.0
}

// Login.

#[tokio::test(flavor = "multi_thread")]
async fn a_login_begins_a_session_of_its_own() {
    everywhere(async |service, face| {
        let registered = service.user("user@example.com").await;
        let login = json!({ "email": "USER@example.com", "password": PASSWORD });
        let answer = service.anonymous().call(face, "AuthService.Login", login).await.expect(200);
        let first = claims(registered.access_token.as_deref().unwrap());
        let second = claims(answer["access_token"].as_str().unwrap());
        assert_ne!(first["sid"], second["sid"]);
        assert_eq!(first["user_id"], second["user_id"]);
        assert_eq!(answer["user"]["roles"], json!(["User"]));
    })
    .await;
}

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
async fn a_password_that_the_django_service_kept_logs_in_and_is_kept_as_argon2id_from_then_on() {
    let hashes: Vec<Value> = serde_json::from_str(include_str!("../data/django-hashes.json")).unwrap();
    on_each_store(async |service| {
        for (n, case) in hashes.iter().enumerate() {
            let [name, password, hash] = ["name", "password", "hash"].map(|key| case[key].as_str().unwrap());
            let email = format!("user{n}@example.com");
            service.user(&email).await;
            store_password(service, &email, hash).await;
            let face = Face::ALL[n % 2];
            if case["valid"] == json!(true) {
                login(service, face, &email, password).await.expect(200);
                let kept = stored_password(service, &email).await;
                assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{name}: {kept}");
                login(service, face, &email, password).await.expect(200);
                assert_eq!(stored_password(service, &email).await, kept, "{name}: once is enough");
                login(service, face, &email, "wrong-password-1").await.expect(401);
            } else {
                login(service, face, &email, password).await.expect(401);
                assert_eq!(stored_password(service, &email).await, hash, "{name}: it stays as it was");
            }
        }
    })
    .await;
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
async fn a_refresh_token_just_replaced_gives_the_same_successor_for_ten_seconds() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let elsewhere = service.login("user@example.com").await;
        let spent = user.refresh_token.clone().unwrap();
        let first = refresh(&user, face, &spent).await.expect(200);
        service.clock.advance(Duration::seconds(10));
        let second = refresh(&user, face, &spent).await.expect(200);
        assert_eq!(refresh_token(&first), refresh_token(&second), "one successor, to the letter");
        assert_ne!(claim(&first, "refresh_token", "jti"), claims(&spent)["jti"].as_str().unwrap());
        assert_ne!(claim(&first, "access_token", "jti"), claim(&second, "access_token", "jti"));
        assert_eq!(claim(&first, "access_token", "sid"), claim(&second, "access_token", "sid"));
        let [first, second] = [first, second].map(|a| user.with_token(a["access_token"].as_str().unwrap()));
        me(&first, face).await.expect(200);
        me(&second, face).await.expect(200);
        assert!(audit_trail(service).await.iter().all(|event| event.kind != "session.refresh_token_reused"));

        service.clock.advance(Duration::microseconds(1));
        refresh(&user, face, &spent).await.expect(401);
        for dead in [&user, &first, &second] {
            me(dead, face).await.expect(401);
        }
        me(&elsewhere, face).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_refresh_token_ends_the_session() {
    everywhere(async |service, face| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let spent = user.refresh_token.clone().unwrap();
        let next = refresh(&user, face, &spent).await.expect(200);
        let next = (user.with_token(next["access_token"].as_str().unwrap()), refresh_token(&next));
        // The one before the last is theft even within the grace of the last.
        let last = refresh(&user, face, &next.1).await.expect(200);
        let refused = refresh(&user, face, &spent).await;
        assert_eq!(refused.status, 401, "{refused:?}");
        if face == Face::Grpc {
            assert_eq!(refused.reason.as_deref(), Some("SESSION_ENDED"));
        }
        for token in [&spent, &next.1, &refresh_token(&last)] {
            refresh(&user, face, token).await.expect(401);
        }
        let last = user.with_token(last["access_token"].as_str().unwrap());
        for dead in [&user, &next.0, &last] {
            me(dead, face).await.expect(401);
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        me(&last.at(replica.address), face).await.expect(401);
        replica.stop().await;

        let trail = audit_trail(service).await;
        let thefts: Vec<_> = trail.iter().filter(|event| event.kind == "session.refresh_token_reused").collect();
        assert_eq!(thefts.len(), 1, "recorded, and once: {trail:?}");
        assert_eq!((thefts[0].user_id, thefts[0].actor_id), (Some(user_id(&user)), None), "nobody knows who it was");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_refreshes_of_one_token_at_once_give_one_successor() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let there = user.at(replica.address);
        let spent = user.refresh_token.clone().unwrap();
        let calls = (0..50).map(|n| refresh([&user, &there][n % 2], Face::ALL[n / 2 % 2], &spent));
        let answers: Vec<_> = join_all(calls).await.into_iter().map(|outcome| outcome.expect(200)).collect();
        let successors: BTreeSet<_> = answers.iter().map(|a| claim(a, "refresh_token", "jti")).collect();
        assert_eq!(successors.len(), 1, "a fork: {successors:?}");

        let row = session::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!((row.generation, row.revoked_at), (2, None));
        for answer in &answers {
            me(&user.with_token(answer["access_token"].as_str().unwrap()), Face::Rest).await.expect(200);
        }
        refresh(&there, Face::Rest, &refresh_token(&answers[0])).await.expect(200);
        replica.stop().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_over_after_thirty_days_however_often_it_is_refreshed() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let began = service.clock.now();
        let mut token = user.refresh_token.clone().unwrap();
        for day in [6, 12, 18, 24] {
            service.set_clock(began + Duration::days(day));
            token = refresh_token(&refresh(&user, face, &token).await.expect(200));
        }
        service.set_clock(began + Duration::days(30) - Duration::seconds(1));
        let last = refresh(&user, face, &token).await.expect(200);
        token = refresh_token(&last);
        for kind in ["access_token", "refresh_token"] {
            let exp = claims(last[kind].as_str().unwrap())["exp"].as_i64().unwrap();
            assert_eq!(exp, (began + Duration::days(30)).timestamp(), "{kind}");
        }
        service.set_clock(began + Duration::days(30));
        refresh(&user, face, &token).await.expect(401);
        login(service, face, "user@example.com", PASSWORD).await.expect(200);
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

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_the_session_here_and_after_a_restart() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        user.call(Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let there = user.at(replica.address);
        there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        let replica = replica.restart().await;
        let there = user.at(replica.address);
        there.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        replica.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_both_tokens_on_every_face_and_no_other_session() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let elsewhere = service.login("user@example.com").await;
        let answer = user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        assert_eq!(answer, json!({ "message": "Successfully logged out" }));
        for face in Face::ALL {
            me(&user, face).await.expect(401);
            user.call(face, "AuthService.Logout", json!({})).await.expect(401);
            refresh(&user, face, user.refresh_token.as_deref().unwrap()).await.expect(401);
            me(&elsewhere, face).await.expect(200);
        }
        refresh(&elsewhere, face, elsewhere.refresh_token.as_deref().unwrap()).await.expect(200);
        // What was thrown away is not stolen.
        assert!(audit_trail(service).await.iter().all(|event| event.kind != "session.refresh_token_reused"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_and_a_logout_at_once_leave_nothing_alive() {
    on_each_store(async |service| {
        for round in 0..10 {
            let user = service.user(&format!("user{round}@example.com")).await;
            let token = user.refresh_token.clone().unwrap();
            let (refreshed, _) = tokio::join!(refresh(&user, Face::Grpc, &token), async {
                user.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200)
            },);
            if refreshed.status == 200 {
                let answer = refreshed.expect(200);
                me(&user.with_token(answer["access_token"].as_str().unwrap()), Face::Rest).await.expect(401);
                refresh(&user, Face::Rest, &refresh_token(&answer)).await.expect(401);
            } else {
                refreshed.expect(401);
            }
        }
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
async fn with_strict_privacy_an_unknown_address_is_told_what_a_wrong_password_is() {
    for store in Store::all() {
        for face in Face::ALL {
            let service = Service::start_with(store, &[("AUTH_PRIVACY", "strict")]).await;
            service.user("user@example.com").await;
            let login = async |email: &str| {
                let login = json!({ "email": email, "password": "wr0ng-Password" });
                let outcome = service.anonymous().call(face, "AuthService.Login", login).await;
                (outcome.status, outcome.text, outcome.reason)
            };
            let wrong = login("user@example.com").await;
            assert_eq!(wrong.0, 401);
            assert_eq!(login("nobody@example.com").await, wrong);
            service.stop().await;
        }
    }
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
