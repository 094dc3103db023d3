//! The rules of `docs/migrations.md`, held against every migration: while one runs, the release before it serves; and it goes
//! on doing so after it, until the last replica is replaced.

use std::{collections::BTreeSet, fs};

/// What the first release brought, all at once and onto nothing: these may do with each other's tables as they like.
const FIRST_RELEASE: [&str; 9] = [
    "m0001_init",
    "m0002_search",
    "m0003_profiles_by_avatar",
    "m0004_known_clients",
    "m0005_list_indexes",
    "m0006_outbox",
    "m0007_sessions",
    "m0008_feed",
    "m0009_audit",
];

/// Statements that break a rule and do no harm: the migration, how the statement begins, and why not. A column that no
/// release has used since the one before belongs here when it goes.
const EXPLAINED: [(&str, &str, &str); 1] = [(
    "m0010_user_counts",
    "INSERT INTO USER_COUNTS (FLAGS USERS) SELECT",
    "of a whole table it copies some sums: writes wait for a third of a second where there are a million users",
)];

#[test]
fn no_migration_stands_in_the_way_of_the_release_before_it() {
    let mut wrong = Vec::new();
    let mut first = BTreeSet::new();
    for (name, source) in migrations() {
        let own = created_tables(&source);
        let fresh = if FIRST_RELEASE.contains(&name.as_str()) {
            first.extend(own);
            &first
        } else {
            &own
        };
        for (statement, why) in mistakes(&source, fresh) {
            if !EXPLAINED.iter().any(|(of, begin, _)| *of == name && statement.starts_with(begin)) {
                wrong.push(format!("{name}: {statement}\n  {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "against docs/migrations.md:\n{}", wrong.join("\n"));
}

#[test]
fn what_the_rules_forbid_is_found_and_what_they_advise_is_not() {
    let forbidden = [
        "CREATE INDEX users_by_age ON users (age)",
        "CREATE UNIQUE INDEX IF NOT EXISTS users_by_age ON ONLY users (age)",
        "DROP INDEX users_by_age",
        "REINDEX TABLE users",
        "DROP TABLE IF EXISTS users",
        "ALTER TABLE users DROP COLUMN age",
        "ALTER TABLE users DROP age",
        "ALTER TABLE users RENAME TO people",
        "ALTER TABLE IF EXISTS ONLY users RENAME COLUMN age TO years",
        "ALTER TABLE users ALTER COLUMN age TYPE bigint",
        "ALTER TABLE users ALTER age SET DATA TYPE bigint",
        "alter table users alter column age set not null",
        "ALTER TABLE users ADD COLUMN age integer NOT NULL",
        "ALTER TABLE users ADD COLUMN seen timestamptz NOT NULL DEFAULT clock_timestamp()",
        "ALTER TABLE users ADD COLUMN age integer UNIQUE",
        "ALTER TABLE users ADD CONSTRAINT grown CHECK (age > 17)",
        "ALTER TABLE users ADD CONSTRAINT one_an_age UNIQUE (age)",
        "ALTER TABLE users ADD PRIMARY KEY (age)",
        "ALTER TABLE users ADD COLUMN team bigint REFERENCES teams (id)",
        "UPDATE users SET age = 0",
        "DELETE FROM users WHERE age = 0",
        "TRUNCATE users",
        "LOCK TABLE users",
        "VACUUM FULL users",
        "CLUSTER users USING users_by_age",
        "DO $$ BEGIN CREATE INDEX users_by_age ON users (age); END $$",
        "-- a comment\nUPDATE \"users\" SET age = 0",
        "CREATE TABLE people (id bigint); INSERT INTO people SELECT id FROM users",
    ];
    for sql in forbidden {
        let source = format!("//! A migration.\nconst SQL: &str = \"{}\";\nSome(true)", sql.replace('"', "\\\""));
        assert_eq!(mistakes(&source, &created_tables(&source)).len(), 1, "{sql}");
        let source = format!("const SQL: &str = r#\"\n{sql};\n\"#;\nSome(true)");
        assert_eq!(mistakes(&source, &created_tables(&source)).len(), 1, "{sql}");
    }
    let allowed = [
        "ALTER TABLE users ADD COLUMN age integer",
        "ALTER TABLE users ADD COLUMN age integer NOT NULL DEFAULT 0",
        "ALTER TABLE users ALTER COLUMN age DROP NOT NULL",
        "ALTER TABLE users ADD CONSTRAINT grown CHECK (age > 17) NOT VALID",
        "ALTER TABLE users VALIDATE CONSTRAINT grown",
        "ALTER TABLE users ADD CONSTRAINT one_an_age UNIQUE USING INDEX users_by_age",
        "CREATE TABLE teams (id bigint PRIMARY KEY, name text NOT NULL); CREATE INDEX teams_by_name ON teams (name)",
        "CREATE TRIGGER t AFTER UPDATE OF age ON users BEGIN INSERT INTO ages (age) VALUES (new.age)",
        "-- UPDATE users SET age = 0",
    ];
    for sql in allowed {
        let source = format!("/// UPDATE users\nconst SQL: &str = \"{sql}\";\nSome(true)");
        assert_eq!(mistakes(&source, &created_tables(&source)), [], "{sql}");
    }
    // Outside of a transaction, as PostgreSQL has it.
    for sql in ["CREATE INDEX CONCURRENTLY users_by_age ON users (age)", "DROP INDEX CONCURRENTLY users_by_age"] {
        for (transaction, faults) in [("Some(true)", 1), ("Some(false)", 0)] {
            let source = format!("const SQL: &str = \"{sql}\";\n{transaction}");
            assert_eq!(mistakes(&source, &BTreeSet::new()).len(), faults, "{sql}, {transaction}");
        }
    }
}

/// The migrations by name, oldest first.
fn migrations() -> Vec<(String, String)> {
    let files = fs::read_dir("migrations/src").unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = files
        .map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&file).unwrap()))
        .filter(|(name, _)| name != "lib")
        .collect();
    all.sort();
    assert!(all.len() >= FIRST_RELEASE.len(), "the migrations lie elsewhere");
    all
}

/// The statements in the source's texts, each as its words in capitals.
fn statements(source: &str) -> Vec<String> {
    let mut all = Vec::new();
    for text in texts(source) {
        let lines = text.lines().map(|line| line.split("--").next().unwrap_or_default());
        for statement in lines.collect::<Vec<_>>().join(" ").split(';') {
            let words = statement.split(|c: char| !c.is_alphanumeric() && !"_()$".contains(c));
            let spaced = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_uppercase();
            // The head of a block stands before its first statement.
            let statement = spaced.strip_prefix("DO $$ BEGIN ").unwrap_or(&spaced);
            if !statement.is_empty() {
                all.push(statement.to_owned());
            }
        }
    }
    all
}

/// The string literals of Rust's, without its comments.
fn texts(source: &str) -> Vec<String> {
    let code: Vec<_> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut rest = code.as_str();
    let mut all = Vec::new();
    while let Some((before, after)) = rest.split_once('"') {
        let (text, next) = if before.ends_with("r#") {
            after.split_once("\"#").unwrap_or((after, ""))
        } else {
            let end = after.match_indices('"').map(|(at, _)| at).find(|at| !after[..*at].ends_with('\\'));
            let end = end.unwrap_or(after.len());
            (&after[..end], after.get(end + 1..).unwrap_or_default())
        };
        all.push(text.replace("\\\"", "\""));
        rest = next;
    }
    all
}

fn created_tables(source: &str) -> BTreeSet<String> {
    let statements = statements(source);
    let after = |statement: &String| {
        let rest =
            ["CREATE TABLE IF NOT EXISTS ", "CREATE TABLE "].iter().find_map(|head| statement.strip_prefix(head))?;
        rest.split([' ', '(']).next().map(str::to_owned)
    };
    statements.iter().filter_map(after).collect()
}

/// The statements that break a rule, and what to do instead. `fresh` are tables that nobody uses yet.
fn mistakes(source: &str, fresh: &BTreeSet<String>) -> Vec<(String, &'static str)> {
    let in_transaction = !source.contains("Some(false)");
    let broken = |statement: &String| mistake(statement, fresh, in_transaction);
    statements(source).into_iter().filter_map(|statement| Some((statement.clone(), broken(&statement)?))).collect()
}

fn mistake(statement: &str, fresh: &BTreeSet<String>, in_transaction: bool) -> Option<&'static str> {
    let words: Vec<&str> =
        statement.split(|c: char| c == ' ' || "()".contains(c)).filter(|word| !word.is_empty()).collect();
    let has = |sought: &str| {
        let sought: Vec<_> = sought.split(' ').collect();
        words.windows(sought.len()).any(|window| window == sought)
    };
    // The first name after these words.
    let named_after = |word: &str| {
        let at = words.iter().position(|other| *other == word)?;
        words[at + 1..].iter().find(|word| !["IF", "EXISTS", "ONLY", "TABLE", "FULL"].contains(word)).copied()
    };
    let in_use = |table: Option<&str>| table.is_none_or(|table| !fresh.contains(table));
    let concurrently = has("CONCURRENTLY");
    if concurrently && in_transaction {
        return Some("CONCURRENTLY works outside of a transaction only: `use_transaction` is `Some(false)`");
    }
    match words.as_slice() {
        ["CREATE", "INDEX", ..] | ["CREATE", "UNIQUE", "INDEX", ..] if !concurrently && in_use(named_after("ON")) => {
            Some("it stops all writes to the table while it runs: CREATE INDEX CONCURRENTLY")
        }
        // Without a table: of which one, the statement doesn't say.
        ["DROP", "INDEX", name, ..] if !concurrently && !fresh.iter().any(|table| name.starts_with(table.as_str())) => {
            Some("it waits for all who use the table, and all others for it: DROP INDEX CONCURRENTLY")
        }
        ["REINDEX", ..] if !concurrently => Some("it stops all writes to the table: REINDEX CONCURRENTLY"),
        ["DROP", "TABLE", ..] if in_use(named_after("TABLE")) => {
            Some("the release before reads it: first a release that doesn't, and then an explanation in EXPLAINED")
        }
        ["ALTER", "TABLE", ..] if in_use(named_after("TABLE")) => altered(&words, has),
        ["UPDATE", ..] if in_use(named_after("UPDATE")) => {
            Some("it locks all rows to its end: let housekeeping do it, some rows at a time")
        }
        ["DELETE", "FROM", ..] if in_use(named_after("FROM")) => {
            Some("it locks all rows to its end: let housekeeping do it, some rows at a time")
        }
        ["INSERT", ..] if has("SELECT") && has("FROM") && in_use(named_after("FROM")) => {
            Some("it copies a whole table in one transaction: let housekeeping do it, some rows at a time")
        }
        ["TRUNCATE" | "LOCK" | "CLUSTER", ..] => Some("it holds the table against everybody"),
        ["VACUUM", ..] if has("FULL") => Some("it holds the table against everybody"),
        _ => None,
    }
}

/// What is wrong with a change of a table in use.
fn altered(words: &[&str], has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let drops = words.windows(2).any(|pair| {
        pair[0] == "DROP" && !["NOT", "DEFAULT", "CONSTRAINT", "IDENTITY", "EXPRESSION"].contains(&pair[1])
    });
    let adds_column =
        has("ADD COLUMN") || (has("ADD") && !has("ADD CONSTRAINT") && !has("ADD PRIMARY") && !has("ADD UNIQUE"));
    if drops || has("RENAME") {
        Some("the release before uses the old name: first a release that doesn't, and then an explanation in EXPLAINED")
    } else if has("TYPE") {
        Some("it writes the whole table anew under a lock: add a column, fill it some rows at a time, go over to it")
    } else if has("SET NOT NULL") {
        Some("it reads the whole table under a lock: add a CHECK that is NOT VALID, and VALIDATE it in a later release")
    } else if (has("ADD PRIMARY") || has("UNIQUE")) && !has("USING INDEX") {
        Some("it builds an index under a lock: CREATE UNIQUE INDEX CONCURRENTLY, and ADD CONSTRAINT … USING INDEX")
    } else if (has("ADD CONSTRAINT") || has("REFERENCES") || has("CHECK")) && !has("NOT VALID") && !has("USING INDEX") {
        Some("it reads the whole table under a lock: NOT VALID first, and VALIDATE in a later release")
    } else if adds_column && has("NOT NULL") && !has("DEFAULT") {
        Some("the release before writes rows without it: with a DEFAULT")
    } else if adds_column && has("DEFAULT CLOCK_TIMESTAMP") {
        Some("a value for each row writes the whole table anew: a DEFAULT that is constant")
    } else {
        None
    }
}
