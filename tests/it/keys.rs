//! Signing keys: their algorithms, where their public halves are, and how one follows another without anybody being logged out.

use std::{fs, os::unix::fs::PermissionsExt};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use identity::jws::{Algorithm, Key};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    harness::{
        Actor, Face, Service, Store, on_each_store,
        process::{Ended, Installation},
        within_a_second,
    },
    security_tokens::{KEY, get_me},
};

/// Keeps codes and sessions where signing keys change.
const SECRET: (&str, &str) = ("SECRET_KEY", "one-key-for-codes-and-sessions-0123456789");

fn made(algorithm: Algorithm) -> String {
    Key::generate(algorithm).unwrap().expose_secret().to_owned()
}

fn header(token: &str) -> Value {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap()
}

async fn published(service: &Service) -> Vec<Value> {
    let answer = service.anonymous().request(Method::GET, "/.well-known/jwks.json").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/jwk-set+json");
    assert!(answer.headers()["cache-control"].to_str().unwrap().contains("max-age"));
    answer.json::<Value>().await.unwrap()["keys"].as_array().unwrap().clone()
}

async fn refreshed(actor: &Actor, face: Face) -> Value {
    let token = actor.refresh_token.as_deref().unwrap();
    actor.call(face, "AuthService.RefreshToken", json!({ "refresh_token": token })).await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_signed_by_a_key_pair_whose_public_half_is_there_for_all() {
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
        for store in Store::all() {
            let key = made(algorithm);
            let settings = [("JWT_ALGORITHM", algorithm.name()), ("JWT_SECRET_KEY", key.as_str())];
            let service = Service::start_with(store, &settings).await;
            let user = service.user("user@example.com").await;
            for face in Face::ALL {
                get_me(&user, face).await.expect(200);
            }
            refreshed(&user, Face::Rest).await;
            let token = user.access_token.as_deref().unwrap();
            let [public] = published(&service).await.try_into().unwrap();
            let said = header(token);
            assert_eq!((&said["alg"], &said["kid"]), (&json!(algorithm.name()), &public["kid"]));
            assert_eq!((&public["use"], &public["alg"]), (&json!("sig"), &json!(algorithm.name())));
            for private in ["d", "p", "q", "dp", "dq", "qi", "k"] {
                assert!(public.get(private).is_none(), "{private} of the key is public");
            }
            // Whoever has the set needs no more.
            let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(public).unwrap();
            let mut validation = jsonwebtoken::Validation::new(algorithm.name().parse().unwrap());
            validation.validate_exp = false;
            let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
            jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap();
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_secrets_are_in_no_set() {
    on_each_store(async |service| {
        assert!(published(service).await.is_empty());
        let user = service.user("user@example.com").await;
        let said = header(user.access_token.as_deref().unwrap());
        assert_eq!(said["alg"], "HS256");
        assert!(!said["kid"].as_str().unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_follows_another_and_nobody_is_logged_out() {
    let (old, new) = (made(Algorithm::Hs256), made(Algorithm::Es256));
    let before = [("JWT_SECRET_KEY", old.as_str()), SECRET];
    let announced =
        [("JWT_SECRET_KEY", old.as_str()), ("JWT_NEXT_KEY", new.as_str()), ("JWT_NEXT_ALGORITHM", "ES256"), SECRET];
    let changed = [
        ("JWT_SECRET_KEY", new.as_str()),
        ("JWT_ALGORITHM", "ES256"),
        ("JWT_PREVIOUS_KEY", old.as_str()),
        ("JWT_PREVIOUS_ALGORITHM", "HS256"),
        SECRET,
    ];
    let after = [("JWT_SECRET_KEY", new.as_str()), ("JWT_ALGORITHM", "ES256"), SECRET];
    for store in Store::all() {
        let zero = Service::start_with(store, &before).await;
        let user = zero.user("user@example.com").await;
        // Replicas are replaced one by one: at any time two stages run side by side, and calls go to either.
        let gone = [
            ("JWT_NEXT_KEY", ""),
            ("JWT_PREVIOUS_KEY", ""),
            ("JWT_NEXT_ALGORITHM", ""),
            ("JWT_PREVIOUS_ALGORITHM", ""),
        ];
        let stages = [&announced[..], &changed, &after].map(|stage| [&gone[..], stage].concat());
        let mut running = zero;
        let mut newest = user;
        for (stage, settings) in stages.into_iter().enumerate() {
            let next = running.replica_with(&settings).await;
            for face in Face::ALL {
                let there = newest.at(next.address);
                get_me(&there, face).await.expect(200);
                let tokens = refreshed(&there, face).await;
                newest = newest.at(next.address);
                newest.take_tokens(&tokens);
                let kid = header(newest.access_token.as_deref().unwrap())["alg"].clone();
                assert_eq!(kid, if stage == 0 { "HS256" } else { "ES256" });
                // What one signs the other takes.
                let here = newest.at(running.address);
                within_a_second(async || get_me(&here, face).await.status == 200).await;
            }
            running.stop().await;
            running = next;
        }
        // The old key is good for nothing now.
        let public = published(&running).await;
        assert_eq!(public.len(), 1);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_and_listed_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    for algorithm in Algorithm::ALL {
        let path = folder.path().join(algorithm.name());
        let out = path.to_str().unwrap();
        let arguments = ["keys", "generate", "--algorithm", algorithm.name(), "--out", out];
        run(&arguments, &[]).await.expect(0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = Key::read(algorithm, fs::read_to_string(&path).unwrap().trim_end()).unwrap();
        // Never over another key.
        run(&arguments, &[]).await.expect(1);

        let settings = [("JWT_ALGORITHM", algorithm.name()), ("JWT_SECRET_KEY_FILE", out)];
        let listed = run(&["keys", "list"], &settings).await.expect(0).stdout;
        assert_eq!(listed.trim(), format!("signs     {:<5}  kid {}", algorithm.name(), key.id()));
    }
    let generate = async || run(&["keys", "generate"], &[]).await.expect(0).stdout;
    let printed = [generate().await, generate().await];
    assert_ne!(printed[0], printed[1]);
    assert_eq!(printed[0].trim().len(), 64);
    run(&["keys", "generate", "--algorithm", "none"], &[]).await.expect(2);

    let signing = [("JWT_SECRET_KEY", KEY)];
    let secret = run(&["keys", "secret-key"], &signing).await.expect(0).stdout;
    let pinned = [("JWT_SECRET_KEY", KEY), ("SECRET_KEY", secret.trim())];
    let [derived, set] = [run(&["event-key"], &signing).await, run(&["event-key"], &pinned).await];
    assert_eq!(derived.expect(0).stdout, set.expect(0).stdout);
}

/// What the program ends with, called with these arguments and settings.
async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
    Installation::with(settings).run(arguments).await
}
