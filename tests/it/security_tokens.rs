//! Lines 1 to 7 of what must hold against an attacker: tokens. Those who try have good tokens of their own and, at their best, know
//! what our keys sign.

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::Duration;
use identity::jws::{Algorithm, Key, KeySet};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    config::{KEY as STRONG_KEY, loaded, production, refused},
    harness::{
        Actor, Face, PASSWORD, Service, Store,
        actor::{Outcome, claims, outcome_of, outcome_of_status},
        everywhere, on_each_store,
    },
    user::user_id,
};

/// The harness's key, with which whoever holds it can sign whatever he or she likes.
pub(crate) const KEY: &str = "a-key-for-tests-that-is-long-enough-0123456789";

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of any header and payload, signed by the book (RFC 7515 §5.1) and not by the library under test.
pub(crate) fn signed(header: &str, payload: &str, algorithm: hmac::Algorithm, key: &[u8]) -> String {
    let input = format!("{}.{}", base64url(header), base64url(payload));
    let signature = hmac::sign(&hmac::Key::new(algorithm, key), input.as_bytes());
    format!("{input}.{}", base64url(signature))
}

/// A token with this header and the right signature.
pub(crate) fn with_header(header: &Value, claims: &Value) -> String {
    signed(&header.to_string(), &claims.to_string(), hmac::HMAC_SHA256, KEY.as_bytes())
}

/// A token with these claims that is right in all else.
pub(crate) fn with_claims(claims: &Value) -> String {
    with_header(&json!({ "alg": "HS256", "typ": "JWT" }), claims)
}

/// `claims`, with one of them another, or none.
pub(crate) fn but(claims: &Value, name: &str, value: Option<Value>) -> Value {
    let mut claims = claims.clone();
    match value {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    claims
}

pub(crate) async fn get_me(actor: &Actor, face: Face) -> Outcome {
    actor.call(face, "ProfileService.GetMyProfile", json!({})).await
}

pub(crate) async fn look_into(actor: &Actor, face: Face, token: &str) -> Outcome {
    actor.call(face, "AuthService.VerifyToken", json!({ "token": token })).await
}

/// Asserts that the token is worth nothing, for this reason, wherever a token can be put.
pub(crate) async fn assert_refused(service: &Service, token: &str, reason: &str, what: &str) {
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

/// Lines 1, 2.
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

/// Line 2.
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

/// Lines 1, 2. What the library under it is known to get wrong: the vectors of Wycheproof.
#[test]
fn signatures_stand_up_to_the_vectors_of_wycheproof() {
    let files = [
        include_str!("../data/wycheproof/json_web_signature_test.json"),
        include_str!("../data/wycheproof/json_web_key_test.json"),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for file in files {
        let vectors: Value = serde_json::from_str(file).unwrap();
        for group in vectors["testGroups"].as_array().unwrap() {
            let keys = group.get("public").filter(|key| !key.is_null()).unwrap_or(&group["private"]);
            let keys = keys.get("keys").and_then(Value::as_array).cloned().unwrap_or_else(|| vec![keys.clone()]);
            let keys: Vec<_> = keys.iter().map(verifying).collect();
            for test in group["tests"].as_array().unwrap() {
                let jws = test["jws"].as_str().map_or_else(|| test["jws"].to_string(), str::to_owned);
                let taken = keys_in_force(&keys).is_some_and(|set| set.verify(&jws).is_some());
                let what = format!("{} {}: {}", group["comment"], test["tcId"], test["comment"]);
                assert_eq!(taken, is_to_be_taken(group, test), "{what}: {jws}");
                *if taken { &mut accepted } else { &mut refused } += 1;
            }
        }
    }
    // None was left out.
    assert_eq!((accepted, refused), (26, 401));
}

/// A key as JWK, if it is one that the service would take.
fn verifying(jwk: &Value) -> Option<Key> {
    // Where a JWK names no algorithm, that of its kind.
    let named = jwk["alg"].as_str().unwrap_or(match jwk["kty"].as_str() {
        Some("RSA") => "RS256",
        Some("EC") => "ES256",
        _ => "HS256",
    });
    Key::read(Algorithm::from_name(named)?, &jwk.to_string()).ok()
}

/// All of them beside one that signs, if the service would start with them.
fn keys_in_force(keys: &[Option<Key>]) -> Option<KeySet> {
    let signing = Key::generate(Algorithm::Hs256).unwrap();
    let signing = Key::read(Algorithm::Hs256, signing.expose_secret()).unwrap();
    KeySet::new(signing, keys.iter().cloned().collect::<Option<_>>()?).ok()
}

/// What the vectors say, but for those that say something else than RFC 7515, and for algorithms that we don't have.
fn is_to_be_taken(group: &Value, test: &Value) -> bool {
    let is_known = |key: &Value| {
        key["alg"].as_str().is_none_or(|named| Algorithm::from_name(named).is_some_and(|known| known.name() == named))
    };
    match (group["comment"].as_str().unwrap(), test["tcId"].as_u64().unwrap()) {
        // Their bytes are those of test 357, which is valid: the padding that they are about has gone from the file. And keys of
        // both kinds are in force where one follows the other: each has one algorithm, so none is taken for the other kind.
        ("base64", 367 | 370) | ("jws_mixedSymmetryKeyset", 1) => true,
        // Valid for decoders that skip what is no base64url.
        ("base64", 372 | 373) => false,
        _ => test["result"] == "valid" && is_known(group.get("public").unwrap_or(&group["private"])),
    }
}

/// Line 3.
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

/// Line 4.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_kind_is_none_of_the_other() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let [access, refresh] = [&user.access_token, &user.refresh_token].map(|token| token.as_deref().unwrap());
        get_me(&user.with_token(refresh), face).await.expect(401);
        let logout = user.with_token(refresh).call(face, "AuthService.Logout", json!({})).await;
        logout.expect(401);
        let anyone = service.anonymous();
        anyone.call(face, "AuthService.RefreshToken", json!({ "refresh_token": access })).await.expect(401);
        // Neither attempt did harm.
        get_me(&user, face).await.expect(200);
        anyone.call(face, "AuthService.RefreshToken", json!({ "refresh_token": refresh })).await.expect(200);
    })
    .await;
}

/// Line 5.
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

/// Line 6.
#[test]
fn weak_signing_keys_are_refused_with_postgresql() {
    refused(&production(&[]), "JWT_SECRET_KEY", "not set");
    for example in [
        "your-jwt-secret-key",
        "Dev-JWT-Secret",
        "your-secret-key-here",
        "dev_secret_key",
        "CHANGE-ME",
        "change-me-in-production-please-0123456789",
    ] {
        refused(&production(&[("JWT_SECRET_KEY", example)]), "JWT_SECRET_KEY", "example");
        refused(&production(&[("JWT_SECRET_KEY", example), ("DEBUG", "False")]), "JWT_SECRET_KEY", "example");
    }
    refused(&production(&[("JWT_SECRET_KEY", &STRONG_KEY[..31])]), "JWT_SECRET_KEY", "31 bytes");
    loaded(&production(&[("JWT_SECRET_KEY", STRONG_KEY)]));
}

/// Line 7.
#[tokio::test(flavor = "multi_thread")]
async fn answers_with_tokens_are_not_stored_and_no_url_bears_one() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let token = user.access_token.as_deref().unwrap();
        let login = json!({ "email": "user@example.com", "password": PASSWORD });
        let refresh = json!({ "refresh_token": user.refresh_token });
        let register = json!({ "email": "new@example.com", "password": PASSWORD });
        for (path, body, status) in [
            ("/api/auth/login/", login, 200),
            ("/api/auth/refresh/", refresh, 200),
            ("/api/auth/register/", register, 201),
            ("/api/auth/login/", json!({}), 422),
        ] {
            let answer = user.request(Method::POST, path).json(&body).send().await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
            assert!(!answer.headers().contains_key("location"), "{path}");
        }
        let anyone = service.anonymous();
        for name in ["access_token", "token", "jwt", "authorization", "bearer"] {
            let in_url = format!("/api/profile/me/?{name}={token}");
            outcome_of(anyone.request(Method::GET, &in_url).send().await.unwrap()).await.expect(401);
            let in_form = anyone.request(Method::PATCH, "/api/profile/me/").json(&json!({ name: token }));
            outcome_of(in_form.send().await.unwrap()).await.expect(401);
        }
    })
    .await;
}

/// Lines 7, 53.
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
