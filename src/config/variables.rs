//! The table of variables. A row is the only place that holds a variable's name, default, form and meaning: the reader,
//! `identity config`, the messages about mistakes and the check of the documentation all take them from here.

/// One environment variable of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    /// The heading under which it is listed.
    pub group: &'static str,
    pub default: Fallback,
    /// What a right value looks like, with its unit: it follows the word "expected".
    pub form: &'static str,
    /// What it does, in a line or two.
    pub help: &'static str,
    pub shown: Shown,
}

/// What holds where a variable is unset or blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, as if it had been set.
    Value(&'static str),
    /// Something that isn't a fixed value; described here.
    Described(&'static str),
}

impl Fallback {
    /// For a reader of the documentation.
    pub fn text(self) -> &'static str {
        match self {
            Self::Value(text) | Self::Described(text) => text,
        }
    }
}

/// How much of a value an operator gets to see. Nothing but `Plain` is ever quoted in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Plain,
    /// A URL, without user, password and query.
    Place,
    /// A key, as its fingerprint: two services that must share it can compare.
    Fingerprint,
    /// A password, only as "set": people choose those, so even a fingerprint would let one guess.
    Hidden,
}

/// `/// help`, then `NAME = "value"` or `NAME => "what happens without it"`, then the form and how it is shown.
macro_rules! variables {
    ($($group:literal { $($(#[doc = $help:literal])+ $name:ident $sign:tt $default:literal, $form:literal, $shown:ident;)+ })+) => {
        $($($(#[doc = $help])+ pub(super) const $name: Variable = Variable {
            name: stringify!($name),
            group: $group,
            default: variables!(@default $sign $default),
            form: $form,
            help: concat!($($help),+).trim_ascii(),
            shown: Shown::$shown,
        };)+)+

        /// Every variable that the service reads, in the order in which they are explained.
        pub const VARIABLES: &[Variable] = &[$($($name),+),+];
    };
    (@default = $value:literal) => { Fallback::Value($value) };
    (@default => $described:literal) => { Fallback::Described($described) };
}

variables! {
    "Service" {
        /// A developer's machine: weak keys and cheap hashes are allowed, with a warning.
        DEBUG = "false", "true or false", Plain;
        /// What the service keeps on disk: the SQLite database and the random signing key.
        DATA_DIR = "./data", "a folder that the service may write to", Plain;
        /// The listener that serves REST, gRPC and gRPC-Web.
        LISTEN_ADDR = "0.0.0.0:8000", "an IP address and a port, like 0.0.0.0:8000", Plain;
        /// A second listener, for gRPC only.
        GRPC_ADDR => "none", "an IP address and a port, like 0.0.0.0:9000", Plain;
        /// Connections at once, on all listeners. More wait until one ends.
        MAX_CONNECTIONS = "10000", "a number of connections; allow the process some more open files than that", Plain;
        /// Connections of one client at once: of an address, or with IPv6 of a /64. More are closed. Proxies in `TRUSTED_PROXIES` and
        /// gateways in `RATE_LIMIT_EXEMPT` may have any number.
        MAX_CONNECTIONS_PER_CLIENT = "512", "a number of connections", Plain;
        /// Scheme and host of the links in answers: those between pages, and those to pictures.
        PUBLIC_URL => "as the client sees it", "an http or https URL, like https://users.example.com", Plain;
        /// Whether gRPC clients may ask for the protos.
        REFLECTION = "true", "true or false", Plain;
        /// What is logged: a level, or levels by module.
        LOG_LEVEL = "info", "off, error, warn, info, debug or trace, also by module, like info,sqlx=warn", Plain;
        /// How it is logged. `auto`: text on a terminal, JSON elsewhere.
        LOG_FORMAT = "auto", "auto, text or json", Plain;
    }
    "TLS" {
        /// The certificate of the listeners, with those between it and its authority behind it. Set, they speak TLS, and nothing else.
        TLS_CERT_FILE => "none: no TLS", "a file of certificates in PEM, with TLS_KEY_FILE", Plain;
        /// Its private key.
        TLS_KEY_FILE => "none", "a file with a private key in PEM, not encrypted, with TLS_CERT_FILE", Plain;
        /// The authorities whose certificates callers may show.
        TLS_CLIENT_CA_FILE => "none: nobody is asked for a certificate", "a file of certificates in PEM", Plain;
        /// Whether callers must show one.
        TLS_CLIENT_AUTH = "optional", "optional or required", Plain;
    }
    "Keys and tokens" {
        /// Signs the tokens. A shared secret's bytes are taken as they stand, as SimpleJWT takes them.
        JWT_SECRET_KEY => "a random key, kept in DATA_DIR; required with PostgreSQL",
            "a secret of at least 32 bytes or, for RS256, ES256 and EdDSA, a private key as PEM, the same for all replicas (make one: identity keys generate)", Fingerprint;
        /// The algorithm of the signatures. HS384 wants a key of 48 bytes, HS512 of 64. The public halves of the others are at
        /// /.well-known/jwks.json.
        JWT_ALGORITHM = "HS256", "HS256, HS384, HS512, RS256, ES256 or EdDSA", Plain;
        /// A key that verifies already, so that all replicas know it before one signs by it.
        JWT_NEXT_KEY => "none", "a key as for JWT_SECRET_KEY; a public key is enough", Fingerprint;
        /// Its algorithm.
        JWT_NEXT_ALGORITHM => "that of JWT_ALGORITHM", "HS256, HS384, HS512, RS256, ES256 or EdDSA", Plain;
        /// The key that signed before: its tokens are good until they run out.
        JWT_PREVIOUS_KEY => "none", "a key as for JWT_SECRET_KEY; a public key is enough", Fingerprint;
        /// Its algorithm.
        JWT_PREVIOUS_ALGORITHM => "that of JWT_ALGORITHM", "HS256, HS384, HS512, RS256, ES256 or EdDSA", Plain;
        /// Lifetime of an access token, in seconds.
        JWT_EXPIRATION_DELTA = "3600", "a number of seconds", Plain;
        /// Lifetime of a refresh token, in seconds.
        JWT_REFRESH_EXPIRATION_DELTA = "604800", "a number of seconds, no less than JWT_EXPIRATION_DELTA", Plain;
        /// Until when tokens without a session, made by the Django service, are taken.
        ACCEPT_SIMPLEJWT_UNTIL => "never", "a time as in RFC 3339, like 2027-01-31T00:00:00Z", Plain;
        /// Keys what is derived from it: refresh tokens, the hashes of verification codes, the seal of the outbox and of page
        /// tokens, the signatures of events, and the counters of limits. Another one ends all sessions.
        SECRET_KEY => "derived from the signing key", "a secret of at least 32 bytes", Fingerprint;
    }
    "Database" {
        /// The database. It outranks the POSTGRES variables.
        DATABASE_URL => "SQLite in DATA_DIR/identity.db, or PostgreSQL where POSTGRES_HOST is set",
            "sqlite:path/to/file.db or postgres://user:password@host:5432/name", Place;
        /// A replica of that PostgreSQL, for lists of users. It is read once it has all that was committed before the call.
        DATABASE_READ_URL => "none: lists are read where all else is",
            "postgres://user:password@host:5432/name, with PostgreSQL as the database", Place;
        /// The PostgreSQL server. Set, it takes the place of SQLite.
        POSTGRES_HOST => "none: SQLite", "a host name, an IP address or the folder of a socket", Plain;
        /// Its port.
        POSTGRES_PORT = "5432", "a port from 1 to 65535", Plain;
        /// The database there.
        POSTGRES_DB = "user_service_db", "the name of a database", Plain;
        /// The user to log in as.
        POSTGRES_USER = "postgres", "the name of a database user", Plain;
        /// The user's password.
        POSTGRES_PASSWORD => "none", "a password", Hidden;
        /// After how many seconds a connection is closed, once it is free.
        POSTGRES_CONN_MAX_AGE = "600", "a number of seconds", Plain;
        /// How many connections to the database each replica opens at most. SQLite gets up to 4 to read, and one to write.
        DATABASE_MAX_CONNECTIONS = "16", "a number of connections", Plain;
        /// Whether `serve` brings the schema up to date first.
        AUTO_MIGRATE = "true", "true or false", Plain;
    }
    "Redis" {
        /// The Redis through which replicas count together, share what they show of users, and tell each other of changes. It outranks
        /// `REDIS_HOST`.
        REDIS_URL => "none: each replica counts and reads by itself",
            "a URL of redis, rediss, redis-sentinel or redis-cluster, like redis://redis:6379/1", Place;
        /// The Redis server, where there is no `REDIS_URL`.
        REDIS_HOST => "none", "a host name or an IP address", Plain;
        /// Its port.
        REDIS_PORT = "6379", "a port from 1 to 65535", Plain;
        /// What the names of all keys there begin with, before a colon. Installations that share a Redis each need their own.
        REDIS_PREFIX = "identity", "up to 64 letters, digits, dots, dashes and underscores", Plain;
        /// For how many milliseconds a call waits for an answer, and then does without.
        REDIS_TIMEOUT_MS = "50", "a number of milliseconds up to 1000", Plain;
    }
    "Mail and events" {
        /// Where mail goes. Django's dotted names for these are taken as well.
        EMAIL_BACKEND => "smtp where EMAIL_HOST is set, else console", "smtp, console or file", Plain;
        /// The mail server.
        EMAIL_HOST => "localhost with EMAIL_BACKEND=smtp", "a host name or an IP address", Plain;
        /// Its port.
        EMAIL_PORT => "587 with EMAIL_USE_TLS, else 25", "a port from 1 to 65535", Plain;
        /// Whether to go over to TLS (STARTTLS) before anything is sent. On port 465 TLS comes first, whatever this says.
        EMAIL_USE_TLS = "false", "true or false", Plain;
        /// The user to log in as at the mail server.
        EMAIL_HOST_USER => "no login", "a user name", Plain;
        /// That user's password.
        EMAIL_HOST_PASSWORD => "none", "a password", Hidden;
        /// Where `EMAIL_BACKEND=file` writes, one `.eml` a message.
        EMAIL_FILE_PATH => "none; required with EMAIL_BACKEND=file", "a folder that the service may write to", Plain;
        /// The sender of the mails.
        DEFAULT_FROM_EMAIL = "webmaster@localhost", "an address, like Users <users@example.com>", Plain;
        /// Receives signed JSON events about users.
        NOTIFICATION_SERVICE_URL => "none: no events", "an http or https URL, like http://notification-service:8001", Plain;
    }
    "Accounts" {
        /// Whether tokens are given in cookies, too, and taken from them.
        AUTH_COOKIES = "false", "true or false", Plain;
        /// What the login of an unknown address answers: 404 as documented, or with `strict` the 401 of a wrong password.
        AUTH_PRIVACY = "documented", "documented or strict", Plain;
        /// What needs a verified address. Registration gives tokens all the same, since it takes one to ask for a code:
        /// `login` concerns logins only.
        REQUIRE_VERIFIED = "self_service_roles", "none, or a list of self_service_roles, avatar, profile and login", Plain;
        /// The roles that users may give themselves.
        SELF_SERVICE_ROLES = "freelancer,seller", "none, or a list of freelancer and seller", Plain;
        /// Whether ordinary users see others' addresses masked or in full.
        DIRECTORY_EMAILS = "masked", "masked or full", Plain;
        /// How long the audit trail is kept. `off` keeps it for good.
        AUDIT_RETENTION = "365d", "off, or a time of a day or more (h, d), like 365d", Plain;
        /// What `createsuperuser` takes instead of asking.
        SUPERUSER_PASSWORD => "none: it is asked for", "a password", Hidden;
    }
    "Avatars" {
        /// Where avatars are kept: in the database, in a folder, or in a bucket of S3. A folder or prefix belongs to one
        /// installation: pictures in it that no profile of its database names are removed.
        AVATAR_STORE = "db", "db, file:///path/to/folder or s3://bucket/prefix", Plain;
        /// The region of the bucket.
        AWS_REGION => "required with a bucket of AWS, else us-east-1", "the name of a region, like eu-central-1", Plain;
        /// A server that speaks S3's protocol, in place of that of AWS. The bucket is named in the path.
        AWS_ENDPOINT_URL => "that of AWS", "an http or https URL, like http://minio:9000", Plain;
        /// The key to the bucket. Without it the role counts that the platform gives.
        AWS_ACCESS_KEY_ID => "none: a role", "the id of a key", Plain;
        /// That key's secret.
        AWS_SECRET_ACCESS_KEY => "none", "a secret; needed with AWS_ACCESS_KEY_ID", Hidden;
        /// What belongs to a key that is valid for a while only.
        AWS_SESSION_TOKEN => "none", "a token", Hidden;
        /// The role to take on with `AWS_WEB_IDENTITY_TOKEN_FILE`.
        AWS_ROLE_ARN => "none", "the name of a role, like arn:aws:iam::123456789012:role/identity", Plain;
        /// Proves to be a workload with that role, as Kubernetes of AWS sets it.
        AWS_WEB_IDENTITY_TOKEN_FILE => "none", "a file", Plain;
        /// Where a task of ECS gets its keys.
        AWS_CONTAINER_CREDENTIALS_RELATIVE_URI => "none", "a path", Plain;
        /// Where a pod of EKS gets its keys. Without any of these it is the role of the machine.
        AWS_CONTAINER_CREDENTIALS_FULL_URI => "none", "a URL", Place;
        /// What the pod shows there.
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE => "none", "a file", Plain;
    }
    "Limits" {
        /// Failed logins per address and client. In the same time a client may fail 50 times over all addresses; in a day,
        /// clients that never logged in with an address may fail 100 times with it. A higher count raises both.
        RATE_LIMIT_LOGIN = "5/15m", "off, or a count and a time (s, m, h, d), like 5/15m", Plain;
        /// Whether a successful login counts as well.
        RATE_LIMIT_LOGIN_COUNTS = "failures", "failures or attempts", Plain;
        /// Registrations per client.
        RATE_LIMIT_REGISTER = "3/1h", "off, or a count and a time (s, m, h, d), like 3/1h", Plain;
        /// Calls per user, or per client where anonymous.
        RATE_LIMIT_API = "1000/1m", "off, or a count and a time (s, m, h, d), like 1000/1m", Plain;
        /// Verification mails that a user may ask for. `off` leaves 10 a day.
        RATE_LIMIT_VERIFICATION = "1/1m", "off, or a count and a time (s, m, h, d), like 1/1m", Plain;
        /// Gateways, free from the limits per client.
        RATE_LIMIT_EXEMPT => "none", "a list of addresses and networks, like 10.0.0.0/8,192.168.1.7", Plain;
        /// Proxies whose X-Forwarded-For is believed.
        TRUSTED_PROXIES => "none", "a list of addresses and networks, like 10.0.0.0/8,192.168.1.7", Plain;
    }
    "HTTP" {
        /// The host names that the service goes by. Calls to others get 400.
        ALLOWED_HOSTS => "any", "a list of host names; .example.com includes subdomains, * is any", Plain;
        /// The origins, other than its own, whose pages may call the service.
        CORS_ALLOWED_ORIGINS => "none", "a list of origins, like https://example.com,http://localhost:3000", Plain;
        /// Whether calls over plain HTTP are sent to HTTPS; in gRPC they are refused.
        SECURE_SSL_REDIRECT = "false", "true or false", Plain;
        /// For how many seconds browsers are told to insist on HTTPS; 0 doesn't tell them.
        SECURE_HSTS_SECONDS = "0", "a number of seconds", Plain;
        /// Whether that holds for subdomains, too.
        SECURE_HSTS_INCLUDE_SUBDOMAINS = "false", "true or false", Plain;
    }
    "Password hashing" {
        /// Memory of one argon2id hash, in KiB.
        ARGON2_MEMORY_KIB = "19456", "a number of KiB, no less than 19456", Plain;
        /// Passes over that memory.
        ARGON2_ITERATIONS = "2", "a number of passes, no less than 2", Plain;
        /// Lanes of that memory.
        ARGON2_PARALLELISM = "1", "a number of lanes", Plain;
        /// Threads that hash.
        HASH_THREADS => "one for each core", "a number of threads", Plain;
        /// Passwords that may wait for a thread; beyond it logins get 503.
        HASH_QUEUE => "64 for each thread", "a number of passwords", Plain;
    }
    "Metrics and traces" {
        /// Who may read `/metrics`: peers at these addresses, if no proxy sends them. To others there is no such path.
        METRICS_FROM = "127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7,fe80::/10", "off, or a list of addresses and networks, like 10.0.0.0/8,192.168.1.7", Plain;
        /// The collector that spans are sent to, by OTLP over gRPC.
        OTEL_EXPORTER_OTLP_ENDPOINT => "none: no traces", "an http URL, like http://otel-collector:4317", Place;
        /// What the service is called in traces.
        OTEL_SERVICE_NAME = "identity", "a name", Plain;
        /// Which part of the calls is traced, of those that don't come with a trace of their caller's, which decides itself.
        OTEL_TRACES_SAMPLER_ARG = "1", "a number from 0 to 1, like 0.1", Plain;
    }
}
