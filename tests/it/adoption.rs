//! Tokens that the Django service made: taken up to the time that `ACCEPT_SIMPLEJWT_UNTIL` names, as those of a session.

use aws_lc_rs::hmac;
use chrono::{DateTime, Duration};
use identity::entity::{audit_event, session};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use serde_json::{Value, json};

use crate::{
    harness::{Actor, Face, PASSWORD, Service, Store, actor::claims, within_a_second},
    security_tokens::{assert_refused, get_me, look_into, signed},
};

/// A service for which the recorded tokens of a real Django are a minute old, and whose user of that id they are.
struct Adopted {
    service: Service,
    /// Bears nothing but Django's tokens.
    user: Actor,
    refresh: String,
}

fn recorded() -> Value {
    serde_json::from_str(include_str!("../data/simplejwt-tokens.json")).unwrap()
}

async fn adopted(store: Store, until: Duration) -> Adopted {
    let given = recorded();
    let made_at = DateTime::from_timestamp(given["access_claims"]["iat"].as_i64().unwrap(), 0).unwrap();
    let until = (made_at + until).to_rfc3339();
    let settings = [("JWT_SECRET_KEY", given["key"].as_str().unwrap()), ("ACCEPT_SIMPLEJWT_UNTIL", until.as_str())];
    let service = Service::start_with(store, &settings).await;
    service.set_clock(made_at + Duration::seconds(60));
    for n in 1..=3 {
        service.user(&format!("user{n}@example.com")).await;
    }
    let user = service.anonymous().with_token(given["access"].as_str().unwrap());
    Adopted { service, user, refresh: given["refresh"].as_str().unwrap().to_owned() }
}

async fn refresh(actor: &Actor, face: Face, token: &str) -> crate::harness::Outcome {
    actor.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_django_service_stay_logged_in() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(3)).await;
        let me = get_me(&user, face).await.expect(200);
        assert_eq!(me["user_id"].as_i64().or(me["id"].as_i64()), Some(3), "{me}");
        for token in [user.access_token.as_deref().unwrap(), &token] {
            assert_eq!(look_into(&user, face, token).await.expect(200)["user_id"].as_i64(), Some(3));
        }
        let next = refresh(&user, face, &token).await.expect(200);
        let newer = user.with_token(next["access_token"].as_str().unwrap());
        get_me(&newer, face).await.expect(200);

        // As with any other: within the grace the same successor, later reuse is theft and ends the session.
        let again = refresh(&user, face, &token).await.expect(200);
        let jti = |tokens: &Value| claims(tokens["refresh_token"].as_str().unwrap())["jti"].clone();
        assert_eq!(jti(&again), jti(&next));
        service.clock.advance(Duration::seconds(11));
        refresh(&user, face, &token).await.expect(401);
        refresh(&user, face, next["refresh_token"].as_str().unwrap()).await.expect(401);
        get_me(&newer, face).await.expect(401);
        refresh(&user, face, &token).await.expect(401);

        let given = recorded();
        for (name, reason) in [("access_expired", "TOKEN_EXPIRED"), ("access_other_key", "TOKEN_INVALID")] {
            assert_refused(&service, given[name].as_str().unwrap(), reason, name).await;
        }
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_adopt_one_session() {
    for store in Store::all() {
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(3)).await;
        let before = session::Entity::find().all(service.app.db.reader()).await.unwrap().len();
        let both = (0..10).map(|_| refresh(&user, Face::Rest, &token));
        for outcome in futures_util::future::join_all(both).await {
            outcome.expect(200);
        }
        let db = service.app.db.reader();
        assert_eq!(session::Entity::find().all(db).await.unwrap().len(), before + 1);
        let adopted = audit_event::Entity::find().filter(audit_event::Column::Kind.eq("session.adopted"));
        let adopted = adopted.all(db).await.unwrap();
        let told: Vec<_> = adopted.iter().map(|row| (row.actor_id, row.user_id, row.ip.as_deref())).collect();
        assert_eq!(told, [(Some(3), Some(3), Some("127.0.0.1"))]);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_django_service_outlives_the_time_or_our_own_lifetimes() {
    for store in Store::all() {
        let Adopted { service, user, refresh: token } = adopted(store, Duration::seconds(120)).await;
        get_me(&user, Face::Grpc).await.expect(200);
        service.clock.advance(Duration::seconds(60));
        for token in [user.access_token.as_deref().unwrap(), &token] {
            assert_refused(&service, token, "TOKEN_INVALID", "a token after its time").await;
        }
        service.stop().await;

        // The recorded tokens say that they are good for ten years.
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(30)).await;
        service.clock.advance(Duration::seconds(3600));
        get_me(&user, Face::Rest).await.expect(401);
        refresh(&user, Face::Rest, &token).await.expect(200);
        service.stop().await;
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(30)).await;
        service.clock.advance(Duration::days(7));
        refresh(&user, Face::Rest, &token).await.expect(401);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_and_a_new_password_end_all_that_the_django_service_issued_to_the_user() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(3)).await;
        let replica = service.replica().await;
        let there = replica.anonymous().with_token(user.access_token.as_deref().unwrap());
        get_me(&there, face).await.expect(200);
        user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        get_me(&user, face).await.expect(401);
        within_a_second(async || get_me(&there, face).await.status == 401).await;
        refresh(&user, face, &token).await.expect(401);
        look_into(&user, face, &token).await.expect(401);
        // Those of others are not touched, and the user can come back.
        let back = service.login("user3@example.com").await;
        get_me(&back, face).await.expect(200);
        replica.stop().await;
        service.stop().await;

        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(3)).await;
        let passwords = json!({ "old_password": PASSWORD, "new_password": "N3w-Passw0rd!" });
        user.call(face, "AuthService.ChangePassword", passwords).await.expect(200);
        get_me(&user, face).await.expect(401);
        refresh(&user, face, &token).await.expect(401);
        service.stop().await;
    }
}

/// Before 5.5 SimpleJWT wrote the user's id as a number.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_user_may_be_one_where_django_wrote_it() {
    for store in Store::all() {
        let Adopted { service, user, refresh: token } = adopted(store, Duration::days(3)).await;
        let key = recorded()["key"].as_str().unwrap().to_owned();
        let number = |token: &str, sid: Option<&str>| {
            let mut claims = claims(token);
            claims["user_id"] = json!(3);
            if let Some(sid) = sid {
                claims["sid"] = json!(sid);
            }
            signed(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string(), hmac::HMAC_SHA256, key.as_bytes())
        };
        let access = user.access_token.as_deref().unwrap();
        get_me(&user.with_token(&number(access, None)), Face::Rest).await.expect(200);
        refresh(&user, Face::Rest, &number(&token, None)).await.expect(200);
        let ours = number(access, Some("0192f0c1-7f1e-7cc3-a1d2-0f6b6e9c3b52"));
        assert_refused(&service, &ours, "TOKEN_INVALID", "a number in a token that says to be ours").await;
        service.stop().await;
    }
}
