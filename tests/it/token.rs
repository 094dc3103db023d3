//! Tokens: what they say, who else can read them, and what is no token of ours.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::DateTime;
use serde_json::{Value, json};

use crate::harness::{Face, Service, Store, actor::claims, everywhere, python};
use crate::security_tokens::{KEY, assert_refused, get_me, look_into};
use crate::user::user_id;

// What they say.

#[tokio::test(flavor = "multi_thread")]
async fn tokens_say_what_simplejwt_writes_and_what_we_add() {
    for (algorithm, key_bytes) in [("HS256", 32), ("HS384", 48), ("HS512", 64)] {
        let key = &KEY.repeat(2)[..key_bytes];
        let settings = [("JWT_ALGORITHM", algorithm), ("JWT_SECRET_KEY", key)];
        let service = Service::start_with(Store::all()[0], &settings).await;
        let user = service.user("user@example.com").await;
        let now = service.clock.now().timestamp();
        let [access, refresh] = [&user.access_token, &user.refresh_token].map(|token| token.clone().unwrap());
        for token in [&access, &refresh] {
            let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
            let header: Value = serde_json::from_slice(&header).unwrap();
            let kid = header["kid"].as_str().unwrap();
            assert_eq!(header, json!({ "alg": algorithm, "typ": "JWT", "kid": kid }));
        }
        let [access, refresh] = [claims(&access), claims(&refresh)];
        let id = user_id(&user).to_string();
        assert_eq!(
            access,
            json!({
                "token_type": "access", "exp": now + 3600, "iat": now, "jti": access["jti"], "user_id": id,
                "sub": id, "sid": access["sid"], "roles": ["User"], "is_verified": false,
            })
        );
        assert_eq!(
            refresh,
            json!({
                "token_type": "refresh", "exp": now + 604_800, "iat": now, "jti": refresh["jti"], "user_id": id,
                "sub": id, "sid": access["sid"], "gen": 1,
            })
        );
        let again = service.login("user@example.com").await;
        let again = claims(again.access_token.as_deref().unwrap());
        let ids = [&access["jti"], &refresh["jti"], &again["jti"]].map(|jti| jti.as_str().unwrap());
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids.iter().all(|jti| jti.len() >= 22), "{ids:?}");
        get_me(&user, Face::Rest).await.expect(200);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simplejwt_itself_takes_our_tokens() {
    let Some(python) = python() else { return };
    for algorithm in ["HS256", "HS384", "HS512"] {
        let key = "shared-with-the-services-that-verify-by-themselves-0123456789-0123456789";
        let settings = [("JWT_ALGORITHM", algorithm), ("JWT_SECRET_KEY", key)];
        let service = Service::start_with(Store::all()[0], &settings).await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user).to_string();
        let found = simplejwt(
            &python,
            &json!({
                "key": key, "algorithm": algorithm, "user_id": id,
                "access": user.access_token, "refresh": user.refresh_token,
            }),
        );
        assert_eq!(found["user_id"], json!(id));
        let [access, refresh] = [&user.access_token, &user.refresh_token].map(|t| claims(t.as_deref().unwrap()));
        assert_eq!((&found["access"], &found["pyjwt"], &found["refresh"]), (&access, &access, &refresh));

        // Each claim of theirs is there in ours, as the same type; and without a session theirs opens nothing here.
        for (own, ours) in [("own_access", access), ("own_refresh", refresh)] {
            let token = found[own].as_str().unwrap();
            for (name, theirs) in claims(token).as_object().unwrap() {
                let same = std::mem::discriminant(theirs) == std::mem::discriminant(&ours[name]);
                assert!(same, "{own}: {name} is {theirs} there and {} here", ours[name]);
            }
            assert_refused(&service, token, "TOKEN_INVALID", own).await;
        }
        service.stop().await;
    }
}

/// What SimpleJWT finds in these tokens. Panics with its words if it doesn't take them.
fn simplejwt(python: &str, request: &Value) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/simplejwt.py");
    let mut peer = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    peer.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = peer.wait_with_output().unwrap();
    assert!(output.status.success(), "SimpleJWT refuses: see above");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_the_django_service_made_open_nothing() {
    let given: Value = serde_json::from_str(include_str!("../data/simplejwt-tokens.json")).unwrap();
    let key = given["key"].as_str().unwrap();
    for store in Store::all() {
        let service = Service::start_with(store, &[("JWT_SECRET_KEY", key)]).await;
        // Whoever they name is here, so that nothing but the token itself stands in the way.
        for n in 1..=3 {
            service.user(&format!("user{n}@example.com")).await;
        }
        let made_at = given["access_claims"]["iat"].as_i64().unwrap();
        service.set_clock(DateTime::from_timestamp(made_at + 60, 0).unwrap());
        for (name, reason) in [
            ("access", "TOKEN_INVALID"),
            ("refresh", "TOKEN_INVALID"),
            ("refresh_blacklisted", "TOKEN_INVALID"),
            ("access_expired", "TOKEN_EXPIRED"),
            ("access_other_key", "TOKEN_INVALID"),
        ] {
            assert_refused(&service, given[name].as_str().unwrap(), reason, name).await;
        }
        service.stop().await;
    }
}

// VerifyToken.

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_looked_into() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let anyone = service.anonymous();
        let all = json!([
            "create_gig",
            "create_product",
            "view_analytics",
            "receive_orders",
            "moderate_content",
            "manage_disputes",
            "manage_users",
            "manage_roles",
        ]);
        for (actor, roles, permissions, is_verified) in
            [(&admin, json!(["User", "Admin"]), all, true), (&user, json!(["User"]), json!([]), false)]
        {
            for (token, kind) in [(&actor.access_token, "access"), (&actor.refresh_token, "refresh")] {
                let token = token.as_deref().unwrap();
                let says = claims(token);
                let told = look_into(&anyone, face, token).await.expect(200);
                assert_eq!(
                    told,
                    json!({
                        "user_id": user_id(actor), "token_type": kind, "sid": says["sid"], "exp": says["exp"],
                        "roles": roles, "permissions": permissions, "is_verified": is_verified,
                    })
                );
            }
        }
        look_into(&anyone, face, " ").await.expect_field(400, "token");
        anyone.call(face, "AuthService.VerifyToken", json!({})).await.expect_field(422, "token");

        // A spent refresh token is worth nothing, though it is not stolen by being looked into.
        let spent = user.refresh_token.as_deref().unwrap();
        let next = user.call(face, "AuthService.RefreshToken", json!({ "refresh_token": spent })).await.expect(200);
        look_into(&anyone, face, spent).await.expect(401);
        let next = next["refresh_token"].as_str().unwrap();
        look_into(&anyone, face, next).await.expect(200);

        user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        for token in [user.access_token.as_deref().unwrap(), next] {
            look_into(&anyone, face, token).await.expect(401);
        }
        look_into(&anyone, face, admin.access_token.as_deref().unwrap()).await.expect(200);
    })
    .await;
}
