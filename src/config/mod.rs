//! Every setting of the service, checked before anything starts.
//!
//! [`Config::from_environment`] reads the process's environment and `.env`; [`Config::load`] reads whatever function it
//! is given and touches nothing else. Both report all mistakes at once. What each variable means stands in [`VARIABLES`].

mod avatars;
mod database;
mod environment;
mod hosts;
mod http;
mod jwt;
mod key;
mod mail;
mod parse;
mod read;
mod redis;
mod server;
mod telemetry;
mod tls;
mod variables;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use avatars::avatar_store;
pub use avatars::{AvatarFolder, AvatarStore, Bucket, Credentials};
use database::database;
pub use database::{Database, Store};
pub use environment::Environment;
pub use hosts::AllowedHosts;
use http::http;
pub use http::{Hsts, Http};
pub use jwt::Jwt;
use jwt::{SigningKeys, jwt, secret_key, signing_keys};
pub use key::SecretKey;
use mail::mail;
pub use mail::{Mail, MailTransport, Smtp, SmtpTls};
use read::Reader;
pub use read::{ConfigErrors, Mistake, Setting};
pub use redis::Redis;
use redis::redis;
pub use server::Server;
use server::server;
use telemetry::telemetry;
pub use telemetry::{Telemetry, Traces};
use tls::tls;
pub use tls::{ClientAuth, Tls, TlsFile};
pub use variables::{Fallback, Shown, VARIABLES, Variable};

use crate::jws::{self, Algorithm, Flaw, KeySet};

/// Variables that are checked and kept, but not acted upon yet. Setting one to something that matters is a warning: an
/// operator mustn't believe that it works.
pub const NOT_YET: &[&str] = &[];

/// The configuration in force. Its `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    pub debug: bool,
    pub data_dir: PathBuf,
    pub server: Server,
    /// The certificate of the listeners, if they speak TLS.
    pub tls: Option<Tls>,
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
    signing_keys: SigningKeys,
    secret_key: Option<SecretString>,
    settings: Vec<Setting>,
}

#[derive(Debug, Clone)]
pub struct Log {
    /// Directives for `tracing_subscriber::filter::Targets`.
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

/// The keys of the service.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Sign and verify tokens.
    pub tokens: KeySet,
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
        let tls = tls(r);
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
        let signing_keys = signing_keys(r, jwt.algorithm, postgres, debug);
        let secret_key = secret_key(r, !signing_keys.others.is_empty());
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
        if http.ssl_redirect && tls.is_none() && limits.trusted_proxies.is_empty() {
            r.warn(
                "SECURE_SSL_REDIRECT is true, but there is no TLS_CERT_FILE, and TRUSTED_PROXIES names no proxy that could say \
                 that it speaks TLS: whoever comes is sent away",
            );
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
            tls,
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
            signing_keys,
            secret_key,
            settings,
        })
    }

    /// The keys in force. Where no signing key is set, the one kept in `DATA_DIR` is read, or made.
    ///
    /// # Errors
    /// That file can't be read or made, or doesn't hold a key.
    pub fn keys(&self) -> Result<Keys, ConfigErrors> {
        let signing = self.signing_key()?;
        let flawed = |Flaw(wrong): Flaw| self.no_key(&io::Error::new(io::ErrorKind::InvalidData, wrong));
        let key = jws::Key::read(self.jwt.algorithm, signing.expose_secret()).map_err(flawed)?;
        let tokens = KeySet::new(key, self.signing_keys.others.clone()).map_err(flawed)?;
        Ok(Keys { tokens, secret: (&self.secret_key()?).into() })
    }

    /// The text of `SECRET_KEY` that is in force: what to set it to before the signing key changes.
    ///
    /// # Errors
    /// As for [`Config::keys`].
    pub fn secret_key(&self) -> Result<SecretString, ConfigErrors> {
        match &self.secret_key {
            Some(secret) => Ok(secret.clone()),
            None => Ok(key::derived_secret(&self.signing_key()?)),
        }
    }

    /// Every variable with what holds for it, in the order of [`VARIABLES`], for an operator's eyes: keys as
    /// fingerprints, URLs without passwords.
    ///
    /// # Errors
    /// The file with the signing key is there, but unusable.
    pub fn describe(&self) -> Result<Vec<Setting>, ConfigErrors> {
        let mut settings = self.settings.clone();
        for setting in &mut settings {
            if *setting.variable == variables::JWT_SECRET_KEY && self.signing_keys.signing.is_none() {
                let path = self.key_path();
                setting.value = match key::stored(&path).map_err(|e| self.no_key(&e))? {
                    Some(key) => {
                        let fingerprint = key::fingerprint(key.expose_secret().as_bytes());
                        format!("sha256 {fingerprint} (kept in {})", path.display())
                    }
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

    /// The text of the key that signs.
    fn signing_key(&self) -> Result<SecretString, ConfigErrors> {
        match &self.signing_keys.signing {
            Some(secret) => Ok(secret.clone()),
            None => key::stored_or_made(&self.key_path(), || jws::Key::generate(self.jwt.algorithm))
                .map_err(|e| self.no_key(&e)),
        }
    }

    fn key_path(&self) -> PathBuf {
        self.data_dir.join(match self.jwt.algorithm {
            shared if shared.least_secret().is_some() => "jwt.key",
            Algorithm::Rs256 => "jwt.rs256.pem",
            Algorithm::Es256 => "jwt.es256.pem",
            _ => "jwt.eddsa.pem",
        })
    }

    fn no_key(&self, error: &io::Error) -> ConfigErrors {
        ConfigErrors(vec![Mistake {
            name: variables::DATA_DIR.name.into(),
            wrong: format!("the signing key can't be kept in {} ({error})", self.key_path().display()),
            right: format!("{}, or JWT_SECRET_KEY set", variables::DATA_DIR.form),
        }])
    }
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
