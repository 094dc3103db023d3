//! Sessions: login, refresh, logout, and what becomes of the tokens.

use chrono::Duration;
use serde_json::json;

use crate::harness::{PASSWORD, actor::claims, everywhere, on_each_store};

#[tokio::test(flavor = "multi_thread")]
async fn a_login_begins_a_session_of_its_own() {
    everywhere(async |service, face| {
        let registered = service.user("user@example.com").await;
        let login = json!({ "email": "USER@example.com", "password": PASSWORD });
        let answer = service.anonymous().call(face, "AuthService.Login", login).await.expect(200);
        let first = claims(registered.access_token.as_deref().unwrap());
        let second = claims(answer["access_token"].as_str().unwrap());
        assert_ne!(first["sid"], second["sid"]);
        assert_eq!(first["user_id"], second["user_id"]);
        assert_eq!(answer["user"]["roles"], json!(["User"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_gives_the_next_pair_of_tokens() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        service.clock.advance(Duration::minutes(30));
        let spent = user.refresh_token.clone().unwrap();
        let answer = user.call(face, "AuthService.RefreshToken", json!({ "refresh_token": spent })).await.expect(200);
        assert_ne!(answer["refresh_token"], json!(spent));
        let me = user.with_token(answer["access_token"].as_str().unwrap());
        me.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_ends_the_session_here_and_after_a_restart() {
    on_each_store(async |service| {
        let replica = service.replica().await;
        let user = service.user("user@example.com").await;
        user.call(crate::harness::Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        user.call(crate::harness::Face::Grpc, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let there = user.at(replica.address);
        there.call(crate::harness::Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        let replica = replica.restart().await;
        let there = user.at(replica.address);
        there.call(crate::harness::Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(401);
        replica.stop().await;
    })
    .await;
}
