//! E-mail verification: the code, its mail, and what it opens.

use chrono::Duration;
use identity::entity::outbox;
use sea_orm::EntityTrait;
use serde_json::{Value, json};

use crate::harness::{Face, PASSWORD, Service, Store, everywhere, on_each_store};

/// How long the outbox may take.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(5);

pub const WRONG: [&str; 1] = ["Invalid or expired verification code."];

pub fn guess(email: &str, code: &str) -> Value {
    json!({ "email": email, "code": code })
}

/// Another code than this one.
pub fn other(code: &str) -> String {
    format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
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
pub async fn message(service: &Service) -> outbox::Model {
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
