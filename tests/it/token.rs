//! Tokens: what they say, who else can read them, and what is no token of ours.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Duration};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, Service, Store,
    actor::{Outcome, claims, outcome_of, outcome_of_status},
    everywhere, on_each_store, python,
};
use crate::user::user_id;

/// The harness's key, with which whoever holds it can sign whatever he or she likes.
const KEY: &str = "a-key-for-tests-that-is-long-enough-0123456789";

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of any header and payload, signed by the book (RFC 7515 §5.1) and not by the library under test.
fn signed(header: &str, payload: &str, algorithm: hmac::Algorithm, key: &[u8]) -> String {
    let input = format!("{}.{}", base64url(header), base64url(payload));
    let signature = hmac::sign(&hmac::Key::new(algorithm, key), input.as_bytes());
    format!("{input}.{}", base64url(signature))
}

/// A token with this header and the right signature.
fn with_header(header: &Value, claims: &Value) -> String {
    signed(&header.to_string(), &claims.to_string(), hmac::HMAC_SHA256, KEY.as_bytes())
}

/// A token with these claims that is right in all else.
fn with_claims(claims: &Value) -> String {
    with_header(&json!({ "alg": "HS256", "typ": "JWT" }), claims)
}

/// `claims`, with one of them another, or none.
fn but(claims: &Value, name: &str, value: Option<Value>) -> Value {
    let mut claims = claims.clone();
    match value {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    claims
}

async fn get_me(actor: &Actor, face: Face) -> Outcome {
    actor.call(face, "ProfileService.GetMyProfile", json!({})).await
}

async fn look_into(actor: &Actor, face: Face, token: &str) -> Outcome {
    actor.call(face, "AuthService.VerifyToken", json!({ "token": token })).await
}

/// Asserts that the token is worth nothing, for this reason, wherever a token can be put.
async fn assert_refused(service: &Service, token: &str, reason: &str, what: &str) {
    let anyone = service.anonymous();
    for face in Face::ALL {
        let outcomes = [
            get_me(&anyone.with_token(token), face).await,
            look_into(&anyone, face, token).await,
            anyone.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await,
        ];
        for (place, outcome) in ["bearer", "verify", "refresh"].into_iter().zip(outcomes) {
            assert_eq!(outcome.status, 401, "{what} as {place} through {face:?}: {outcome:?}");
            if face == Face::Grpc {
                assert_eq!(outcome.reason.as_deref(), Some(reason), "{what} as {place}");
            }
        }
    }
}

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
            assert_eq!(header, json!({ "alg": algorithm, "typ": "JWT" }));
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
                "sub": id, "sid": access["sid"],
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
async fn tokens_live_as_long_as_configured() {
    let lifetimes = [("JWT_EXPIRATION_DELTA", "60"), ("JWT_REFRESH_EXPIRATION_DELTA", "120")];
    let service = Service::start_with(Store::all()[0], &lifetimes).await;
    let user = service.user("user@example.com").await;
    for (token, secs) in [(&user.access_token, 60), (&user.refresh_token, 120)] {
        let claims = claims(token.as_deref().unwrap());
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), secs);
    }
    service.clock.advance(Duration::seconds(60));
    get_me(&user, Face::Rest).await.expect(401);
    service.stop().await;
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

// What is no token of ours.

#[tokio::test(flavor = "multi_thread")]
async fn forged_tokens_are_refused() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let good = user.access_token.clone().unwrap();
        let says = claims(&good);
        let (payload, key) = (says.to_string(), KEY.as_bytes());
        let [header64, payload64, signature64]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
        // The forger's tools work: what is right in all is taken.
        get_me(&user.with_token(&with_claims(&says)), Face::Rest).await.expect(200);

        let mut forged: Vec<(String, String)> = Vec::new();
        for alg in ["none", "None", "NONE", "nOnE", "", "HS256 ", "hs256"] {
            let header = json!({ "alg": alg, "typ": "JWT" }).to_string();
            forged.push((format!("alg {alg:?}, unsigned"), format!("{}.{payload64}.", base64url(&header))));
            forged.push((format!("alg {alg:?}, signed"), signed(&header, &payload, hmac::HMAC_SHA256, key)));
        }
        for (alg, algorithm) in [("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)] {
            let header = json!({ "alg": alg, "typ": "JWT" }).to_string();
            forged.push((format!("{alg} with the same key"), signed(&header, &payload, algorithm, key)));
        }
        for alg in ["RS256", "ES256", "PS256", "EdDSA"] {
            let header = json!({ "alg": alg, "typ": "JWT" }).to_string();
            forged.push((format!("{alg} by the shared key"), signed(&header, &payload, hmac::HMAC_SHA256, key)));
        }
        let own_key = base64url(b"the-attacker's-own-key-0123456789");
        for (name, value) in [
            ("jwk", json!({ "kty": "oct", "k": own_key })),
            ("jku", json!("https://attacker.example/keys.json")),
            ("x5u", json!("https://attacker.example/cert.pem")),
            ("kid", json!("https://attacker.example/key")),
        ] {
            let header = but(&json!({ "alg": "HS256", "typ": "JWT" }), name, Some(value)).to_string();
            let token = signed(&header, &payload, hmac::HMAC_SHA256, b"the-attacker's-own-key-0123456789");
            forged.push((format!("{name} with a key of one's own"), token));
        }
        for kid in ["../../../../dev/null", "x' UNION SELECT ''--", ""] {
            let header = json!({ "alg": "HS256", "typ": "JWT", "kid": kid });
            let unsigned = signed(&header.to_string(), &payload, hmac::HMAC_SHA256, b"");
            forged.push((format!("kid {kid:?} with an empty key"), unsigned));
            forged.push((format!("kid {kid:?} of no key of ours"), with_header(&header, &says)));
        }
        let crit = json!({ "alg": "HS256", "typ": "JWT", "crit": ["exp"], "exp": 0 });
        forged.push(("an extension that must be understood (RFC 7515 §4.1.11)".into(), with_header(&crit, &says)));

        let flat = json!({ "payload": payload64, "protected": header64, "signature": signature64 });
        let general =
            json!({ "payload": payload64, "signatures": [{ "protected": header64, "signature": signature64 }] });
        for (what, token) in [
            ("nothing", "x".to_owned()),
            ("one part", payload64.to_owned()),
            ("two parts", format!("{header64}.{payload64}")),
            ("no signature", format!("{header64}.{payload64}.")),
            ("four parts", format!("{good}.{signature64}")),
            ("five parts", format!("{header64}.{payload64}.{signature64}.{payload64}.{signature64}")),
            ("the flat JSON form", flat.to_string()),
            ("the general JSON form", general.to_string()),
            ("padding", format!("{good}=")),
            ("a cut signature", good[..good.len() - 4].to_owned()),
            (
                "another's payload",
                format!("{header64}.{}.{signature64}", base64url(but(&says, "user_id", Some(json!("1"))).to_string())),
            ),
            ("no JSON inside", signed("{\"alg\":\"HS256\"}", "user_id=1", hmac::HMAC_SHA256, key)),
            ("a list inside", signed("{\"alg\":\"HS256\"}", "[]", hmac::HMAC_SHA256, key)),
            ("a claim twice", with_twice(&says)),
            ("a huge claim", with_claims(&but(&says, "roles", Some(json!(["x".repeat(6000)]))))),
        ] {
            forged.push((what.to_owned(), token));
        }
        for (what, token) in &forged {
            assert_refused(service, token, "TOKEN_INVALID", what).await;
        }
    })
    .await;
}

/// The claims with a second `user_id`: two parsers may read two users.
fn with_twice(claims: &Value) -> String {
    let payload = claims.to_string().replacen('{', "{\"user_id\":\"1\",", 1);
    signed("{\"alg\":\"HS256\"}", &payload, hmac::HMAC_SHA256, KEY.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_token_brings_along_are_not_looked_at() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let says = claims(user.access_token.as_deref().unwrap());
        let header = json!({
            "alg": "HS256", "typ": "JWT", "jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/cert",
            "jwk": { "kty": "oct", "k": base64url(b"the-attacker's-own-key-0123456789") },
        });
        get_me(&user.with_token(&with_header(&header, &says)), face).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_lack_or_have_another_type_make_no_token() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let says = claims(user.access_token.as_deref().unwrap());
        let now = service.clock.now().timestamp();
        let mistyped = [
            ("token_type", vec![json!("Access"), json!("sliding"), json!(1), json!(null)]),
            ("exp", vec![json!((now + 60).to_string()), json!(1e300), json!([now + 60]), json!(true), json!(null)]),
            ("iat", vec![json!(now.to_string()), json!({}), json!(null)]),
            ("jti", vec![json!(7), json!(null)]),
            (
                "user_id",
                vec![json!(user_id(&user)), json!("abc"), json!(""), json!(null), json!("9223372036854775808")],
            ),
            ("sid", vec![json!("not-a-session"), json!(7)]),
            ("nbf", vec![json!("soon"), json!([])]),
            ("roles", vec![json!("Admin"), json!({ "Admin": true })]),
            ("is_verified", vec![json!("true")]),
        ];
        for (name, values) in mistyped {
            for value in values {
                let what = format!("{name} {value}");
                assert_refused(service, &with_claims(&but(&says, name, Some(value))), "TOKEN_INVALID", &what).await;
            }
        }
        for name in ["token_type", "exp", "iat", "jti", "user_id", "sid"] {
            let token = with_claims(&but(&says, name, None));
            assert_refused(service, &token, "TOKEN_INVALID", &format!("no {name}")).await;
        }
        assert_refused(service, &with_claims(&but(&says, "exp", Some(json!(now)))), "TOKEN_EXPIRED", "exp now").await;
        assert_refused(service, &with_claims(&but(&says, "exp", Some(json!(-1)))), "TOKEN_EXPIRED", "exp -1").await;
        for name in ["nbf", "iat"] {
            let early = |secs: i64| with_claims(&but(&says, name, Some(json!(now + secs))));
            get_me(&user.with_token(&early(5)), Face::Grpc).await.expect(200);
            assert_refused(service, &early(6), "TOKEN_INVALID", &format!("{name} in 6 s")).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_bears_one_token_by_one_scheme() {
    on_each_store(async |service| {
        let (user, anyone) = (service.user("user@example.com").await, service.anonymous());
        let token = user.access_token.as_deref().unwrap();
        let bearer = format!("Bearer {token}");
        let cases: [(&[&str], bool); 11] = [
            (&[&bearer], true),
            (&[&format!("bearer {token}")], true),
            (&[&format!("BEARER  {token}")], true),
            (&[&bearer, &bearer], false),
            (&[&bearer, "Basic dXNlcjpwYXNz"], false),
            (&[&format!("{bearer}, {bearer}")], false),
            (&[token], false),
            (&[&format!("Basic {token}")], false),
            (&[&format!("Token {token}")], false),
            (&["Bearer"], false),
            (&[], false),
        ];
        for (headers, taken) in cases {
            let mut rest = anyone.request(Method::GET, "/api/profile/me/");
            let mut grpc = tonic::Request::new(Vec::new());
            for header in headers {
                rest = rest.header("authorization", *header);
                grpc.metadata_mut().append("authorization", header.parse().unwrap());
            }
            let rest = outcome_of(rest.send().await.unwrap()).await.status;
            let grpc = match anyone.send_grpc("/identity.v1.ProfileService/GetMyProfile", grpc).await {
                Ok(_) => 200,
                Err(status) => outcome_of_status(&status).status,
            };
            assert_eq!((rest, grpc), if taken { (200, 200) } else { (401, 401) }, "{headers:?}");
        }
        // A token that is longer than any of ours.
        let huge = format!("{token}{}", "A".repeat(5000));
        for face in Face::ALL {
            get_me(&anyone.with_token(&huge), face).await.expect(401);
        }
        // Nothing else can name a caller.
        let mut posing = tonic::Request::new(Vec::new());
        for name in ["user_id", "x-user-id", "caller", "x-authenticated-user"] {
            posing.metadata_mut().insert(name, user_id(&user).to_string().parse().unwrap());
        }
        let refused = anyone.send_grpc("/identity.v1.ProfileService/GetMyProfile", posing).await.unwrap_err();
        outcome_of_status(&refused).expect(401);
        let in_url = format!("/api/profile/me/?access_token={token}&token={token}");
        outcome_of(anyone.request(Method::GET, &in_url).send().await.unwrap()).await.expect(401);
    })
    .await;
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
