//! The command line: what an operator types, and what comes of it.

use std::{collections::BTreeMap, fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use aws_lc_rs::digest;
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use crate::harness::{
    Actor, Face, PASSWORD, Store, has_postgres,
    process::{Installation, run},
    skip,
    stores::empty_database,
};

const COMMANDS: [&str; 9] =
    ["serve", "migrate", "createsuperuser", "import", "outbox", "event-key", "healthcheck", "config", "openapi"];

async fn status_of(actor: &Actor, path: &str) -> u16 {
    actor.request(Method::GET, path).send().await.unwrap().status().as_u16()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Whether every line is an object of JSON; there is at least one.
fn is_json(log: &str) -> bool {
    let is_object = |line| serde_json::from_str::<Value>(line).is_ok_and(|value| value.is_object());
    !log.trim().is_empty() && log.lines().all(is_object)
}

#[tokio::test(flavor = "multi_thread")]
async fn started_from_nothing_it_serves_and_says_where() {
    let installation = Installation::new();
    let service = installation.serve().await;
    let lines: Vec<_> = service.greeting.lines().collect();
    assert_eq!(lines[0], format!("identity {} serves gRPC and REST on {}", env!("CARGO_PKG_VERSION"), service.address));
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["store", "SQLite", "at", "./data/identity.db"]);
    let docs = lines.last().unwrap().split_whitespace().last().unwrap();
    assert_eq!(docs, format!("http://{}/api/docs/", service.address));

    let anonymous = service.anonymous();
    assert_eq!(status_of(&anonymous, "/api/health/").await, 200);
    let docs = anonymous.http.get(docs).send().await.unwrap();
    assert_eq!(docs.headers()["content-type"], "text/html; charset=utf-8");
    anonymous
        .sign_up("user@example.com")
        .await
        .call(Face::Grpc, "ProfileService.GetMyProfile", json!({}))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_keeps_is_for_its_own_eyes() {
    let installation = Installation::new();
    let _service = installation.serve().await;
    let data = installation.folder().join("data");
    assert_eq!(mode(&data), 0o700);
    let files: BTreeMap<_, _> = fs::read_dir(&data)
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), mode(&file.path())))
        .collect();
    let of_sqlite = ["identity.db", "identity.db-shm", "identity.db-wal"];
    assert_eq!(files, of_sqlite.into_iter().chain(["jwt.key"]).map(|name| (name.to_owned(), 0o600)).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_may_have_any_name() {
    let installation = Installation::with(&[("DATA_DIR", "Données 100%25 sûres? #1/v2")]);
    installation.serve().await.stop().await;
    let data = installation.folder().join("Données 100%25 sûres? #1/v2");
    assert!(data.join("identity.db").is_file());
    assert!(data.join("jwt.key").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_a_restart() {
    let installation = Installation::new();
    let service = installation.serve().await;
    let user = service.anonymous().sign_up("user@example.com").await;
    service.stop().await;

    let service = installation.serve().await;
    let user = user.at(service.address);
    user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    let refresh = json!({ "refresh_token": user.refresh_token });
    user.call(Face::Rest, "AuthService.RefreshToken", refresh).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_says_what_it_applied_and_then_that_nothing_is_left() {
    let installation = Installation::new();
    let first = installation.run(&["migrate"]).await.expect(0);
    assert!(first.stdout.starts_with("applied m0001_init, "), "{first:?}");
    let second = installation.run(&["migrate"]).await.expect(0);
    assert_eq!(second.stdout, "nothing to do: the schema is up to date\n");
    installation.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auto_migrate_it_refuses_a_database_that_lacks_the_schema() {
    let installation = Installation::with(&[("AUTO_MIGRATE", "false")]);
    let refused = installation.run(&["serve"]).await.expect(1);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("m0001_init"), "{refused:?}");
    assert!(refused.stderr.contains("run `identity migrate`"), "{refused:?}");

    installation.run(&["migrate"]).await.expect(0);
    installation.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_made_on_the_command_line_is_an_admin() {
    let mut installation = Installation::new();
    let password = format!("{PASSWORD}\n");
    let by_input = installation.run_with_input(&["createsuperuser", "--email", "one@example.com"], &password).await;
    assert_eq!(by_input.expect(0).stdout, "superuser one@example.com has id 1\n");
    installation.set("SUPERUSER_PASSWORD", PASSWORD);
    let by_variable = installation.run(&["createsuperuser", "--email", "two@Example.com"]).await.expect(0);
    assert_eq!(by_variable.stdout, "superuser two@example.com has id 2\n");

    let service = installation.serve().await;
    for email in ["one@example.com", "two@example.com"] {
        let login = json!({ "email": email, "password": PASSWORD });
        let answer = service.anonymous().call(Face::Rest, "AuthService.Login", login).await.expect(200);
        assert_eq!(answer["user"]["roles"], json!(["User", "Admin"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_who_cannot_be_is_refused_in_clear_words() {
    let installation = Installation::new();
    let attempts = [
        ("first@example.com", "Weak", "Password is too weak"),
        ("first@example.com", "Weak", "The password must contain at least one digit."),
        ("first@example.com", "", "set SUPERUSER_PASSWORD, or give it on standard input"),
    ];
    for (email, password, complaint) in attempts {
        let refused = installation.run_with_input(&["createsuperuser", "--email", email], password).await.expect(1);
        assert!(refused.stderr.contains(complaint), "{refused:?}");
        assert_eq!(refused.stdout, "");
        assert!(password.is_empty() || !refused.stderr.contains(password), "{refused:?}");
    }
    let no_address = installation.run_with_input(&["createsuperuser", "--email", "nonsense"], PASSWORD).await.expect(2);
    assert!(no_address.stderr.contains("--email"), "{no_address:?}");
    assert!(no_address.stderr.contains("Enter a valid email address."), "{no_address:?}");
    installation.run_with_input(&["createsuperuser", "--email", "first@example.com"], PASSWORD).await.expect(0);
    let again =
        installation.run_with_input(&["createsuperuser", "--email", "FIRST@example.com"], PASSWORD).await.expect(1);
    assert!(again.stderr.ends_with("identity: a user with this email already exists\n"), "{again:?}");
}

/// Each complaint about a password stands on a line of its own.
#[tokio::test(flavor = "multi_thread")]
async fn complaints_about_a_password_are_a_list() {
    let arguments = ["createsuperuser", "--email", "first@example.com"];
    let refused = Installation::new().run_with_input(&arguments, "Weakling").await.expect(1);
    let said: Vec<_> = refused.stderr.lines().collect();
    assert_eq!(
        said,
        [
            "identity: Password is too weak",
            "  The password must contain at least one digit.",
            "  The password must contain at least one special character.",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_tells_by_its_exit_code() {
    let installation = Installation::new();
    let service = installation.serve().await;
    let address = service.address.to_string();
    let beside = Installation::with(&[("LISTEN_ADDR", &address)]);
    let well = beside.run(&["healthcheck"]).await.expect(0);
    assert_eq!(serde_json::from_str::<Value>(&well.stdout).unwrap()["status"], "ok");

    service.stop().await;
    let gone = beside.run(&["healthcheck"]).await.expect(1);
    assert!(gone.stderr.contains(&address), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_finds_a_service_that_listens_on_all_addresses() {
    let installation = Installation::with(&[("LISTEN_ADDR", "0.0.0.0:0")]);
    let service = installation.serve().await;
    let docs = format!("http://127.0.0.1:{}/api/docs/", service.address.port());
    assert!(service.greeting.trim_end().ends_with(&docs), "{}", service.greeting);
    let beside = Installation::with(&[("LISTEN_ADDR", &service.address.to_string())]);
    beside.run(&["healthcheck"]).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_shows_what_is_in_force_without_a_secret() {
    let signing = "the-key-that-signs-the-tokens-0123456789";
    let installation = Installation::with(&[
        ("JWT_SECRET_KEY", signing),
        ("SECRET_KEY", "the-key-of-codes-and-of-events-0123456789"),
        ("DATABASE_URL", "postgres://service:database-secret@db.example.com/users"),
        ("REDIS_URL", "redis://:redis-secret@cache.example.com:6379/1"),
        ("EMAIL_HOST", "mail.example.com"),
        ("EMAIL_HOST_USER", "service"),
        ("EMAIL_HOST_PASSWORD", "mail-secret"),
        ("SUPERUSER_PASSWORD", "superuser-secret"),
        ("JWT_EXPIRATION_DELTA", "600"),
    ]);
    let shown = installation.run(&["config"]).await.expect(0);
    let text = shown.stdout + &shown.stderr;
    assert!(!text.contains("secret@") && !text.contains("-secret\n") && !text.contains("0123456789"), "{text}");
    // What an operator computes elsewhere by `printf '%s' "$JWT_SECRET_KEY" | sha256sum | cut -c1-16`.
    let hash = digest::digest(&digest::SHA256, signing.as_bytes());
    let fingerprint = hash.as_ref()[..8].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.contains(&format!("JWT_SECRET_KEY=sha256 {fingerprint}").as_str()), "{text}");
    assert!(lines.contains(&"JWT_EXPIRATION_DELTA=600"), "{text}");
    assert!(lines.contains(&"JWT_REFRESH_EXPIRATION_DELTA=604800  # by default"), "{text}");
    assert_eq!(fs::read_dir(installation.folder()).unwrap().count(), 0, "to show the settings makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_a_file_too_and_the_environment_outranks_it() {
    let installation = Installation::with(&[("LOG_LEVEL", "warn")]);
    fs::write(installation.folder().join(".env"), "LOG_LEVEL=debug\nJWT_EXPIRATION_DELTA=900 # a quarter\n").unwrap();
    let shown = installation.run(&["config"]).await.expect(0).stdout;
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines.contains(&"LOG_LEVEL=warn"), "{shown}");
    assert!(lines.contains(&"JWT_EXPIRATION_DELTA=900"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_mistakes_in_the_settings_are_told_at_once() {
    let mistakes = [
        ("LISTEN_ADDR", "here"),
        ("POSTGRES_HOST", "db.example.com"),
        ("JWT_SECRET_KEY", "your-jwt-secret-key"),
        ("JWT_EXPIRATION_DELTA", "an hour"),
        ("RATE_LIMIT_LOGIN", "often"),
        ("SELF_SERVICE_ROLES", "admin"),
    ];
    let installation = Installation::with(&mistakes);
    for command in
        [&["serve"][..], &["migrate"], &["healthcheck"], &["config"], &["createsuperuser", "--email", "a@b.com"]]
    {
        let refused = installation.run(command).await.expect(2);
        assert_eq!(refused.stdout, "", "{command:?}");
        let named: Vec<_> = refused.stderr.lines().map(|line| line.split(':').next().unwrap()).collect();
        for (name, _) in mistakes.iter().filter(|(name, _)| *name != "POSTGRES_HOST") {
            assert!(named.contains(name), "{command:?} says nothing of {name}: {}", refused.stderr);
        }
        assert_eq!(named.len(), mistakes.len() - 1, "{}", refused.stderr);
        assert!(refused.stderr.lines().all(|line| line.contains("; expected ")), "{}", refused.stderr);
        // It is a key all the same, if a bad one.
        assert!(!refused.stderr.contains("your-jwt-secret-key"), "{}", refused.stderr);
    }
    assert_eq!(fs::read_dir(installation.folder()).unwrap().count(), 0, "a mistake makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_that_would_take_the_machine_away_is_a_mistake() {
    let installation = Installation::with(&[("ARGON2_MEMORY_KIB", "65536"), ("ARGON2_ITERATIONS", "17")]);
    let refused = installation.run(&["serve"]).await.expect(2);
    assert!(refused.stderr.starts_with("ARGON2_ITERATIONS: "), "{refused:?}");
    let refused = Installation::with(&[("ARGON2_MEMORY_KIB", "262145")]).run(&["serve"]).await.expect(2);
    assert!(refused.stderr.starts_with("ARGON2_MEMORY_KIB: "), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn openapi_prints_what_the_service_serves() {
    let installation = Installation::new();
    let printed = installation.run(&["openapi"]).await.expect(0).stdout;
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let service = installation.serve().await;
    let served = service.anonymous().request(Method::GET, "/api/openapi.json").send().await.unwrap();
    assert_eq!(printed, served.json::<Value>().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_explains_itself() {
    let installation = Installation::new();
    let help = installation.run(&["--help"]).await.expect(0).stdout;
    for command in COMMANDS {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is missing from {help}");
        let help = installation.run(&[command, "--help"]).await.expect(0).stdout;
        assert!(help.contains(&format!("Usage: identity {command}")), "{help}");
    }
    let version = installation.run(&["--version"]).await.expect(0).stdout;
    assert_eq!(version, format!("identity {}\n", env!("CARGO_PKG_VERSION")));
    let unknown = installation.run(&["sevre"]).await.expect(2);
    assert!(unknown.stderr.contains("'serve'"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = Installation::with(&[("LISTEN_ADDR", &address)]).run(&[]).await.expect(1);
    assert_eq!(refused.stdout, "", "it said that it serves");
    let last = refused.stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("identity: can't listen on {address}: Address already in use")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_json_where_nobody_reads_it_as_it_comes() {
    for (format, json) in [("auto", true), ("json", true), ("text", false)] {
        let installation = Installation::with(&[("LOG_FORMAT", format)]);
        let service = installation.serve().await;
        assert_eq!(status_of(&service.anonymous(), "/api/profile/me/").await, 401);
        let log = service.log();
        assert!(log.contains("ProfileService.GetMyProfile"), "{log}");
        assert_eq!(is_json(&log), json, "LOG_FORMAT={format}: {log}");
        assert!(!log.contains('\x1b'), "colours in a file: {log:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_text_on_a_terminal() {
    let installation = Installation::new();
    // `script` runs a command on a terminal of its own.
    let mut on_terminal = installation.command("script");
    on_terminal.args(["-qec", &format!("'{}' migrate", env!("CARGO_BIN_EXE_identity")), "/dev/null"]);
    if installation.command("script").arg("--version").output().is_err() {
        return skip("there is no `script`");
    }
    let shown = run(on_terminal, "").await.expect(0).stdout;
    assert!(shown.contains("m0001_init") && shown.contains('\x1b'), "{shown:?}");
    assert!(!shown.lines().any(is_json), "{shown:?}");
}

/// The settings that make `url` the database, by the names of the Django service.
fn postgres_settings(url: &str) -> [(&'static str, String); 6] {
    let url = Url::parse(url).unwrap();
    [
        ("POSTGRES_HOST", url.host_str().unwrap().to_owned()),
        ("POSTGRES_PORT", url.port().unwrap_or(5432).to_string()),
        ("POSTGRES_DB", url.path().trim_start_matches('/').to_owned()),
        ("POSTGRES_USER", url.username().to_owned()),
        ("POSTGRES_PASSWORD", url.password().unwrap_or_default().to_owned()),
        ("JWT_SECRET_KEY", "a-key-that-both-replicas-share-0123456789".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_over_an_empty_postgresql_are_one_service() {
    if !has_postgres() {
        return;
    }
    let database = empty_database(Store::Postgres).await;
    let settings = postgres_settings(&database.url);
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (here, there) = (Installation::with(&settings), Installation::with(&settings));
    let (one, other) = tokio::join!(here.serve(), there.serve());
    let store = format!("PostgreSQL at {}:{}/{}", settings[0].1, settings[1].1, settings[2].1);
    assert!(one.greeting.contains(&store), "{}", one.greeting);
    assert!(!one.greeting.contains(settings[4].1), "the password is in the greeting");

    let user = one.anonymous().sign_up("user@example.com").await;
    user.at(other.address).call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    assert!(!here.folder().join("data").exists(), "with PostgreSQL and a key there is nothing to keep on disk");
    one.stop().await;
    other.stop().await;
}
