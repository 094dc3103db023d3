//! Every setting of the service, checked before anything starts.
//!
//! [`Config::from_environment`] reads the process's environment and `.env`; [`Config::load`] reads whatever function it
//! is given and touches nothing else. Both report all mistakes at once. What each variable means stands in [`VARIABLES`].

mod avatars;
mod database;
mod environment;
mod hosts;
mod key;
mod mail;
mod parse;
mod read;
mod redis;
mod telemetry;
mod variables;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use avatars::avatar_store;
pub use avatars::{AvatarFolder, AvatarStore, Bucket, Credentials};
use database::database;
pub use database::{Database, Store};
pub use environment::Environment;
pub use hosts::AllowedHosts;
pub use key::SecretKey;
use mail::mail;
pub use mail::{Mail, MailTransport, Smtp, SmtpTls};
use read::Reader;
pub use read::{ConfigErrors, Mistake, Setting};
pub use redis::Redis;
use redis::redis;
use telemetry::telemetry;
pub use telemetry::{Telemetry, Traces};
pub use variables::{Fallback, Shown, VARIABLES, Variable};

/// Variables that are checked and kept, but not acted upon yet. Setting one to something that matters is a warning: an
/// operator mustn't believe that it works.
pub const NOT_YET: &[&str] = &[
    "ACCEPT_SIMPLEJWT_UNTIL",
    "AUTH_COOKIES",
    "CORS_ALLOWED_ORIGINS",
    "GRPC_ADDR",
    "SECURE_HSTS_INCLUDE_SUBDOMAINS",
    "SECURE_HSTS_SECONDS",
    "SECURE_SSL_REDIRECT",
];

/// The configuration in force. Its `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    pub debug: bool,
    pub data_dir: PathBuf,
    pub server: Server,
    pub http: Http,
    pub log: Log,
    pub jwt: Jwt,
    pub database: Database,
    /// Where replicas share what they may lose, if anywhere.
    pub redis: Option<Redis>,
    pub mail: Mail,
    pub notification_service_url: Option<Url>,
    /// How long the audit trail is kept; `None` keeps it for good.
    pub audit_retention: Option<Duration>,
    pub accounts: Accounts,
    pub limits: Limits,
    pub hashing: Hashing,
    pub telemetry: Telemetry,
    pub superuser_password: Option<SecretString>,
    /// What is allowed, but hardly meant: for the log.
    pub warnings: Vec<String>,
    signing_key: Option<SecretString>,
    secret_key: Option<SecretString>,
    settings: Vec<Setting>,
}

#[derive(Debug, Clone)]
pub struct Server {
    pub listen_addr: SocketAddr,
    pub grpc_addr: Option<SocketAddr>,
    /// Without a final slash.
    pub public_url: Option<String>,
    pub reflection: bool,
}

#[derive(Debug, Clone)]
pub struct Http {
    pub allowed_hosts: AllowedHosts,
    /// Exactly as browsers send them.
    pub cors_allowed_origins: Vec<String>,
    pub ssl_redirect: bool,
    pub hsts: Option<Hsts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hsts {
    pub max_age: Duration,
    pub include_subdomains: bool,
}

#[derive(Debug, Clone)]
pub struct Log {
    /// Directives for `tracing_subscriber::EnvFilter`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct Jwt {
    pub algorithm: Algorithm,
    pub access_lifetime: Duration,
    pub refresh_lifetime: Duration,
    pub accept_simplejwt_until: Option<DateTime<Utc>>,
}

/// The algorithm of a token's signature: an HMAC with this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    /// The least length of a key, in bytes: that of the hash (RFC 7518 §3.2).
    fn least_key_length(self) -> usize {
        match self {
            Self::Hs256 => 32,
            Self::Hs384 => 48,
            Self::Hs512 => 64,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Accounts {
    pub cookies: bool,
    pub privacy: Privacy,
    pub require_verified: Vec<NeedsVerified>,
    pub self_service_roles: Vec<SelfServiceRole>,
    pub directory_emails: DirectoryEmails,
    pub avatar_store: AvatarStore,
}

/// What the login of an unknown address answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// 404, as the original documents.
    Documented,
    /// The 401 of a wrong password.
    Strict,
}

/// What may need a verified address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedsVerified {
    SelfServiceRoles,
    Avatar,
    Profile,
    Login,
}

/// The roles that do no harm in the hands of whoever wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfServiceRole {
    Freelancer,
    Seller,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryEmails {
    Masked,
    Full,
}

/// Limits that are off are `None`.
#[derive(Debug, Clone)]
pub struct Limits {
    pub login: Option<Rate>,
    pub login_counts: LoginCounts,
    pub register: Option<Rate>,
    pub api: Option<Rate>,
    pub verification: Option<Rate>,
    pub exempt: Vec<IpNet>,
    pub trusted_proxies: Vec<IpNet>,
}

/// At most `count` in any window of the length `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginCounts {
    Failures,
    Attempts,
}

/// The cost of argon2id, and how much of it at once.
#[derive(Debug, Clone)]
pub struct Hashing {
    pub memory_kib: u32,
    pub iterations: u32,
    pub parallelism: u32,
    pub threads: usize,
    /// How many passwords may wait for a thread.
    pub queue: usize,
}

impl Hashing {
    pub const MAX_MEMORY_KIB: u32 = 256 * 1024;
    /// Memory in KiB × iterations: up to a second. No login may take the machine away.
    pub const MAX_WORK: u64 = 1024 * 1024;
    pub const MAX_PARALLELISM: u32 = 64;
}

/// Both keys of the service.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs tokens.
    pub signing: SecretKey,
    /// Keys codes, outbox and events.
    pub secret: SecretKey,
}

impl Keys {
    /// The key that signs events, as the text that their receiver is given. Its bytes are taken as they stand.
    pub fn of_events(&self) -> SecretString {
        hex::encode(self.secret.derive("events")).into()
    }
}

impl Config {
    /// The configuration from the process's environment and `.env` in the working directory, the environment winning.
    ///
    /// # Errors
    /// All mistakes, those in `.env` first.
    pub fn from_environment() -> Result<Self, ConfigErrors> {
        let (environment, mut mistakes) = Environment::read_what_can_be(Path::new(".env"));
        match Self::load(|name| environment.get(name)) {
            Ok(mut config) if mistakes.is_empty() => {
                config.warnings.extend(environment.misspelt());
                Ok(config)
            }
            Ok(_) => Err(ConfigErrors(mistakes)),
            Err(ConfigErrors(more)) => {
                mistakes.extend(more);
                Err(ConfigErrors(mistakes))
            }
        }
    }

    /// The configuration from `lookup`, which gives the text of a variable. A blank text counts as none.
    ///
    /// # Errors
    /// All mistakes, in the order of reading.
    pub fn load(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(lookup);
        let r = &mut reader;

        let debug = r.value(&variables::DEBUG, parse::boolean);
        let data_dir = PathBuf::from(r.value(&variables::DATA_DIR, parse::text));
        let server = server(r);
        let log = Log {
            level: r.value(&variables::LOG_LEVEL, parse::log_level),
            format: r.value(&variables::LOG_FORMAT, |text| {
                let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
                parse::one_of(&formats, text)
            }),
        };
        let database = database(r, &data_dir);
        let redis = redis(r);
        let jwt = jwt(r);
        // A broken PostgreSQL URL is meant to be one: what is wrong with the key is told in the same breath.
        let postgres = matches!(database.store, Store::Postgres { .. })
            || r.text(&variables::DATABASE_URL).is_some_and(|url| url.starts_with("postgres"));
        let signing_key = signing_key(r, jwt.algorithm, postgres, debug);
        let secret_key = secret_key(r);
        let mail = mail(r);
        let notification_service_url = r.optional(&variables::NOTIFICATION_SERVICE_URL, parse::http_url);
        let audit_retention = r.value(&variables::AUDIT_RETENTION, parse::retention);
        let accounts = accounts(r);
        let limits = limits(r);
        let http = http(r);
        let hashing = hashing(r, debug);
        let telemetry = telemetry(r);
        let superuser_password = r.secret(&variables::SUPERUSER_PASSWORD);
        if postgres && !debug && http.allowed_hosts == AllowedHosts::Any && server.public_url.is_none() {
            r.warn("neither ALLOWED_HOSTS nor PUBLIC_URL is set: links in answers name whatever host the client names");
        }

        if !reader.mistakes.is_empty() {
            return Err(ConfigErrors(reader.mistakes));
        }
        let Reader { warnings, mut settings, .. } = reader;
        settings.sort_by_key(|setting| VARIABLES.iter().position(|variable| variable == setting.variable));
        Ok(Self {
            debug,
            data_dir,
            server,
            http,
            log,
            jwt,
            database,
            redis,
            mail,
            notification_service_url,
            audit_retention,
            accounts,
            limits,
            hashing,
            telemetry,
            superuser_password,
            warnings,
            signing_key,
            secret_key,
            settings,
        })
    }

    /// The keys in force. Where no signing key is set, the one kept in `DATA_DIR/jwt.key` is read, or made.
    ///
    /// # Errors
    /// That file can't be read or made, or doesn't hold a key.
    pub fn keys(&self) -> Result<Keys, ConfigErrors> {
        let signing = match &self.signing_key {
            Some(secret) => secret.into(),
            None => key::stored_or_made(&self.key_path()).map_err(|e| self.no_key(&e))?,
        };
        let secret = match &self.secret_key {
            Some(secret) => secret.into(),
            None => SecretKey::new(signing.derive("SECRET_KEY")),
        };
        Ok(Keys { signing, secret })
    }

    /// Every variable with what holds for it, in the order of [`VARIABLES`], for an operator's eyes: keys as
    /// fingerprints, URLs without passwords.
    ///
    /// # Errors
    /// The file with the signing key is there, but unusable.
    pub fn describe(&self) -> Result<Vec<Setting>, ConfigErrors> {
        let mut settings = self.settings.clone();
        for setting in &mut settings {
            if *setting.variable == variables::JWT_SECRET_KEY && self.signing_key.is_none() {
                let path = self.key_path();
                setting.value = match key::stored(&path).map_err(|e| self.no_key(&e))? {
                    Some(key) => format!("sha256 {} (kept in {})", key.fingerprint(), path.display()),
                    None => format!("(a random key, made by the first start in {})", path.display()),
                };
            }
        }
        Ok(settings)
    }

    /// Whether `peer` is a proxy whose `X-Forwarded-For` is believed.
    pub fn trusts_proxy(&self, peer: IpAddr) -> bool {
        // A listener on `[::]` sees IPv4 peers as `::ffff:10.0.0.1`.
        let peer = peer.to_canonical();
        self.limits.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    fn key_path(&self) -> PathBuf {
        self.data_dir.join("jwt.key")
    }

    fn no_key(&self, error: &io::Error) -> ConfigErrors {
        ConfigErrors(vec![Mistake {
            name: variables::DATA_DIR.name.into(),
            wrong: format!("the signing key can't be kept in {} ({error})", self.key_path().display()),
            right: format!("{}, or JWT_SECRET_KEY set", variables::DATA_DIR.form),
        }])
    }
}

fn server(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Server {
    let listen_addr = r.value(&variables::LISTEN_ADDR, parse::socket_address);
    let grpc_addr = r.optional(&variables::GRPC_ADDR, parse::socket_address);
    if grpc_addr == Some(listen_addr) {
        r.mistake(&variables::GRPC_ADDR, "it is the address of LISTEN_ADDR, which serves gRPC already");
    }
    let public_url = r.optional(&variables::PUBLIC_URL, parse::http_url);
    Server {
        listen_addr,
        grpc_addr,
        public_url: public_url.map(|url| url.as_str().trim_end_matches('/').to_owned()),
        reflection: r.value(&variables::REFLECTION, parse::boolean),
    }
}

fn jwt(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Jwt {
    const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;
    let lifetime = |text: &str| parse::seconds(text, &(1..=TEN_YEARS));
    let algorithm = r.value(&variables::JWT_ALGORITHM, |text| match text.to_ascii_uppercase().as_str() {
        "HS256" => Ok(Algorithm::Hs256),
        "HS384" => Ok(Algorithm::Hs384),
        "HS512" => Ok(Algorithm::Hs512),
        "RS256" | "ES256" | "EDDSA" => Err("comes with a later release".into()),
        _ => Err("is unknown".into()),
    });
    let access_lifetime = r.value(&variables::JWT_EXPIRATION_DELTA, lifetime);
    let refresh_lifetime = r.value(&variables::JWT_REFRESH_EXPIRATION_DELTA, lifetime);
    if refresh_lifetime < access_lifetime {
        let (refresh, access) = (refresh_lifetime.as_secs(), access_lifetime.as_secs());
        r.mistake(
            &variables::JWT_REFRESH_EXPIRATION_DELTA,
            format!("\"{refresh}\" is less than JWT_EXPIRATION_DELTA, which is {access}"),
        );
    }
    let accept_simplejwt_until = r.optional(&variables::ACCEPT_SIMPLEJWT_UNTIL, parse::time);
    Jwt { algorithm, access_lifetime, refresh_lifetime, accept_simplejwt_until }
}

/// The signing key, if one is set. A weak one is a mistake with PostgreSQL, where others rely on it; on a developer's
/// machine it is a warning.
fn signing_key(
    r: &mut Reader<impl Fn(&str) -> Option<String>>,
    algorithm: Algorithm,
    postgres: bool,
    debug: bool,
) -> Option<SecretString> {
    let secret = r.secret(&variables::JWT_SECRET_KEY);
    let least = algorithm.least_key_length();
    let flaw = match secret.as_ref().map(ExposeSecret::expose_secret) {
        Some(text) if key::is_documented_example(text) => {
            "it is an example from the documentation, known to all".into()
        }
        Some(text) if text.len() < least => {
            format!("it has {} bytes, fewer than the {least} that JWT_ALGORITHM needs", text.len())
        }
        None if postgres && debug => "it is not set: every replica makes a key of its own in its DATA_DIR".into(),
        None if postgres => "it is not set; with PostgreSQL it must be, unless DEBUG is true".into(),
        Some(_) | None => return secret,
    };
    if postgres && !debug {
        r.mistake(&variables::JWT_SECRET_KEY, flaw);
    } else {
        r.warn(format!("JWT_SECRET_KEY: {flaw}"));
    }
    secret
}

/// The key of codes, outbox and events, if a real one is set. An example from the documentation is nobody's secret: it
/// counts as unset, and the key is derived.
fn secret_key(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Option<SecretString> {
    let secret = r.secret(&variables::SECRET_KEY)?;
    let text = secret.expose_secret();
    if key::is_documented_example(text) {
        r.warn(
            "SECRET_KEY: it is an example from the documentation, and ignored for a key derived from the signing key",
        );
        r.settings.retain(|setting| *setting.variable != variables::SECRET_KEY);
        let value = "(an example: ignored; derived from the signing key)".into();
        r.settings.push(Setting { variable: &variables::SECRET_KEY, value, is_set: true });
        return None;
    }
    if text.len() < key::MIN_BYTES {
        r.warn(format!("SECRET_KEY: it has {} bytes; {} or more are hard to guess", text.len(), key::MIN_BYTES));
    }
    Some(secret)
}

fn accounts(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Accounts {
    let privacies = [("documented", Privacy::Documented), ("strict", Privacy::Strict)];
    let needs = [
        ("self_service_roles", NeedsVerified::SelfServiceRoles),
        ("avatar", NeedsVerified::Avatar),
        ("profile", NeedsVerified::Profile),
        ("login", NeedsVerified::Login),
    ];
    let roles = [("freelancer", SelfServiceRole::Freelancer), ("seller", SelfServiceRole::Seller)];
    let emails = [("masked", DirectoryEmails::Masked), ("full", DirectoryEmails::Full)];
    Accounts {
        cookies: r.value(&variables::AUTH_COOKIES, parse::boolean),
        privacy: r.value(&variables::AUTH_PRIVACY, |text| parse::one_of(&privacies, text)),
        require_verified: r.value(&variables::REQUIRE_VERIFIED, |text| parse::some_of(&needs, text)),
        self_service_roles: r.value(&variables::SELF_SERVICE_ROLES, |text| parse::some_of(&roles, text)),
        directory_emails: r.value(&variables::DIRECTORY_EMAILS, |text| parse::one_of(&emails, text)),
        avatar_store: avatar_store(r),
    }
}

fn limits(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Limits {
    let counts = [("failures", LoginCounts::Failures), ("attempts", LoginCounts::Attempts)];
    let limits = Limits {
        login: r.value(&variables::RATE_LIMIT_LOGIN, parse::rate),
        login_counts: r.value(&variables::RATE_LIMIT_LOGIN_COUNTS, |text| parse::one_of(&counts, text)),
        register: r.value(&variables::RATE_LIMIT_REGISTER, parse::rate),
        api: r.value(&variables::RATE_LIMIT_API, parse::rate),
        verification: r.value(&variables::RATE_LIMIT_VERIFICATION, parse::rate),
        exempt: r.optional(&variables::RATE_LIMIT_EXEMPT, parse::networks).unwrap_or_default(),
        trusted_proxies: r.optional(&variables::TRUSTED_PROXIES, parse::networks).unwrap_or_default(),
    };
    if limits.trusted_proxies.iter().any(|net| net.prefix_len() == 0) {
        r.warn("TRUSTED_PROXIES holds the whole internet: any client may claim any address, and so slip every limit");
    }
    limits
}

fn http(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Http {
    let allowed_hosts = r.optional(&variables::ALLOWED_HOSTS, AllowedHosts::parse).unwrap_or(AllowedHosts::Any);
    let origins = r.optional(&variables::CORS_ALLOWED_ORIGINS, |text| parse::list(text, parse::origin));
    let ssl_redirect = r.value(&variables::SECURE_SSL_REDIRECT, parse::boolean);
    let max_age = r.value(&variables::SECURE_HSTS_SECONDS, |text| parse::seconds(text, &(0..=u64::from(u32::MAX))));
    let include_subdomains = r.value(&variables::SECURE_HSTS_INCLUDE_SUBDOMAINS, parse::boolean);
    let hsts = (!max_age.is_zero()).then_some(Hsts { max_age, include_subdomains });
    Http { allowed_hosts, cors_allowed_origins: origins.unwrap_or_default(), ssl_redirect, hsts }
}

fn hashing(r: &mut Reader<impl Fn(&str) -> Option<String>>, debug: bool) -> Hashing {
    /// OWASP's recommendation (Password Storage Cheat Sheet), in KiB and passes.
    const LEAST: (u32, u32) = (19_456, 2);
    /// At 15 ms a hash the last of them waits for about a second.
    const QUEUE_PER_THREAD: usize = 64;
    let parallelism = r.number(&variables::ARGON2_PARALLELISM, 1..=Hashing::MAX_PARALLELISM);
    // Cheaper only where nothing is at stake; argon2 itself wants 8 KiB a lane.
    let (least_memory, least_iterations) = if debug { (8 * parallelism, 1) } else { LEAST };
    let memory_kib = r.number(&variables::ARGON2_MEMORY_KIB, least_memory..=Hashing::MAX_MEMORY_KIB);
    let iterations = r.number(&variables::ARGON2_ITERATIONS, least_iterations..=100);
    if u64::from(memory_kib) * u64::from(iterations) > Hashing::MAX_WORK {
        let wrong = format!("is too many: times ARGON2_MEMORY_KIB it must be at most {}", Hashing::MAX_WORK);
        r.mistake(&variables::ARGON2_ITERATIONS, wrong);
    }
    let cheap: Vec<_> = [("ARGON2_MEMORY_KIB", memory_kib < LEAST.0), ("ARGON2_ITERATIONS", iterations < LEAST.1)]
        .into_iter()
        .filter_map(|(name, is_cheap)| is_cheap.then_some(name))
        .collect();
    if !cheap.is_empty() {
        let names = cheap.join(", ");
        r.warn(format!("{names}: cheaper than DEBUG=false allows, and a stolen hash is cheaper to guess"));
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = r.value_or(&variables::HASH_THREADS, cores, |text| parse::number(text, &(1..=1024)));
    let queue =
        r.value_or(&variables::HASH_QUEUE, QUEUE_PER_THREAD * threads, |text| parse::number(text, &(1..=1_000_000)));
    Hashing { memory_kib, iterations, parallelism, threads, queue }
}
