//! Which database, and its replica.

use identity::config::Store;

use super::{KEY, load, loaded, postgres_url, production, refused};

#[test]
fn postgres_parts_make_a_url_whatever_they_hold() {
    for (host, password, name, expected) in [
        ("db", "p@ss:w/rd%41", "users", "postgres://me:p%40ss%3Aw%2Frd%2541@db:6543/users"),
        ("::1", "x", "a b", "postgres://me:x@localhost:6543/a%20b?host=%3A%3A1"),
        ("/run/pg", "x", "u", "postgres://me:x@localhost:6543/u?host=%2Frun%2Fpg"),
    ] {
        let config = loaded(&[
            ("JWT_SECRET_KEY", KEY),
            ("POSTGRES_HOST", host),
            ("POSTGRES_PORT", "6543"),
            ("POSTGRES_USER", "me"),
            ("POSTGRES_PASSWORD", password),
            ("POSTGRES_DB", name),
        ]);
        assert_eq!(postgres_url(&config), expected);
        assert_eq!(config.database.store.to_string(), format!("PostgreSQL at {host}:6543/{name}"));
        let options: sqlx::postgres::PgConnectOptions = expected.parse().unwrap();
        let reached = options.get_socket().map_or(options.get_host().to_owned(), |path| path.display().to_string());
        assert_eq!((reached.as_str(), options.get_database()), (host, Some(name)));
    }
}

#[test]
fn database_url_outranks_postgres_host_and_says_so() {
    let config = loaded(&[("DATABASE_URL", "sqlite:///srv/users.db?mode=rwc"), ("POSTGRES_HOST", "db")]);
    assert_eq!(config.database.store.to_string(), "SQLite at /srv/users.db");
    assert!(config.warnings.iter().any(|warning| warning.contains("outranks POSTGRES_HOST")), "{:?}", config.warnings);

    let config = loaded(&[("POSTGRES_PASSWORD", "x"), ("POSTGRES_DB", "users")]);
    assert!(matches!(config.database.store, Store::Sqlite { .. }));
    assert!(config.warnings[0].contains("nothing comes of POSTGRES_DB, POSTGRES_PASSWORD"), "{:?}", config.warnings);
}

#[test]
fn a_replica_is_of_postgresql_and_there_only_beside_it() {
    let replica = ("DATABASE_READ_URL", "postgres://replica/users");
    let config = loaded(&production(&[("JWT_SECRET_KEY", KEY), replica]));
    assert!(config.database.read_url.is_some());
    refused(&[replica], replica.0, "SQLite");
    for (url, why) in
        [("sqlite:users.db", "not a PostgreSQL URL"), ("mysql://db/users", "scheme"), ("postgres://db", "no database")]
    {
        refused(&production(&[("JWT_SECRET_KEY", KEY), (replica.0, url)]), replica.0, why);
    }
    assert!(load(&[("DATABASE_READ_URL", "")]).unwrap().database.read_url.is_none());
}
