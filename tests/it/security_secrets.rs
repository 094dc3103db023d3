//! Secrets, and who could read them in the log.
//! The lines are those of `docs/security.md`.

use identity::pb;
use prost::Message;
use reqwest::Method;
use serde_json::json;

use crate::{gate::logging, harness::Face};

/// Line 55.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_in_the_log_however_much_is_logged() {
    let installation = logging("trace");
    let program = installation.serve().await;
    let mut secrets = vec![];
    let anonymous = program.anonymous();
    for (n, face) in Face::ALL.into_iter().enumerate() {
        let (email, password) = (format!("canary{n}@example.com"), format!("C4nary-pass-{n}!"));
        let wrong = format!("Wr0ng-canary-{n}!");
        secrets.extend([password.clone(), wrong.clone()]);
        let account = json!({ "email": email, "password": password });
        let mut tokens = vec![anonymous.call(face, "AuthService.Register", account.clone()).await.expect(201)];
        tokens.push(anonymous.call(face, "AuthService.Login", account).await.expect(200));
        let refused = json!({ "email": email, "password": wrong });
        anonymous.call(face, "AuthService.Login", refused).await.expect(401);
        // Wrong in another field, so that the request is refused as a whole.
        let refused = json!({ "email": "no address", "password": wrong });
        anonymous.call(face, "AuthService.Register", refused).await.expect(400);
        let refresh = json!({ "refresh_token": tokens[1]["refresh_token"] });
        tokens.push(anonymous.call(face, "AuthService.RefreshToken", refresh).await.expect(200));
        let verify = json!({ "token": tokens[2]["access_token"] });
        anonymous.call(face, "AuthService.VerifyToken", verify).await.expect(200);
        let mut user = anonymous.clone();
        user.take_tokens(&tokens[2]);
        user.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        user.call(face, "AuthService.Logout", json!({})).await.expect(200);
        user.call(face, "AuthService.Logout", json!({})).await.expect(401);
        for answer in tokens {
            for name in ["access_token", "refresh_token"] {
                // The signature: whoever has it, has the token; the rest is no secret.
                let token = answer[name].as_str().unwrap();
                secrets.push(token.rsplit('.').next().unwrap().to_owned());
            }
        }
    }
    let half = pb::LoginRequest { email: None, password: Some("H4lf-canary!".into()) }.encode_to_vec();
    secrets.push("H4lf-canary".into());
    let _ = anonymous.call_grpc_raw("/identity.v1.AuthService/Login", half[..half.len() - 1].to_vec()).await;
    let broken = r#"{"password": "Br0ken-canary!""#;
    secrets.push("Br0ken-canary".into());
    let request = anonymous.request(Method::POST, "/api/auth/login/").header("content-type", "application/json");
    request.body(broken).send().await.unwrap();

    let log = program.log();
    assert!(log.contains("\"level\":\"TRACE\""), "it logs no traces, and so the test shows nothing");
    for line in log.lines() {
        for secret in &secrets {
            assert!(!line.contains(secret.as_str()), "{secret} shows in: {line}");
        }
        assert!(!line.contains("$argon2"), "a hash shows in: {line}");
    }
}
