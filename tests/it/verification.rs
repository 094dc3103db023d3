//! E-mail verification: the code, its mail, and what it opens.

use chrono::Duration;
use identity::entity::{outbox, verification_code};
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use crate::harness::{Face, PASSWORD, Service, Store, everywhere, on_each_store, wait_until};

/// How long the outbox may take.
const SOON: std::time::Duration = std::time::Duration::from_secs(5);

const WRONG: [&str; 1] = ["Invalid or expired verification code."];

fn guess(email: &str, code: &str) -> Value {
    json!({ "email": email, "code": code })
}

/// Another code than this one.
fn other(code: &str) -> String {
    format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn codes_are_sent_once_a_minute_ten_times_a_day_and_not_to_the_verified() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let send = async || user.call(face, "AuthService.SendVerification", json!({})).await;
        for sent in 1..=10 {
            send().await.expect(200);
            let refused = send().await;
            assert_eq!((refused.status, refused.retry_after.is_some()), (429, true), "after {sent}: {refused:?}");
            service.clock.advance(Duration::seconds(61));
        }
        let refused = send().await;
        assert_eq!(refused.status, 429, "the eleventh of a day");
        assert!(refused.retry_after > Some(23 * 3600), "{refused:?}");

        let code = service.code_mailed_to("user@example.com", 11).await;
        user.call(face, "AuthService.VerifyEmail", guess("user@example.com", &code)).await.expect(200);
        assert_eq!(send().await.expect_field(400, "email"), ["This email address is already verified."]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_requests_for_a_code_at_once_one_is_refused() {
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        let send = || user.call(Face::Rest, "AuthService.SendVerification", json!({}));
        let (a, b, c) = tokio::join!(send(), send(), send());
        let mut statuses = [a.status, b.status, c.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 429, 429]);
    })
    .await;
}

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

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_verified_address_says_so() {
    for store in Store::all() {
        for face in Face::ALL {
            let service = Service::start_with(store, &[("REQUIRE_VERIFIED", "profile,login")]).await;
            let user = service.user("user@example.com").await;
            let login = json!({ "email": "user@example.com", "password": PASSWORD });
            let calls = [("AuthService.Login", login), ("ProfileService.UpdateMyProfile", json!({ "bio": "me" }))];
            for (rpc, fields) in &calls {
                let refused = user.call(face, rpc, fields.clone()).await;
                assert_eq!(refused.status, 403, "{rpc}");
                assert!(refused.text.contains("Verify your email address first"), "{refused:?}");
                assert!(face == Face::Rest || refused.reason.as_deref() == Some("EMAIL_NOT_VERIFIED"));
            }
            let code = service.code_mailed_to("user@example.com", 1).await;
            user.call(face, "AuthService.VerifyEmail", guess("user@example.com", &code)).await.expect(200);
            for (rpc, fields) in calls {
                user.call(face, rpc, fields).await.expect(200);
            }
            service.stop().await;
        }
    }
}

/// The one message in the outbox.
async fn message(service: &Service) -> outbox::Model {
    outbox::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_days_is_counted_over_days() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_VERIFICATION", "2/7d")]).await;
        let user = service.user("user@example.com").await;
        let send = async || user.call(Face::Rest, "AuthService.SendVerification", json!({})).await.status;
        assert_eq!([send().await, send().await], [200, 200]);
        service.clock.advance(Duration::days(3));
        let user = service.login("user@example.com").await;
        assert_eq!(user.call(Face::Rest, "AuthService.SendVerification", json!({})).await.status, 429);
        service.stop().await;
    }
}
