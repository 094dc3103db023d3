//! Verification codes, as an attacker meets them: a million of them, and five guesses.
//! The lines are those of `docs/security.md`.

use std::collections::BTreeSet;

use chrono::Duration;
use futures_util::future::join_all;
use identity::entity::{outbox, verification_code};
use sea_orm::EntityTrait;
use serde_json::json;

use crate::{
    account::{row, update, verify},
    harness::{Face, Service, Store, everywhere, on_each_store, wait_until},
    user::user_id,
    verification::{SOON, WRONG, guess, message, other},
};

/// Line 14.
#[tokio::test(flavor = "multi_thread")]
async fn the_code_mailed_at_registration_verifies_the_address_and_tokens_know_at_once() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let code = service.code_mailed_to("user@example.com", 1).await;
        let answer = user.call(face, "AuthService.VerifyEmail", guess("USER@example.com", &code)).await.expect(200);
        assert_eq!(answer, json!({ "message": "Email verified successfully", "is_verified": true }));

        let token = json!({ "token": user.access_token });
        let token = service.anonymous().call(face, "AuthService.VerifyToken", token).await.expect(200);
        assert_eq!(token["is_verified"], true);
        let again = user.call(face, "AuthService.VerifyEmail", guess("user@example.com", &code)).await;
        assert_eq!(again.expect_field(400, "code"), WRONG, "it is spent");
    })
    .await;
}

/// Lines 14, 18.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_expired_voided_and_unknown_are_told_in_the_same_words() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let first = service.code_mailed_to("user@example.com", 1).await;
        let verify =
            async |email: &str, code: &str| user.call(face, "AuthService.VerifyEmail", guess(email, code)).await;
        assert_eq!(verify("user@example.com", &other(&first)).await.expect_field(400, "code"), WRONG);
        assert_eq!(verify("user@example.com", "no code at all").await.expect_field(400, "code"), WRONG);
        assert_eq!(verify("nobody@example.com", &first).await.expect_field(400, "code"), WRONG);

        let sent = user.call(face, "AuthService.SendVerification", json!({})).await.expect(200);
        assert_eq!(sent, json!({ "message": "Verification email sent", "email": "user@example.com" }));
        let second = service.code_mailed_to("user@example.com", 2).await;
        if first != second {
            assert_eq!(verify("user@example.com", &first).await.expect_field(400, "code"), WRONG, "voided");
        }
        service.clock.advance(Duration::hours(24));
        assert_eq!(verify("user@example.com", &second).await.expect_field(400, "code"), WRONG, "expired");
    })
    .await;
}

/// Line 16.
#[tokio::test(flavor = "multi_thread")]
async fn five_misses_void_a_code_though_a_hundred_guesses_come_at_once() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let code = service.code_mailed_to("user@example.com", 1).await;
        let wrong = other(&code);
        let replica = service.replica().await;
        let guesses = (0..100).map(|n| {
            let user = if n % 2 == 0 { user.clone() } else { user.at(replica.address) };
            let guess = guess("user@example.com", &wrong);
            tokio::spawn(async move { user.call(Face::ALL[n / 2 % 2], "AuthService.VerifyEmail", guess).await })
        });
        for outcome in futures_util::future::join_all(guesses).await {
            assert_eq!(outcome.unwrap().status, 400);
        }
        let late = user.call(Face::Rest, "AuthService.VerifyEmail", guess("user@example.com", &code)).await;
        assert_eq!(late.expect_field(400, "code"), WRONG);
        let code = verification_code::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!(code.misses, 5);
        replica.stop().await;
    })
    .await;
}

/// Line 15.
#[tokio::test(flavor = "multi_thread")]
async fn no_code_lies_in_the_database_before_or_after_its_mail() {
    for store in Store::all() {
        let blocked = tempfile::tempdir().unwrap();
        let folder = blocked.path().join("mails");
        std::fs::write(&folder, "in the way").unwrap();
        let settings = [("EMAIL_BACKEND", "file"), ("EMAIL_FILE_PATH", folder.to_str().unwrap())];
        let service = Service::start_with(store, &settings).await;
        service.user("user@example.com").await;

        // It can't be sent, so it waits, sealed.
        wait_until(SOON, "an attempt", async || message(&service).await.last_error.is_some()).await;
        let waiting = message(&service).await.payload;
        assert!(waiting.len() > 40 && !waiting.contains("code") && !waiting.contains('@'), "{waiting}");

        // What stood in the way goes, and the mail goes out.
        std::fs::remove_file(&folder).unwrap();
        service.clock.advance(Duration::seconds(20));
        wait_until(SOON, "the mail", async || message(&service).await.state == outbox::State::Sent).await;
        assert_eq!(message(&service).await.payload, "");
        let mails: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        let [mail] = mails.as_slice() else { panic!("one mail: {mails:?}") };
        assert_eq!(mail.extension().unwrap(), "eml");
        let text = std::fs::read_to_string(mail).unwrap();
        let id = mail.file_stem().unwrap().to_str().unwrap();
        assert!(text.contains(&format!("Message-ID: <{id}@")), "{text}");
        assert!(text.contains("To: user@example.com") && text.contains("your verification code is"), "{text}");
        service.stop().await;
    }
}

/// Line 19.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_address_is_unverified_until_its_own_code_comes_back_and_the_old_one_is_told() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("old@example.com").await;
        let id = user_id(&user);
        verify(service, "old@example.com").await;

        // Another spelling is no other mailbox.
        let answer = update(&admin, face, id, json!({ "email": "Old@Example.com" })).await.expect(200);
        assert_eq!((&answer["email"], &answer["is_verified"]), (&json!("Old@example.com"), &json!(true)));
        let taken = update(&admin, face, id, json!({ "email": "ADMIN@example.com" })).await;
        assert_eq!(taken.expect_field(400, "email"), ["A user with this email already exists."]);

        let answer = update(&admin, face, id, json!({ "email": "new@example.com" })).await.expect(200);
        assert_eq!((&answer["email"], &answer["is_verified"]), (&json!("new@example.com"), &json!(false)));
        let told = service.mails_to("Old@example.com", 1).await.remove(0);
        assert_eq!(told.subject, "Your email address was changed");
        let token = json!({ "token": user.access_token });
        let token = service.anonymous().call(face, "AuthService.VerifyToken", token).await.expect(200);
        assert_eq!(token["is_verified"], false, "a token from before knows at once");
        verify(service, "new@example.com").await;
        assert!(row(service, id).await.is_verified);
        service.login("new@example.com").await;

        // A code that is out is void once an admin vouches for the address: it is verified, and told of, once.
        let fourth = service.user("fourth@example.com").await;
        let code = service.code_mailed_to("fourth@example.com", 1).await;
        update(&admin, face, user_id(&fourth), json!({ "is_verified": true })).await.expect(200);
        let code = json!({ "email": "fourth@example.com", "code": code });
        service.anonymous().call(face, "AuthService.VerifyEmail", code).await.expect_field(400, "code");

        // An admin who knows better says so in the same breath.
        let both = json!({ "email": "third@example.com", "is_verified": true });
        assert_eq!(update(&admin, face, id, both).await.expect(200)["is_verified"], true);
    })
    .await;
}

/// Line 19.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_for_the_old_address_does_not_verify_the_new_one() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("old@example.com").await;
        let code = service.code_mailed_to("old@example.com", 1).await;
        update(&admin, face, user_id(&user), json!({ "email": "new@example.com" })).await.expect(200);
        for email in ["old@example.com", "new@example.com"] {
            let guess = json!({ "email": email, "code": code });
            user.call(face, "AuthService.VerifyEmail", guess).await.expect_field(400, "code");
        }
        assert!(!row(service, user_id(&user)).await.is_verified);
    })
    .await;
}

/// Line 14.
#[test]
fn chance_comes_from_the_system_and_from_one_place() {
    let mut open = vec![std::path::PathBuf::from("src")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path != std::path::Path::new("src/random.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for source in ["rand::", "fastrand", "getrandom", "Uuid::new_v4", "thread_rng"] {
                    assert!(!text.contains(source), "{} takes chance from {source}", path.display());
                }
            }
        }
    }
    let source = std::fs::read_to_string("src/random.rs").unwrap();
    assert!(source.contains("use aws_lc_rs::rand;"), "{source}");
}

/// Line 14.
#[tokio::test(flavor = "multi_thread")]
async fn codes_are_six_digits_of_any_kind_and_hardly_ever_the_same() {
    let service =
        Service::start_with(Store::all()[0], &[("ARGON2_MEMORY_KIB", "64"), ("ARGON2_ITERATIONS", "1")]).await;
    let mut codes = BTreeSet::new();
    for n in 0..60 {
        let email = format!("user{n}@example.com");
        service.user(&email).await;
        codes.insert(service.code_mailed_to(&email, 1).await);
    }
    // Of sixty in a million two are the same once in six hundred times, and four once in many million.
    assert!(codes.len() >= 58, "{codes:?}");
    for place in 0..6 {
        let digits: BTreeSet<_> = codes.iter().map(|code| code.as_bytes()[place]).collect();
        assert!(digits.len() >= 7, "place {place}: {codes:?}");
    }
    service.stop().await;
}

/// Line 14.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_for_a_day_and_once_though_many_bring_it_at_once() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        let code = service.code_mailed_to("user@example.com", 1).await;
        service.clock.advance(Duration::hours(24) - Duration::microseconds(1));
        let there = user.at(replica.address);
        let tries = (0..20).map(|n| {
            let actor = [&user, &there][n % 2];
            actor.call(Face::ALL[n / 2 % 2], "AuthService.VerifyEmail", guess("user@example.com", &code))
        });
        let mut statuses: Vec<_> = join_all(tries).await.iter().map(|outcome| outcome.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert!(statuses[1..].iter().all(|status| *status == 400), "{statuses:?}");
        replica.stop().await;
    })
    .await;
}

/// Line 15.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_code_is_worth_nothing_without_the_key() {
    for (store, face) in Store::all().into_iter().flat_map(|store| Face::ALL.map(|face| (store, face))) {
        let key = |key: &'static str| [("SECRET_KEY", key)];
        let right_key = "the-key-of-codes-is-long-enough-for-anybody-1";
        let service = Service::start_with(store, &key(right_key)).await;
        service.user("user@example.com").await;
        let code = service.code_mailed_to("user@example.com", 1).await;
        let row = verification_code::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!(row.code_hash.len(), 32);
        // Whoever has the table and a million digests has nothing: it is the key that makes the difference.
        let service = service.restart_with(&key("another-key-of-codes-is-long-enough-as-well-2")).await;
        let verify = guess("user@example.com", &code);
        service.anonymous().call(face, "AuthService.VerifyEmail", verify.clone()).await.expect_field(400, "code");
        let service = service.restart_with(&key(right_key)).await;
        service.anonymous().call(face, "AuthService.VerifyEmail", verify).await.expect(200);
        service.stop().await;
    }
}

/// Line 15.
#[test]
fn a_code_is_compared_in_constant_time() {
    let text = std::fs::read_to_string("src/domain/verification.rs").unwrap();
    let compared: Vec<_> =
        text.lines().filter(|line| line.contains("code_hash") && line.contains("expected")).collect();
    assert!(matches!(compared[..], [line] if line.contains("constant_time::verify_slices_are_equal")), "{compared:?}");
    assert!(!text.contains("Column::CodeHash"), "the database compares it, byte by byte");
}

/// Line 17.
#[tokio::test(flavor = "multi_thread")]
async fn misses_and_requests_are_counted_on_all_replicas_together_and_across_a_restart() {
    for store in Store::all() {
        let service = Service::start(store).await;
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        user.call(Face::Rest, "AuthService.SendVerification", json!({})).await.expect(200);
        for (n, service) in [&service, &replica].into_iter().enumerate() {
            let again = user.at(service.address).call(Face::ALL[n], "AuthService.SendVerification", json!({})).await;
            assert_eq!(again.status, 429);
        }
        let code = service.code_mailed_to("user@example.com", 2).await;
        let miss = async |service: &Service, face: Face| {
            let miss = guess("user@example.com", &other(&code));
            service.anonymous().call(face, "AuthService.VerifyEmail", miss).await.expect_field(400, "code");
        };
        for service in [&service, &replica] {
            for face in Face::ALL {
                miss(service, face).await;
            }
        }
        replica.stop().await;
        let service = service.restart().await;
        let again = user.at(service.address).call(Face::Rest, "AuthService.SendVerification", json!({})).await;
        assert_eq!(again.status, 429);
        miss(&service, Face::Grpc).await;
        let right =
            service.anonymous().call(Face::Rest, "AuthService.VerifyEmail", guess("user@example.com", &code)).await;
        assert_eq!(right.expect_field(400, "code"), WRONG, "five misses are five, wherever they were");
        service.stop().await;
    }
}

/// Line 18.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_wrong_expired_and_used_are_one_answer_to_the_letter() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let code = service.code_mailed_to("user@example.com", 1).await;
        let told = async |email: &str, code: &str| {
            let outcome = user.call(face, "AuthService.VerifyEmail", guess(email, code)).await;
            assert_eq!(outcome.status, 400, "{outcome:?}");
            crate::harness::Outcome { request_id: None, ..outcome }
        };
        let unknown = told("nobody@example.com", &code).await;
        assert_eq!(told("user@example.com", &other(&code)).await, unknown);
        user.call(face, "AuthService.VerifyEmail", guess("user@example.com", &code)).await.expect(200);
        assert_eq!(told("user@example.com", &code).await, unknown, "used");
        service.user("late@example.com").await;
        let late = service.code_mailed_to("late@example.com", 1).await;
        service.clock.advance(Duration::hours(24));
        assert_eq!(told("late@example.com", &late).await, unknown, "expired");
    })
    .await;
}
