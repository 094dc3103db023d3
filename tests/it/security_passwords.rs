//! Passwords, as an attacker meets them: how they are kept, which are taken, what a guess costs and what it tells.
//! The lines are those of `docs/security.md`.

use std::time::{Duration, Instant};

use identity::{
    hash_pool::Scratch,
    model::password::{self, Argon2Params, Verdict},
};
use serde_json::{Value, json};

use crate::{
    harness::{Face, Service, Store, on_each_store},
    password::{
        COMMON, PERSONAL, RIGHT, RIGHT_BUT_OUTDATED, TOO_LONG, TOO_SHORT, cheap, given, reasons, refusal, verify,
    },
    session::{login, store_password, stored_password},
};

/// Line 8.
#[test]
fn a_hash_is_argon2id_in_the_phc_format_with_a_salt_of_its_own() {
    let mut scratch = Scratch::default();
    let [one, two] =
        [0; 2].map(|_| password::hash(&given("User123!pass"), Argon2Params::default(), &mut scratch).unwrap());
    let fields: Vec<_> = one.split('$').collect();
    assert_eq!(fields[..4], ["", "argon2id", "v=19", "m=19456,t=2,p=1"]);
    assert_eq!((fields[4].len(), fields[5].len(), one.len()), (22, 43, 97));
    assert_ne!(one, two);
    for stored in [one, two] {
        assert_eq!(verify(&stored, "User123!pass", Argon2Params::default()), RIGHT);
        for wrong in ["user123!pass", "User123!pas", "User123!pass ", " User123!pass", "x"] {
            assert_eq!(verify(&stored, wrong, Argon2Params::default()), Verdict::Wrong, "{wrong:?}");
        }
    }
}

/// Line 8.
#[test]
fn a_hash_is_outdated_once_the_cost_has_risen() {
    let stored = password::hash(&given("User123!pass"), cheap(), &mut Scratch::default()).unwrap();
    for (memory_kib, iterations, parallelism, expected) in [
        (64, 1, 1, RIGHT),
        (32, 1, 1, RIGHT),
        (65, 1, 1, RIGHT_BUT_OUTDATED),
        (64, 2, 1, RIGHT_BUT_OUTDATED),
        (64, 1, 2, RIGHT_BUT_OUTDATED),
    ] {
        let now = Argon2Params::new(memory_kib, iterations, parallelism).unwrap();
        assert_eq!(verify(&stored, "User123!pass", now), expected, "{now}");
        assert_eq!(verify(&stored, "user123!pass", now), Verdict::Wrong, "{now}");
    }
}

/// Line 8.
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

/// Line 9.
#[test]
fn length_counts_characters_not_bytes() {
    assert_eq!(reasons("Ключ-12", &[]), [TOO_SHORT]);
    assert_eq!(refusal("Ключ-123", &[]), [""; 0]);

    let longest = format!("1{}", "🔑".repeat(127));
    assert_eq!(longest.len(), 509);
    assert_eq!(refusal(&longest, &[]), [""; 0]);
    assert_eq!(reasons(&format!("{longest}🔑"), &[]), [TOO_LONG]);
    assert_eq!(reasons(&"1-a".repeat(20_000), &[]), [TOO_LONG]);
}

/// Line 9.
#[test]
fn every_character_up_to_the_longest_password_counts() {
    let longest = "🔑".repeat(128);
    let almost = format!("{}🔒", "🔑".repeat(127));
    let stored = password::hash(&given(&longest), cheap(), &mut Scratch::default()).unwrap();
    assert_eq!(verify(&stored, &longest, cheap()), RIGHT);
    assert_eq!(verify(&stored, &almost, cheap()), Verdict::Wrong);
}

/// Line 10.
#[test]
fn the_three_thousand_most_common_passwords_are_refused() {
    let list = include_str!("../data/common-passwords-top-3000.txt");
    let passwords: Vec<_> = list.lines().filter(|line| !line.starts_with("# ")).collect();
    assert_eq!(passwords.len(), 3000);
    for raw in passwords {
        reasons(raw, &[]);
        reasons(&raw.to_uppercase(), &[]);
    }
}

/// Line 10.
#[test]
fn a_common_password_stays_common_in_disguise() {
    for raw in [
        "Password1!",
        "P@55w0rd",
        "pa$$word-2024",
        "!!PASSWORD!!1",
        "@dmin123!",
        "Qwerty123!",
        "L3tM31n!!",
        "123_Welcome_123",
        "Dr4g0n#99",
        "12345678!",
        "#1Stunna",
        "1qaz!QAZ",
        "9-11-1961",
    ] {
        assert_eq!(reasons(raw, &[]), [COMMON], "{raw}");
    }
    // A word within a longer one, or a number within another, is no disguise.
    for raw in ["my-password-1", "passwords_are_2_long", "dragonfly-77", "8123456-91", "Str0ng!Passw0rd"] {
        assert_eq!(refusal(raw, &[]), [""; 0], "{raw}");
    }
}

/// Line 10.
#[test]
fn a_password_equal_to_the_address_or_a_name_is_refused_in_any_case() {
    let personal = ["John.Doe-1985@Example.com", "Jörg-Straße-7", "", "Μίλτος_2ς"];
    for raw in
        ["John.Doe-1985@Example.com", "JOHN.DOE-1985@EXAMPLE.COM", "john.doe-1985", "JÖRG-STRASSE-7", "ΜΊΛΤΟΣ_2Σ"]
    {
        assert_eq!(reasons(raw, &personal), [PERSONAL], "{raw}");
    }
    assert_eq!(refusal("john.doe-1985!", &personal), [""; 0]);
    assert_eq!(refusal("example.com-1", &personal), [""; 0]);
}

/// Line 12.
#[test]
fn an_unknown_account_or_one_without_a_password_costs_what_a_wrong_password_costs() {
    for stored in
        [&password::decoy(Argon2Params::default()), "!", "", "gibberish", "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99"]
    {
        let mut scratch = Scratch::default();
        let verdict = password::verify(stored, &given("User123!pass"), Argon2Params::default(), &mut scratch).unwrap();
        assert_eq!(verdict, Verdict::Wrong);
        // The memory of a real hash was filled.
        assert_eq!(scratch.kept_bytes(), 19 << 20, "{stored}");
    }

    let params = Argon2Params::default();
    let mut scratch = Scratch::default();
    let stored = password::hash(&given("User123!pass"), params, &mut scratch).unwrap();
    // The shortest of many is what it costs without the noise of a busy machine; taken in turns.
    let decoy = password::decoy(params);
    let [mut wrong, mut unknown, mut unusable] = [Duration::MAX; 3];
    for _ in 0..15 {
        for (stored, shortest) in [(stored.as_str(), &mut wrong), (decoy.as_str(), &mut unknown), ("!", &mut unusable)]
        {
            let start = Instant::now();
            password::verify(stored, &given("user123!pass"), params, &mut scratch).unwrap();
            *shortest = start.elapsed().min(*shortest);
        }
    }
    for other in [unknown, unusable] {
        let ratio = other.as_secs_f64() / wrong.as_secs_f64();
        assert!((0.8..1.25).contains(&ratio), "wrong {wrong:?}, unknown {unknown:?}, unusable {unusable:?}");
    }
}

/// Line 12.
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

/// Line 13.
#[test]
fn debug_does_not_show_a_password() {
    assert!(!format!("{:?}", given("User123!pass")).contains("User"));
}
