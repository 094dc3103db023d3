//! What is allowed, but hardly meant: the operator is told.

use std::fs;

use identity::{
    config::{Environment, MailTransport, NOT_YET, SmtpTls},
    db::SQLITE_READERS,
};

use super::{KEY, loaded, production};

/// Asserts that `variables` are taken with one warning, which is `expected`.
#[track_caller]
fn warned(variables: &[(&str, &str)], expected: &str) {
    assert_eq!(loaded(variables).warnings, [expected], "{variables:?}");
}

/// Asserts that `variables` are taken without a warning.
#[track_caller]
fn taken(variables: &[(&str, &str)]) {
    assert_eq!(loaded(variables).warnings, [""; 0], "{variables:?}");
}

#[test]
fn what_this_release_ignores_is_warned_of_only_when_it_would_matter() {
    let config = loaded(&[("SECURE_SSL_REDIRECT", "False"), ("SECURE_HSTS_SECONDS", "0"), ("AUTH_COOKIES", "no")]);
    assert_eq!(config.warnings, [""; 0]);
    for name in NOT_YET {
        let value = match *name {
            "ACCEPT_SIMPLEJWT_UNTIL" => "2027-01-31T00:00:00Z",
            _ => "true",
        };
        let config = loaded(&[(name, value)]);
        assert_eq!(config.warnings.len(), 1, "{name}: {:?}", config.warnings);
        assert!(config.warnings[0].starts_with(name));
    }
}

#[test]
fn a_developer_may_use_weak_keys_and_is_told() {
    for variables in [
        vec![("JWT_SECRET_KEY", "short")],
        vec![("JWT_SECRET_KEY", "dev-jwt-secret")],
        production(&[("JWT_SECRET_KEY", "short"), ("DEBUG", "1")]),
        production(&[("DEBUG", "yes")]),
    ] {
        let config = loaded(&variables);
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        assert!(config.warnings[0].starts_with("JWT_SECRET_KEY"));
    }
}

#[test]
fn hashes_that_only_a_developer_may_use_are_warned_of() {
    let cheap = [("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1"), ("DEBUG", "on")];
    let weak = "cheaper than DEBUG=false allows, and a stolen hash is cheaper to guess";
    warned(&cheap, &format!("ARGON2_MEMORY_KIB, ARGON2_ITERATIONS: {weak}"));
    warned(&cheap[1..], &format!("ARGON2_ITERATIONS: {weak}"));
    taken(&[("ARGON2_MEMORY_KIB", "19456"), ("ARGON2_ITERATIONS", "2"), ("DEBUG", "on")]);
}

#[test]
fn mail_settings_that_nothing_comes_of_are_warned_of() {
    warned(&[("EMAIL_FILE_PATH", "mails")], "mail goes onto the console: nothing comes of EMAIL_FILE_PATH");
    warned(
        &[("EMAIL_BACKEND", "console"), ("EMAIL_HOST", "mail"), ("EMAIL_PORT", "25"), ("EMAIL_FILE_PATH", "mails")],
        "mail goes onto the console: nothing comes of EMAIL_HOST, EMAIL_PORT, EMAIL_FILE_PATH",
    );
    warned(
        &[("EMAIL_USE_TLS", "true"), ("EMAIL_HOST_USER", "me"), ("EMAIL_HOST_PASSWORD", "secret")],
        "mail goes onto the console: nothing comes of EMAIL_USE_TLS, EMAIL_HOST_USER, EMAIL_HOST_PASSWORD",
    );
    warned(
        &[("EMAIL_BACKEND", "file"), ("EMAIL_FILE_PATH", "mails"), ("EMAIL_HOST", "mail")],
        "mail goes into a folder: nothing comes of EMAIL_HOST",
    );
    warned(
        &[("EMAIL_HOST", "mail"), ("EMAIL_FILE_PATH", "mails")],
        "mail goes by SMTP: nothing comes of EMAIL_FILE_PATH",
    );
    taken(&[("EMAIL_BACKEND", "console")]);
    taken(&[("EMAIL_BACKEND", "file"), ("EMAIL_FILE_PATH", "mails")]);
    taken(&[("EMAIL_HOST", "mail"), ("EMAIL_PORT", "2525")]);
}

#[test]
fn half_a_login_and_a_password_in_the_clear_are_warned_of() {
    let user = ("EMAIL_HOST_USER", "me");
    let password = ("EMAIL_HOST_PASSWORD", "secret");
    let smtp = |more: &[(&'static str, &'static str)]| [&[("EMAIL_HOST", "mail")], more].concat();
    warned(&smtp(&[user]), "EMAIL_HOST_USER is set without EMAIL_HOST_PASSWORD: there is no login at the mail server");
    warned(
        &smtp(&[password]),
        "EMAIL_HOST_PASSWORD is set without EMAIL_HOST_USER: there is no login at the mail server",
    );
    warned(&smtp(&[user, password]), "EMAIL_HOST_PASSWORD is sent in the clear, as EMAIL_USE_TLS is false");
    taken(&smtp(&[user, password, ("EMAIL_USE_TLS", "true")]));
}

#[test]
fn the_port_of_tls_speaks_tls_and_the_operator_is_told_where_he_said_otherwise() {
    let port =
        [("EMAIL_HOST", "mail"), ("EMAIL_PORT", "465"), ("EMAIL_HOST_USER", "me"), ("EMAIL_HOST_PASSWORD", "secret")];
    warned(&port, "EMAIL_PORT is 465, where TLS comes first: it does, though EMAIL_USE_TLS is false");
    let asked = [&port[..], &[("EMAIL_USE_TLS", "true")]].concat();
    taken(&asked);
    for settings in [&port[..], &asked] {
        let MailTransport::Smtp(smtp) = loaded(settings).mail.transport else { panic!("{settings:?}") };
        assert_eq!(smtp.tls, SmtpTls::FromTheStart);
    }
}

#[test]
fn more_connections_than_sqlite_gets_are_warned_of() {
    let warnings = |count: u32| loaded(&[("DATABASE_MAX_CONNECTIONS", &count.to_string())]).warnings;
    assert_eq!(warnings(SQLITE_READERS), [""; 0]);
    let told = warnings(SQLITE_READERS + 1);
    assert!(told.len() == 1 && told[0].starts_with("DATABASE_MAX_CONNECTIONS"), "{told:?}");
    assert!(told[0].contains(&format!("over {SQLITE_READERS} connections")), "{told:?}");
    taken(&production(&[("JWT_SECRET_KEY", KEY), ("DATABASE_MAX_CONNECTIONS", "100")]));
}

#[test]
fn settings_of_redis_without_a_redis_are_warned_of() {
    warned(&[("REDIS_PORT", "6380")], "REDIS_HOST is not set: nothing comes of REDIS_PORT");
    warned(&[("REDIS_PREFIX", "users")], "neither REDIS_URL nor REDIS_HOST is set: nothing comes of REDIS_PREFIX");
    let both = [("REDIS_PREFIX", "users"), ("REDIS_TIMEOUT_MS", "20")];
    warned(&both, "neither REDIS_URL nor REDIS_HOST is set: nothing comes of REDIS_PREFIX, REDIS_TIMEOUT_MS");
    taken(&[("REDIS_HOST", "redis"), ("REDIS_PORT", "6380"), ("REDIS_PREFIX", "users"), ("REDIS_TIMEOUT_MS", "20")]);
}

#[test]
fn a_redirect_without_end_is_warned_of() {
    let told = "SECURE_SSL_REDIRECT is true, but there is no TLS_CERT_FILE, and TRUSTED_PROXIES names no proxy that could say \
                that it speaks TLS: whoever comes is sent away";
    warned(&[("SECURE_SSL_REDIRECT", "true")], told);
    taken(&[("SECURE_SSL_REDIRECT", "true"), ("TRUSTED_PROXIES", "10.0.0.0/8")]);
}

#[test]
fn slips_of_the_pen_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    let slips = [
        ("JWT_SECRET", "JWT_SECRET_KEY"),
        ("POSTGRES_PASS", "POSTGRES_PASSWORD"),
        ("RATE_LIMIT_LOGINS", "RATE_LIMIT_LOGIN"),
        ("ALOWED_HOSTS", "ALLOWED_HOSTS"),
        ("DATABASE_URI", "DATABASE_URL"),
    ];
    let slipped = slips.map(|(slip, _)| format!("{slip}=1\n")).concat();
    let text = slipped
        + "JWT_SECRET_KEY=1\nUSER_SERVICE_HOST=1\nKUBERNETES_PORT=1\nDJANGO_SETTINGS_MODULE=1\nPYTHONUNBUFFERED=1\n";
    fs::write(&path, text).unwrap();
    let warnings = Environment::read(&path).unwrap().misspelt();
    for (slip, meant) in slips {
        assert!(warnings.contains(&format!("{slip} is set, but unknown: is {meant} meant?")), "{slip}: {warnings:?}");
    }
    for innocent in ["USER_SERVICE_HOST", "KUBERNETES_PORT", "DJANGO_SETTINGS_MODULE", "PYTHONUNBUFFERED", "HOSTNAME"] {
        assert!(!warnings.iter().any(|warning| warning.starts_with(innocent)), "{warnings:?}");
    }
}
