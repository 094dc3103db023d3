//! The line to PostgreSQL breaks, in the middle of a transaction or at its end.

use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    faults::{READY_WITHIN, REFUSED_WITHIN},
    harness::{
        Actor, Face, Outcome, PASSWORD, Service, Store,
        actor::claims,
        has_postgres,
        process::Installation,
        proxy::{Moment, Proxy, Way},
        stores::{Database, migrated_database},
        wait_until, within_a_second,
    },
    user::user_id,
};

/// The service, and its line to PostgreSQL.
async fn service() -> (Database, Proxy, Service) {
    let database = migrated_database(Store::Postgres).await;
    let line = Proxy::to(&database.url).await;
    let service = Service::start_over(&line.url(&database.url)).await;
    (database, line, service)
}

fn session(of: &Actor) -> Vec<u8> {
    let claims = claims(of.access_token.as_deref().unwrap());
    claims["sid"].as_str().unwrap().parse::<Uuid>().unwrap().into_bytes().to_vec()
}

/// The call, whose transaction sends `mark` and is cut at this moment.
async fn cut(
    line: &Proxy,
    moment: Moment,
    mark: impl Into<Vec<u8>>,
    (actor, face, rpc, fields): (&Actor, Face, &str, &Value),
) {
    line.cut_transaction(mark, moment);
    let begun = Instant::now();
    let outcome = actor.call(face, rpc, fields.clone()).await;
    let took = begun.elapsed();
    assert!(line.has_cut(), "{rpc} sends no such transaction");
    assert_eq!(outcome.status, 503, "{rpc}, cut {moment:?}: {outcome:?}");
    assert!(outcome.retry_after.is_some() && took < REFUSED_WITHIN, "{rpc}, cut {moment:?}: {took:?}, {outcome:?}");
}

async fn bio(actor: &Actor) -> Value {
    actor.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200)["bio"].take()
}

async fn login(service: &Service, email: &str) -> Outcome {
    let fields = json!({ "email": email, "password": PASSWORD });
    service.anonymous().call(Face::Rest, "AuthService.Login", fields).await
}

/// The `jti` of the refresh token that this one is replaced by.
async fn successor(actor: &Actor) -> Value {
    let fields = json!({ "refresh_token": actor.refresh_token });
    let answer = actor.call(Face::Rest, "AuthService.RefreshToken", fields).await.expect(200);
    claims(answer["refresh_token"].as_str().unwrap())["jti"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_loses_its_connection_leaves_nothing_and_may_be_repeated() {
    if !has_postgres() {
        return;
    }
    let (_database, line, service) = service().await;
    let (user, admin) = (service.user("user@example.com").await, service.admin("admin@example.com").await);
    let id = user_id(&user);
    for (n, moment) in [Moment::Within, Moment::BeforeCommit].into_iter().enumerate() {
        for face in Face::ALL {
            let new = format!("new-{n}-{face:?}@example.com").to_lowercase();
            let register = json!({ "email": new, "password": PASSWORD });
            cut(&line, moment, new.as_str(), (&user, face, "AuthService.Register", &register)).await;
            login(&service, &new).await.expect(404);
            user.call(face, "AuthService.Register", register).await.expect(201);

            let before = bio(&user).await;
            let words = format!("of {n} by {face:?}");
            let patch = json!({ "bio": words });
            cut(&line, moment, words.as_str(), (&user, face, "ProfileService.UpdateMyProfile", &patch)).await;
            assert_eq!(bio(&user).await, before);
            user.call(face, "ProfileService.UpdateMyProfile", patch).await.expect(200);
            assert_eq!(bio(&user).await, words);

            let name = format!("Jane {n} {face:?}");
            let patch = json!({ "id": id, "first_name": name, "is_seller": (n == 0) == (face == Face::Rest) });
            let look = async || user.call(face, "UserService.GetUser", json!({ "id": id })).await.expect(200);
            let before = look().await;
            cut(&line, moment, name.as_str(), (&admin, face, "UserService.UpdateUser", &patch)).await;
            assert_eq!(look().await, before);
            admin.call(face, "UserService.UpdateUser", patch.clone()).await.expect(200);
            let after = look().await;
            assert_eq!((&after["first_name"], &after["is_seller"]), (&patch["first_name"], &patch["is_seller"]));

            let leaving = service.login("user@example.com").await;
            let refresh = json!({ "refresh_token": leaving.refresh_token });
            cut(&line, moment, session(&leaving), (&leaving, face, "AuthService.RefreshToken", &refresh)).await;
            leaving.call(face, "AuthService.RefreshToken", refresh).await.expect(200);
            cut(&line, moment, session(&leaving), (&leaving, face, "AuthService.Logout", &json!({}))).await;
            bio(&leaving).await;
            leaving.call(face, "AuthService.Logout", json!({})).await.expect(200);
            leaving.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_done_once_and_a_repeated_call_finds_it_done() {
    if !has_postgres() {
        return;
    }
    let (_database, line, service) = service().await;
    let (user, admin) = (service.user("user@example.com").await, service.admin("admin@example.com").await);
    let id = user_id(&user);
    for face in Face::ALL {
        let lose = async |mark: Vec<u8>, actor: &Actor, rpc: &str, fields: &Value| {
            cut(&line, Moment::AfterCommit, mark, (actor, face, rpc, fields)).await;
        };
        let new = format!("new-{face:?}@example.com").to_lowercase();
        let register = json!({ "email": new, "password": PASSWORD });
        lose(new.clone().into(), &user, "AuthService.Register", &register).await;
        let taken = user.call(face, "AuthService.Register", register).await.expect_field(400, "email");
        assert_eq!(taken, ["A user with this email already exists."]);
        login(&service, &new).await.expect(200);
        assert_eq!(service.mails_to(&new, 1).await.len(), 1);

        let words = format!("by {face:?}");
        let patch = json!({ "bio": words });
        lose(words.clone().into(), &user, "ProfileService.UpdateMyProfile", &patch).await;
        within_a_second(async || bio(&user).await == words.as_str()).await;
        user.call(face, "ProfileService.UpdateMyProfile", patch).await.expect(200);

        let name = format!("Jane {face:?}");
        let patch = json!({ "id": id, "first_name": name, "is_moderator": face == Face::Rest });
        lose(name.clone().into(), &admin, "UserService.UpdateUser", &patch).await;
        within_a_second(async || {
            let seen = user.call(face, "UserService.GetUser", json!({ "id": id })).await.expect(200);
            // The token's roles are doubted: it is the permissions of now that it gives.
            let told =
                user.call(face, "AuthService.VerifyToken", json!({ "token": user.access_token })).await.expect(200);
            let is_moderator = told["permissions"].as_array().unwrap().contains(&json!("moderate_content"));
            seen["first_name"] == name.as_str() && is_moderator == (face == Face::Rest)
        })
        .await;
        admin.call(face, "UserService.UpdateUser", patch).await.expect(200);

        let leaving = service.login("user@example.com").await;
        let refresh = json!({ "refresh_token": leaving.refresh_token });
        lose(session(&leaving), &leaving, "AuthService.RefreshToken", &refresh).await;
        // Within the grace whoever repeats the token gets what was lost, each time the same.
        assert_eq!(successor(&leaving).await, successor(&leaving).await);
        lose(session(&leaving), &leaving, "AuthService.Logout", &json!({})).await;
        let look = async || leaving.call(face, "ProfileService.GetMyProfile", json!({})).await.status;
        within_a_second(async || look().await == 401).await;
        leaving.call(face, "AuthService.RefreshToken", refresh).await.expect(401);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_or_silent_is_used_again_within_two_seconds_and_nobody_is_locked_out() {
    if !has_postgres() {
        return;
    }
    let database = migrated_database(Store::Postgres).await;
    let line = Proxy::to(&database.url).await;
    let url = line.url(&database.url);
    let installation = Installation::with(&[("DATABASE_URL", url.as_str()), ("DEBUG", "true")]);
    let service = installation.serve().await;
    let user = service.anonymous().sign_up("user@example.com").await;
    for (round, way) in [Way::Cut, Way::BlackHole].repeat(2).into_iter().enumerate() {
        let before = json!({ "bio": format!("before {round}") });
        user.call(Face::Rest, "ProfileService.UpdateMyProfile", before.clone()).await.expect(200);
        line.set(way);
        for face in Face::ALL {
            for (rpc, fields) in [
                ("ProfileService.UpdateMyProfile", json!({ "bio": "lost" })),
                ("UserService.ListUsers", json!({})),
                ("AuthService.Login", json!({ "email": "user@example.com", "password": PASSWORD })),
            ] {
                let begun = Instant::now();
                let outcome = user.call(face, rpc, fields).await;
                let took = begun.elapsed();
                assert_eq!(outcome.status, 503, "{rpc}, {way:?}, round {round}: {outcome:?}");
                assert!(took < REFUSED_WITHIN, "{rpc}, {way:?}, round {round}: {took:?}");
            }
        }
        line.set(Way::Pass);
        let is_back = async || user.call(Face::Rest, "UserService.ListUsers", json!({})).await.status == 200;
        wait_until(READY_WITHIN, "the database", is_back).await;
        // A write without an answer may arrive, where nothing was cut; an acknowledged one is never undone.
        let now = bio(&user).await;
        assert!(now == before["bio"] || way == Way::BlackHole && now == "lost", "{now}");
    }
    service.stop().await;
}
