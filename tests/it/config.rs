//! The settings: what holds without any, what is refused, and what an operator gets to see of secrets.

mod avatars;
mod database;
mod keys;
mod mail;
mod telemetry;
mod warnings;

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use identity::{
    config::{
        AllowedHosts, AvatarStore, Config, ConfigErrors, DirectoryEmails, Environment, Fallback, LogFormat,
        LoginCounts, MailTransport, Mistake, NOT_YET, NeedsVerified, Privacy, Rate, SelfServiceRole, SmtpTls, Store,
        VARIABLES,
    },
    jws::{Algorithm, Key},
    model::password::Argon2Params,
};
use secrecy::ExposeSecret;

pub(crate) const KEY: &str = "0123456789abcdef0123456789abcdef";

fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
}

#[track_caller]
pub(crate) fn loaded(variables: &[(&str, &str)]) -> Config {
    load(variables).unwrap_or_else(|errors| panic!("refused:\n{errors}"))
}

/// The mistakes in these variables; there must be some.
#[track_caller]
fn mistakes(variables: &[(&str, &str)]) -> Vec<Mistake> {
    load(variables).err().unwrap_or_else(|| panic!("{variables:?} is taken")).0
}

/// Asserts that exactly `name` is refused, for a reason that holds `why`.
#[track_caller]
pub(crate) fn refused(variables: &[(&str, &str)], name: &str, why: &str) {
    let mistakes = mistakes(variables);
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert_eq!(mistakes[0].name, name);
    assert!(mistakes[0].wrong.contains(why), "{}", mistakes[0]);
    assert!(!mistakes[0].right.is_empty());
}

/// PostgreSQL in production, and `more`.
pub(crate) fn production<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut variables = vec![("POSTGRES_HOST", "db"), ("ALLOWED_HOSTS", "example.com")];
    variables.extend(more);
    variables
}

fn postgres_url(config: &Config) -> &str {
    match &config.database.store {
        Store::Postgres { url, .. } => url.expose_secret(),
        store @ Store::Sqlite { .. } => panic!("{store}"),
    }
}

fn shown(config: &Config, name: &str) -> String {
    let settings = config.describe().unwrap();
    settings.into_iter().find(|setting| setting.variable.name == name).unwrap().value
}

#[test]
fn with_nothing_set_the_documented_defaults_hold() {
    let config = loaded(&[]);

    assert!(!config.debug);
    assert_eq!(config.data_dir, PathBuf::from("./data"));
    assert_eq!(config.server.listen_addr, "0.0.0.0:8000".parse::<SocketAddr>().unwrap());
    assert!(config.server.reflection);
    assert_eq!(config.log.level, "info");
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.database.store.to_string(), "SQLite at ./data/identity.db");
    assert_eq!(config.database.connection_max_age, Duration::from_mins(10));
    assert!(config.database.auto_migrate);
    assert!(config.redis.is_none());
    assert!(matches!(config.mail.transport, MailTransport::Console));
    assert_eq!(config.jwt.algorithm, Algorithm::Hs256);
    assert_eq!(config.jwt.access_lifetime, Duration::from_hours(1));
    assert_eq!(config.jwt.refresh_lifetime, Duration::from_hours(7 * 24));
    assert_eq!(config.limits.login, Some(Rate { count: 5, per: Duration::from_mins(15) }));
    assert_eq!(config.limits.register, Some(Rate { count: 3, per: Duration::from_hours(1) }));
    assert_eq!(config.limits.api, Some(Rate { count: 1000, per: Duration::from_mins(1) }));
    assert_eq!(config.limits.verification, Some(Rate { count: 1, per: Duration::from_mins(1) }));
    assert_eq!(config.limits.login_counts, LoginCounts::Failures);
    assert_eq!(config.accounts.privacy, Privacy::Documented);
    assert_eq!(config.accounts.require_verified, [NeedsVerified::SelfServiceRoles]);
    assert_eq!(config.accounts.self_service_roles, [SelfServiceRole::Freelancer, SelfServiceRole::Seller]);
    assert_eq!(config.accounts.directory_emails, DirectoryEmails::Masked);
    assert!(matches!(config.accounts.avatar_store, AvatarStore::Database));
    assert_eq!(config.http.allowed_hosts, AllowedHosts::Any);
    assert_eq!(config.http.hsts, None);
    assert_eq!((config.hashing.memory_kib, config.hashing.iterations, config.hashing.parallelism), (19_456, 2, 1));
    assert_eq!(config.hashing.queue, 64 * config.hashing.threads);
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn a_blank_value_counts_as_unset() {
    let blanks: Vec<_> = VARIABLES.iter().map(|variable| (variable.name, " ")).collect();
    assert_eq!(format!("{:?}", loaded(&blanks)), format!("{:?}", loaded(&[])));
}

#[test]
fn every_variable_of_the_table_is_read_and_described_in_its_order() {
    let described = loaded(&[]).describe().unwrap();
    let names: Vec<_> = described.iter().map(|setting| setting.variable.name).collect();
    assert_eq!(names, VARIABLES.iter().map(|variable| variable.name).collect::<Vec<_>>());
    for setting in &described {
        assert!(!setting.is_set, "{setting:?}");
        assert!(!setting.value.is_empty() && !setting.variable.help.is_empty(), "{setting:?}");
    }
    for name in NOT_YET {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn every_default_of_the_table_is_a_value_that_may_be_set() {
    for variable in VARIABLES {
        if let Fallback::Value(value) = variable.default {
            let config = loaded(&[(variable.name, value)]);
            assert!(config.warnings.iter().all(|warning| !warning.contains("doesn't act")), "{:?}", config.warnings);
        }
    }
}

#[test]
fn the_compose_file_of_the_original_loads() {
    let config = loaded(&[
        ("DEBUG", "True"),
        ("SECRET_KEY", "dev-secret-key"),
        ("JWT_SECRET_KEY", "dev-jwt-secret"),
        ("POSTGRES_HOST", "postgres"),
        ("POSTGRES_PORT", "5432"),
        ("POSTGRES_DB", "user_service_db"),
        ("POSTGRES_USER", "postgres"),
        ("POSTGRES_PASSWORD", "postgres"),
        ("REDIS_HOST", "redis"),
        ("REDIS_PORT", "6379"),
        ("REDIS_URL", "redis://redis:6379/1"),
        ("NOTIFICATION_SERVICE_URL", "http://notification-service:8001"),
    ]);
    assert_eq!(config.database.store.to_string(), "PostgreSQL at postgres:5432/user_service_db");
    assert_eq!(postgres_url(&config), "postgres://postgres:postgres@postgres:5432/user%5Fservice%5Fdb");
    assert_eq!(config.redis.as_ref().unwrap().url.expose_secret(), "redis://redis:6379/1");
    let signing = Key::read(Algorithm::Hs256, "dev-jwt-secret").unwrap();
    assert_eq!(config.keys().unwrap().tokens.keys()[0].id(), signing.id());
    for name in ["JWT_SECRET_KEY", "SECRET_KEY"] {
        assert!(config.warnings.iter().any(|warning| warning.starts_with(name)), "{name}: {:?}", config.warnings);
    }
}

#[test]
fn the_documented_env_file_of_the_original_loads_once_its_key_is_real() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    let text = "\
# Django
DEBUG=False
SECRET_KEY=your-secret-key-here
ALLOWED_HOSTS=localhost,127.0.0.1,user-service

POSTGRES_HOST=postgres
POSTGRES_PASSWORD=postgres
REDIS_URL=redis://redis:6379/1
JWT_SECRET_KEY=your-jwt-secret-key
JWT_ALGORITHM=HS256
JWT_EXPIRATION_DELTA=3600  # 1 час в секундах
JWT_REFRESH_EXPIRATION_DELTA=604800  # 7 дней в секундах
EMAIL_BACKEND=django.core.mail.backends.smtp.EmailBackend
EMAIL_HOST=smtp.gmail.com
EMAIL_PORT=587
EMAIL_USE_TLS=True
EMAIL_HOST_USER=your-email@gmail.com
EMAIL_HOST_PASSWORD=your-app-password
NOTIFICATION_SERVICE_URL=http://notification-service:8001
SECURE_SSL_REDIRECT=False  # True в production
SECURE_HSTS_SECONDS=31536000
SECURE_HSTS_INCLUDE_SUBDOMAINS=True
CORS_ALLOWED_ORIGINS=http://localhost:3000,https://yourapp.com
";
    fs::write(&path, text).unwrap();
    let environment = Environment::read(&path).unwrap();
    let mistakes = Config::load(|name| environment.get(name)).unwrap_err().0;
    assert_eq!(mistakes.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["JWT_SECRET_KEY"]);

    fs::write(&path, text.replace("your-jwt-secret-key", KEY)).unwrap();
    let environment = Environment::read(&path).unwrap();
    let config = Config::load(|name| environment.get(name)).unwrap();
    let MailTransport::Smtp(smtp) = &config.mail.transport else { panic!("{:?}", config.mail) };
    assert_eq!((smtp.host.as_str(), smtp.port, smtp.tls), ("smtp.gmail.com", 587, SmtpTls::Starttls));
    assert_eq!(config.http.hsts.unwrap().max_age, Duration::from_hours(365 * 24));
    assert_eq!(config.http.cors_allowed_origins, ["http://localhost:3000", "https://yourapp.com"]);
}

#[test]
fn each_mistake_is_named() {
    for (name, value) in [
        ("DEBUG", "maybe"),
        ("LISTEN_ADDR", "8000"),
        ("GRPC_ADDR", "localhost:9000"),
        ("GRPC_ADDR", "0.0.0.0:8000"),
        ("MAX_CONNECTIONS", "0"),
        ("MAX_CONNECTIONS_PER_CLIENT", "many"),
        ("TLS_CLIENT_AUTH", "always"),
        ("PUBLIC_URL", "users.example.com"),
        ("PUBLIC_URL", "ftp://example.com"),
        ("REFLECTION", "2"),
        ("LOG_LEVEL", "loud"),
        ("LOG_LEVEL", "info,sqlx=loud"),
        ("LOG_FORMAT", "xml"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_EXPIRATION_DELTA", "0"),
        ("JWT_EXPIRATION_DELTA", "1h"),
        ("JWT_REFRESH_EXPIRATION_DELTA", "99999999999"),
        ("JWT_REFRESH_EXPIRATION_DELTA", "3599"),
        ("ACCEPT_SIMPLEJWT_UNTIL", "tomorrow"),
        ("POSTGRES_HOST", "http://db"),
        ("POSTGRES_PORT", "0"),
        ("POSTGRES_PORT", "65536"),
        ("POSTGRES_PORT", "tcp://10.0.0.1:5432"),
        ("POSTGRES_CONN_MAX_AGE", "-1"),
        ("DATABASE_URL", "mysql://db/users"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("DATABASE_URL", "sqlite:"),
        ("DATABASE_MAX_CONNECTIONS", "0"),
        ("AUTO_MIGRATE", "perhaps"),
        ("REDIS_URL", "http://redis"),
        ("REDIS_URL", "redis://redis/cache"),
        ("REDIS_HOST", "redis:6379"),
        ("REDIS_PORT", "x"),
        ("REDIS_PREFIX", "users:one"),
        ("REDIS_PREFIX", "{users}"),
        ("REDIS_TIMEOUT_MS", "0"),
        ("REDIS_TIMEOUT_MS", "1001"),
        ("REDIS_PREFIX", &"x".repeat(65)),
        ("EMAIL_BACKEND", "django.core.mail.backends.locmem.EmailBackend"),
        ("EMAIL_PORT", "smtp"),
        ("EMAIL_USE_TLS", "starttls"),
        ("DEFAULT_FROM_EMAIL", "nobody"),
        ("DEFAULT_FROM_EMAIL", "a@b.example\nBcc: c@d.example"),
        ("DEFAULT_FROM_EMAIL", "a..b@example.com"),
        ("DEFAULT_FROM_EMAIL", "a@b.example, c@d.example"),
        ("DEFAULT_FROM_EMAIL", "Users, Inc. <users@example.com>"),
        ("DEFAULT_FROM_EMAIL", "\"Us\u{7}ers\" <users@example.com>"),
        ("NOTIFICATION_SERVICE_URL", "notification-service:8001"),
        ("NOTIFICATION_SERVICE_URL", "http://user:pass@notification-service"),
        ("AUTH_PRIVACY", "lax"),
        ("REQUIRE_VERIFIED", "avatar,nothing"),
        ("SELF_SERVICE_ROLES", "admin"),
        ("SELF_SERVICE_ROLES", "moderator"),
        ("DIRECTORY_EMAILS", "yes"),
        ("AVATAR_STORE", "disk"),
        ("RATE_LIMIT_LOGIN", "5"),
        ("RATE_LIMIT_LOGIN", "0/15m"),
        ("RATE_LIMIT_REGISTER", "3/0h"),
        ("RATE_LIMIT_API", "1000/minute"),
        ("RATE_LIMIT_VERIFICATION", "1/1й"),
        ("RATE_LIMIT_LOGIN_COUNTS", "all"),
        ("RATE_LIMIT_EXEMPT", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "proxy.local"),
        ("ALLOWED_HOSTS", "https://example.com"),
        ("ALLOWED_HOSTS", "example.com:8000"),
        ("CORS_ALLOWED_ORIGINS", "*"),
        ("CORS_ALLOWED_ORIGINS", "https://example.com/"),
        ("SECURE_SSL_REDIRECT", "always"),
        ("SECURE_HSTS_SECONDS", "forever"),
        ("ARGON2_MEMORY_KIB", "19455"),
        ("ARGON2_MEMORY_KIB", "1048577"),
        ("ARGON2_ITERATIONS", "1"),
        ("ARGON2_PARALLELISM", "0"),
        ("ARGON2_PARALLELISM", "65"),
        ("HASH_THREADS", "0"),
        ("HASH_QUEUE", "0"),
    ] {
        let mistakes = mistakes(&[(name, value), ("JWT_SECRET_KEY", KEY)]);
        assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
        assert_eq!(mistakes[0].name, name, "{value}");
        let variable = VARIABLES.iter().find(|variable| variable.name == name).unwrap();
        assert_eq!(mistakes[0].right, variable.form);
    }
}

#[test]
fn all_mistakes_are_listed_at_once_one_a_line() {
    let errors = load(&[
        ("LISTEN_ADDR", "here"),
        ("DATABASE_URL", "postgres://user:hunter2@db:notaport/users"),
        ("EMAIL_BACKEND", "file"),
        ("JWT_EXPIRATION_DELTA", "-5"),
    ])
    .unwrap_err();
    let text = errors.to_string();
    let names: Vec<_> = text.lines().map(|line| line.split(':').next().unwrap()).collect();
    let expected = ["LISTEN_ADDR", "DATABASE_URL", "JWT_EXPIRATION_DELTA", "JWT_SECRET_KEY", "EMAIL_FILE_PATH"];
    assert_eq!(names, expected, "{text}");
    assert!(text.starts_with(
        "LISTEN_ADDR: \"here\" is not an IP address with a port; expected an IP address and a port, like 0.0.0.0:8000\n"
    ));
}

#[test]
fn no_secret_is_shown_anywhere() {
    let canary = "canary7Gq";
    let url = |scheme: &str| format!("{scheme}://user:{canary}@host:1234/1?password={canary}");
    let long = format!("{canary}-{KEY}");
    let (postgres, redis) = (url("postgres"), url("redis"));
    let variables = [
        ("JWT_SECRET_KEY", long.as_str()),
        ("SECRET_KEY", &long),
        ("DATABASE_URL", &postgres),
        ("DATABASE_READ_URL", &postgres),
        ("POSTGRES_PASSWORD", canary),
        ("REDIS_URL", &redis),
        ("EMAIL_HOST", "mail"),
        ("EMAIL_HOST_PASSWORD", canary),
        ("SUPERUSER_PASSWORD", canary),
    ];
    let config = loaded(&variables);
    let keys = config.keys().unwrap();
    let shown = format!("{config:?} {:?} {:?} {keys:?} {}", config.describe(), config.warnings, config.database.store);
    assert!(!shown.contains(canary), "{shown}");
    assert!(shown.contains("PostgreSQL at host:1234/1"));

    for (name, value) in [
        ("DATABASE_URL", format!("postgres://user:{canary}@host:port/name")),
        ("DATABASE_URL", format!("postgers://user:{canary}@host/name")),
        ("REDIS_URL", format!("redis://:{canary}@host:port")),
        ("REDIS_URL", format!("http://:{canary}@host")),
        ("JWT_SECRET_KEY", canary.to_owned()),
    ] {
        let variables = production(&[(name, &value)]);
        let errors = load(&variables).unwrap_err();
        assert!(!format!("{errors} {errors:?}").contains(canary), "{errors}");
    }
}

#[test]
fn redis_host_and_port_make_a_url() {
    let config = loaded(&[("REDIS_HOST", "redis"), ("REDIS_PORT", "6380")]);
    assert_eq!(config.redis.as_ref().unwrap().url.expose_secret(), "redis://redis:6380");
    for url in ["rediss://r", "redis-sentinel://s:26379?node=t:26379&sentinelServiceName=m", "redis-cluster://c:7000"] {
        loaded(&[("REDIS_URL", url)]);
    }
}

#[test]
fn limits_read_as_count_and_time() {
    let rate = |text| loaded(&[("RATE_LIMIT_LOGIN", text)]).limits.login;
    assert_eq!(rate("off"), None);
    assert_eq!(rate("1/90s"), Some(Rate { count: 1, per: Duration::from_secs(90) }));
    assert_eq!(rate("7 / 2d"), Some(Rate { count: 7, per: Duration::from_hours(48) }));
}

#[test]
fn lists_take_spaces_single_addresses_and_none() {
    let config = loaded(&[
        ("TRUSTED_PROXIES", "10.1.2.3/8, 192.168.0.1 ,::1,"),
        ("REQUIRE_VERIFIED", "login, avatar,login"),
        ("SELF_SERVICE_ROLES", "none"),
    ]);
    let proxies: Vec<_> = config.limits.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "192.168.0.1/32", "::1/128"]);
    assert_eq!(config.accounts.require_verified, [NeedsVerified::Avatar, NeedsVerified::Login]);
    assert_eq!(config.accounts.self_service_roles, []);

    for (peer, trusted) in [("10.9.9.9", true), ("::ffff:192.168.0.1", true), ("192.168.0.2", false), ("::2", false)] {
        assert_eq!(config.trusts_proxy(peer.parse().unwrap()), trusted, "{peer}");
    }

    let config = loaded(&[("TRUSTED_PROXIES", "0.0.0.0/0")]);
    assert!(config.warnings[0].starts_with("TRUSTED_PROXIES"));
}

#[test]
fn allowed_hosts_follow_djangos_rules() {
    let hosts = |text| loaded(&[("ALLOWED_HOSTS", text)]).http.allowed_hosts;
    let some = hosts("Localhost, 127.0.0.1,.example.com,::1");
    for host in
        ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "example.com", "a.b.Example.com.", "[::1]:8000", "[::1]"]
    {
        assert!(some.allows(host), "{host}");
    }
    for host in
        ["", "localhost.evil.com", "badexample.com", "127.0.0.2", "localhost:80:80", "localhost/", "::1", "a@localhost"]
    {
        assert!(!some.allows(host), "{host}");
    }
    for host in [
        "evil.com/.example.com",
        "evil.com?.example.com",
        "evil.com#x.example.com",
        "evil.com\\.example.com",
        "evil.com:80@.example.com",
        "a\"><b>.example.com",
        "[::1].example.com",
    ] {
        assert!(!some.allows(host), "{host}");
        assert!(!hosts("*").allows(host), "{host}");
    }
    assert_eq!(hosts("*"), AllowedHosts::Any);
    assert_eq!(hosts("example.com,*"), AllowedHosts::Any);
}

#[test]
fn cheap_hashes_are_for_developers() {
    let cheap = [("ARGON2_MEMORY_KIB", "8"), ("ARGON2_ITERATIONS", "1"), ("DEBUG", "on")];
    assert_eq!(loaded(&cheap).hashing.memory_kib, 8);
    let names: Vec<_> = mistakes(&cheap[..2]).into_iter().map(|mistake| mistake.name).collect();
    assert_eq!(names, ["ARGON2_MEMORY_KIB", "ARGON2_ITERATIONS"]);
}

#[test]
fn a_cost_is_taken_here_if_it_is_taken_where_passwords_are_hashed() {
    for (memory_kib, iterations, parallelism) in [
        (8, 1, 1),
        (7, 1, 1),
        (512, 1, 64),
        (511, 1, 64),
        (65_536, 1, 65),
        (262_144, 4, 64),
        (262_144, 5, 1),
        (262_145, 1, 1),
    ] {
        let [memory, passes, lanes] = [memory_kib, iterations, parallelism].map(|n: u32| n.to_string());
        let variables = [
            ("DEBUG", "on"),
            ("ARGON2_MEMORY_KIB", memory.as_str()),
            ("ARGON2_ITERATIONS", &passes),
            ("ARGON2_PARALLELISM", &lanes),
        ];
        let used = Argon2Params::new(memory_kib, iterations, parallelism).is_ok();
        assert_eq!(load(&variables).is_ok(), used, "{variables:?}");
    }
}

#[test]
fn log_levels_are_taken_as_django_writes_them() {
    let level = |text| loaded(&[("LOG_LEVEL", text)]).log.level;
    assert_eq!(level("WARNING"), "warn");
    assert_eq!(level("DEBUG"), "debug");
    assert_eq!(level("info, sqlx=warn"), "info,sqlx=warn");
}

#[test]
fn the_environment_wins_over_the_env_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    assert!(Environment::read(&path).is_ok(), "the file may be absent");

    fs::write(&path, "\u{feff}FIRST_OF_ALL=1\nPATH='from the file'\nRATE_LIMIT_API='7/1m'\n").unwrap();
    let environment = Environment::read(&path).unwrap();
    assert_eq!(environment.get("PATH"), crate::harness::stores::setting("PATH"));
    assert_eq!(environment.get("FIRST_OF_ALL").as_deref(), Some("1"));
    assert_eq!(environment.get("RATE_LIMIT_API").as_deref(), Some("7/1m"));
}

#[test]
fn a_broken_line_in_the_env_file_is_a_mistake_and_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    fs::write(
        &path,
        "DEBUG=1\n\nPOSTGRES_PASSWORD=hunter2 hunter3\nhunter4\nHASH_QUEUE=hunter2 hunter3\nLOG_LEVEL=info\n",
    )
    .unwrap();
    let errors = Environment::read(&path).err().unwrap();
    let places: Vec<_> =
        errors.0.iter().map(|mistake| mistake.name.trim_start_matches(path.to_str().unwrap())).collect();
    assert_eq!(places, [" line 3 (POSTGRES_PASSWORD)", " line 4", " line 5 (HASH_QUEUE)"]);
    assert!(!errors.to_string().contains("hunter"), "{errors}");
}
