//! Verification codes, as an attacker meets them: a million of them, and five guesses.
//! The lines are those of `docs/security.md`.

use chrono::Duration;
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
        let guesses = (0..100).map(|_| {
            let (user, guess) = (user.clone(), guess("user@example.com", &wrong));
            tokio::spawn(async move { user.call(Face::Rest, "AuthService.VerifyEmail", guess).await })
        });
        for outcome in futures_util::future::join_all(guesses).await {
            assert_eq!(outcome.unwrap().status, 400);
        }
        let late = user.call(Face::Rest, "AuthService.VerifyEmail", guess("user@example.com", &code)).await;
        assert_eq!(late.expect_field(400, "code"), WRONG);
        let code = verification_code::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_eq!(code.misses, 5);
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
