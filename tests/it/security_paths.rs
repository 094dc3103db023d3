//! Paths, as somebody writes them who hopes that two readers read them differently.
//! The lines are those of `docs/security.md`.

use crate::{
    harness::{Service, Store},
    rest::raw,
};

/// Line 34.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_only_like_a_route_reaches_no_handler() {
    let service = Service::start(Store::Sqlite).await;
    let user = service.user("user@example.com").await;
    let token = user.access_token.as_deref().unwrap();
    let paths = [
        "//api/profile/me/",
        "/api//profile/me/",
        "/api/profile//me/",
        "/api/profile/me//",
        "/api/./profile/me/",
        "/api/x/../profile/me/",
        "/api%2fprofile%2fme/",
        "/api/profile%2fme/",
        "/api/profile/me%2f",
        "/api/profile/me/%00",
        "/api/Profile/me/",
        "/API/profile/me/",
        "/api/profile/me/x",
        "/api/profile/me;x=1/",
        "/api/users/1/roles/x/y/",
        "/api/users/1%2froles/",
        "/api/users//",
        "/api/users/%ff/",
        "/api/",
        "/",
        "/favicon.ico",
        "/identity.v1.AuthService",
        "*",
    ];
    for path in paths {
        let answer = raw(
            service.address,
            format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
            ),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.ends_with(r#"{"error":"Not found"}"#), "{path}: {answer}");
        assert!(answer.contains("x-request-id: ") && answer.contains("cache-control: no-store"), "{path}: {answer}");
    }
    service.stop().await;
}
