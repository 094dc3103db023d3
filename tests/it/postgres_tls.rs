//! PostgreSQL over TLS, by the parameters of libpq that stand in `DATABASE_URL`.

use futures_util::future::join_all;
use serde_json::json;
use sqlx::{Connection, PgConnection, Row};

use crate::harness::{
    Face, Service,
    authority::Authority,
    has_postgres,
    postgres::{self, PrivatePostgres},
    process::Installation,
    skip,
};

/// What the service opens at most, as the harness starts it: the pool, and one that asks whether a slow server is there.
const CONNECTIONS: usize = 8 + 1;

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_that_takes_tls_alone_is_used_if_its_certificate_is_right() {
    if !has_postgres() {
        return;
    }
    if !postgres::can_be_started() {
        return skip("it takes a PostgreSQL server of its own, and there is no `initdb`");
    }
    let authority = Authority::new();
    let server = PrivatePostgres::start_with_tls(authority.certificate()).await;
    let at = |mode: &str, trusted: &Authority| format!("{}?sslmode={mode}&sslrootcert={}", server.url, trusted.file());
    let full = at("verify-full", &authority);

    let service = Service::start_over(&full).await;
    let user = service.user("user@example.com").await;
    let calls = (0..64).map(|n| user.call(Face::ALL[n % 2], "ProfileService.GetMyProfile", json!({})));
    for outcome in join_all(calls).await {
        outcome.expect(200);
    }
    let mut by_hand = PgConnection::connect(&full).await.unwrap();
    let open =
        "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'identity'";
    let open = sqlx::query(open).fetch_all(&mut by_hand).await.unwrap();
    assert!((1..=CONNECTIONS).contains(&open.len()), "{} connections", open.len());
    for row in open {
        assert_eq!((row.get("ssl"), row.get::<&str, _>("version")), (true, "TLSv1.3"));
    }
    service.stop().await;

    // The certificate is for 127.0.0.1.
    let by_name = |url: String| url.replace("127.0.0.1", "localhost");
    let stranger = Authority::new();
    for (url, code, word) in [
        (full.clone(), 0, ""),
        (at("verify-full", &stranger), 1, "certificate"),
        (at("verify-ca", &stranger), 1, "certificate"),
        (by_name(full.clone()), 1, "certificate"),
        (by_name(at("verify-ca", &authority)), 0, ""),
        (at("disable", &authority), 1, "pg_hba.conf"),
    ] {
        let key = ("JWT_SECRET_KEY", "a-key-for-tests-that-is-long-enough-0123456789");
        let said = Installation::with(&[("DATABASE_URL", &url), key]).run(&["migrate"]).await.expect(code).stderr;
        assert!(said.contains(word), "{url}: {said}");
        assert!(!said.contains(url::Url::parse(&url).unwrap().password().unwrap()), "{said}");
    }
}
