//! Which database: from `DATABASE_URL`, from the POSTGRES variables, or SQLite.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

use super::{
    parse::{self, Wrong},
    read::Reader,
    variables,
};

#[derive(Debug, Clone)]
pub struct Database {
    pub store: Store,
    /// A replica of PostgreSQL, for lists.
    pub read_url: Option<SecretString>,
    pub max_connections: u32,
    /// The age at which a connection is closed.
    pub connection_max_age: Duration,
    pub auto_migrate: bool,
}

/// Where the data is. Its `Display` says so without the password.
#[derive(Debug, Clone)]
pub enum Store {
    Sqlite { path: PathBuf },
    Postgres { url: SecretString, place: String },
}

pub(super) fn database(r: &mut Reader<impl Fn(&str) -> Option<String>>, data_dir: &Path) -> Database {
    let url = r.optional(&variables::DATABASE_URL, store);
    let host = r.optional(&variables::POSTGRES_HOST, parse::database_host);
    let port = r.value(&variables::POSTGRES_PORT, parse::port);
    let name = r.value(&variables::POSTGRES_DB, parse::text);
    let user = r.value(&variables::POSTGRES_USER, parse::text);
    let password = r.secret(&variables::POSTGRES_PASSWORD);

    let parts = [
        &variables::POSTGRES_HOST,
        &variables::POSTGRES_PORT,
        &variables::POSTGRES_DB,
        &variables::POSTGRES_USER,
        &variables::POSTGRES_PASSWORD,
    ];
    let idle = r.set_among(&parts);
    let store = match (url, host) {
        (Some(store), _) => {
            if let Some(idle) = idle {
                r.warn(format!("DATABASE_URL is set and outranks {idle}"));
            }
            store
        }
        (None, Some(host)) => Store::postgres(&host, port, &name, &user, password.as_ref()),
        (None, None) => {
            if let Some(idle) = idle {
                r.warn(format!("POSTGRES_HOST is not set: SQLite it is, and nothing comes of {idle}"));
            }
            Store::Sqlite { path: data_dir.join("identity.db") }
        }
    };
    let replica = r.optional(&variables::DATABASE_READ_URL, |text| match self::store(text)? {
        Store::Postgres { url, .. } => Ok(url),
        Store::Sqlite { .. } => Err("is not a PostgreSQL URL".into()),
    });
    if replica.is_some() && matches!(store, Store::Sqlite { .. }) {
        r.mistake(&variables::DATABASE_READ_URL, "it is set, though the database is SQLite");
    }
    let max_connections = r.number(&variables::DATABASE_MAX_CONNECTIONS, 1..=1000);
    let is_sqlite = matches!(store, Store::Sqlite { .. });
    // The default is meant for PostgreSQL.
    if is_sqlite && r.is_set(&variables::DATABASE_MAX_CONNECTIONS) && max_connections > SQLITE_READERS {
        r.warn(format!(
            "DATABASE_MAX_CONNECTIONS: SQLite is read over {SQLITE_READERS} connections at most, and written over one"
        ));
    }
    Database {
        store,
        read_url: replica,
        connection_max_age: r.value(&variables::POSTGRES_CONN_MAX_AGE, |text| parse::seconds(text, &(1..=86_400))),
        max_connections,
        auto_migrate: r.value(&variables::AUTO_MIGRATE, parse::boolean),
    }
}

/// The number in `db.rs`, which lies above; a test holds them together.
const SQLITE_READERS: u32 = 4;

/// The store that a `DATABASE_URL` names.
fn store(text: &str) -> Result<Store, Wrong> {
    if text.starts_with("postgres:") || text.starts_with("postgresql:") {
        let options = PgConnectOptions::from_str(text).map_err(|_| "is not a PostgreSQL URL")?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err("names no database".into());
        }
        let host = options.get_socket().map_or(options.get_host().into(), |socket| socket.display().to_string());
        let place = format!("{host}:{}/{}", options.get_port(), options.get_database().unwrap_or_default());
        return Ok(Store::Postgres { url: text.into(), place });
    }
    let path =
        text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:")).ok_or("has an unknown scheme")?;
    let (path, parameters) = path.split_once('?').unwrap_or((path, ""));
    if !matches!(parameters, "" | "mode=rw" | "mode=rwc") {
        return Err("has parameters, which SQLite doesn't get here".into());
    }
    match percent_decode_str(path).decode_utf8().map_err(|_| "has a path that is not UTF-8")?.as_ref() {
        "" => Err("names no file".into()),
        ":memory:" => Err("is a database in memory, which each connection would have for itself".into()),
        path => Ok(Store::Sqlite { path: path.into() }),
    }
}

impl Store {
    fn postgres(host: &str, port: u16, name: &str, user: &str, password: Option<&SecretString>) -> Self {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let login = match password {
            Some(password) => format!("{}:{}", encode(user), encode(password.expose_secret())),
            None => encode(user).to_string(),
        };
        // IPv6 addresses and the folders of sockets don't fit into the URL's host; sqlx and libpq take any as a parameter.
        let (authority, parameter) = if host.contains([':', '/']) {
            ("localhost", format!("?host={}", encode(host)))
        } else {
            (host, String::new())
        };
        let url = format!("postgres://{login}@{authority}:{port}/{}{parameter}", encode(name)).into();
        Self::Postgres { url, place: format!("{host}:{port}/{name}") }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path } => write!(f, "SQLite at {}", path.display()),
            Self::Postgres { place, .. } => write!(f, "PostgreSQL at {place}"),
        }
    }
}
