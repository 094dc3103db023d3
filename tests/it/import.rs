//! The bulk import: who comes in by it, what it refuses, and how it goes on when it broke off.

use std::{io::Cursor, process::Stdio, time::Duration};

use identity::{
    domain::import::{FileError, Imported, UserFile},
    entity::{audit_event, profile, user},
};
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::{
    directory::list,
    harness::{
        PASSWORD, Service, Store, everywhere, on_each_store, process::Installation, stores::migrated_database,
        wait_until,
    },
    migrations::connect,
};

/// Of `User123!pass`, as Django made it.
const DJANGO_HASH: &str = "pbkdf2_sha256$260000$jSx5dQNPlivpfQ3sZaMRjo$Krm9KJNYfnrirnFSZm35cNuEQNXJjfIOm5dFukmFqnM=";

fn lines(users: &[Value]) -> String {
    users.iter().fold(String::new(), |lines, user| lines + &user.to_string() + "\n")
}

/// Imports lines that are right.
pub async fn import(service: &Service, users: &[Value]) -> Imported {
    let file =
        UserFile::check(Cursor::new(lines(users)), service.clock.now()).unwrap_or_else(|error| panic!("{error}"));
    service.app.import(file, |_| {}).await.unwrap()
}

/// What is said of a file that is not taken.
#[track_caller]
fn refusal(service: &Service, text: impl Into<Vec<u8>>) -> String {
    match UserFile::check(Cursor::new(text.into()), service.clock.now()) {
        Err(error @ FileError::Wrong { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is taken"),
    }
}

fn of_each() -> [Value; 3] {
    [
        json!({
            "email": "Jane.Doe@Example.com", "password_hash": DJANGO_HASH, "first_name": " Jane ", "last_name": "Doe",
            "is_verified": true, "is_freelancer": true, "date_joined": "2020-02-03T04:05:06.123456789+01:00",
            "bio": "I draw.\nAnd paint.", "timezone": "europe/berlin", "streak_visibility": false,
        }),
        json!({ "email": "hidden@example.com", "password_hash": null, "first_name": null, "is_public": false }),
        json!({ "email": "boss@example.com", "password_hash": DJANGO_HASH, "is_staff": true, "is_superuser": true }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_user_is_a_user_like_any_other() {
    everywhere(async |service, face| {
        assert_eq!(import(service, &of_each()).await, Imported { made: 3, skipped: 0 });

        let anonymous = service.anonymous();
        let login = async |email: &str, password: &str| {
            anonymous.call(face, "AuthService.Login", json!({ "email": email, "password": password })).await
        };
        let mut jane = anonymous.clone();
        let answer = login("jane.doe@example.com", "User123!pass").await.expect(200);
        assert_eq!(answer["user"]["roles"], json!(["User", "Freelancer"]));
        jane.take_tokens(&answer);
        let mine = jane.call(face, "ProfileService.GetMyProfile", json!({})).await.expect(200);
        assert_eq!(mine["bio"], "I draw.\nAnd paint.");
        assert_eq!(mine["timezone"], "Europe/Berlin");
        assert!(!mine["streak_visibility"].as_bool().unwrap_or_default(), "{mine}");
        assert_eq!(mine["user"]["first_name"], "Jane");
        let found = list(&jane, face, json!({ "search": "jane" })).await.expect(200);
        assert_eq!(found["results"][0]["email"], "Jane.Doe@example.com");
        assert_eq!(found["results"][0]["date_joined"], "2020-02-03T03:05:06.123456Z");
        assert_eq!(found["results"][0]["is_verified"], true);

        // Private, and without a password: nobody sees it, and nobody gets in.
        assert_eq!(list(&jane, face, json!({})).await.expect(200)["count"], 2, "hers and the boss's");
        assert_eq!(login("hidden@example.com", "!").await.status, 401);

        let mut boss = anonymous.clone();
        let answer = login("boss@example.com", "User123!pass").await.expect(200);
        assert_eq!(answer["user"]["roles"], json!(["User", "Admin"]));
        boss.take_tokens(&answer);
        let found = list(&boss, face, json!({ "search": "hidden@" })).await.expect(200);
        assert_eq!(found["count"], 1, "an admin sees it");
        let id = found["results"][0]["id"].clone();
        let events = boss.call(face, "AuditService.ListAuditEvents", json!({ "user_id": id })).await.expect(200);
        // The last is the first; before it the audit was read.
        assert_eq!(events["results"][1]["kind"], "user.imported", "{events}");
        assert!(service.mails.lock().unwrap().is_empty(), "nobody is mailed");
    })
    .await;
}

/// Each field that is left out has what a registration gives it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_alone_makes_what_a_registration_makes() {
    on_each_store(async |service| {
        import(service, &[json!({ "email": "imported@example.com" })]).await;
        service.anonymous().sign_up("registered@example.com").await;
        let stored =
            user::Entity::find().find_also_related(profile::Entity).all(service.app.db.reader()).await.unwrap();
        let [(imported, its), (registered, other)] = <[_; 2]>::try_from(stored).unwrap();
        let names = |user: user::Model| user::Model {
            id: 0,
            email: String::new(),
            email_key: String::new(),
            search_text: String::new(),
            last_login: None,
            first_name: String::new(),
            last_name: String::new(),
            name_text: String::new(),
            password: user::PasswordHash(String::new()),
            ..user
        };
        assert_eq!(names(imported), names(registered));
        let of = |profile: Option<profile::Model>| profile::Model { id: 0, user_id: 0, ..profile.unwrap() };
        assert_eq!(of(its), of(other));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_line_by_line() {
    let service = Service::start(Store::all()[0]).await;
    let good = |n: u32| json!({ "email": format!("user{n}@example.com") });
    for (wrong, told) in [
        (json!({}), "email: This field is required."),
        (json!({ "email": null }), "email: This field is required."),
        (json!({ "email": "nobody" }), "email: Enter a valid email address."),
        (json!({ "email": 7 }), "email: Not a valid string."),
        (
            json!({ "email": "a@example.com", "first_name": "x".repeat(151) }),
            "first_name: Ensure this field has no more",
        ),
        (json!({ "email": "a@example.com", "last_name": "a\u{0}b" }), "last_name: Control characters are not allowed."),
        (json!({ "email": "a@example.com", "is_active": "yes" }), "is_active: Must be a valid boolean."),
        (json!({ "email": "a@example.com", "bio": "x".repeat(1001) }), "bio: Ensure this field has no more"),
        (json!({ "email": "a@example.com", "timezone": "Mars/Olympus" }), "timezone: Not a valid IANA time zone."),
        (json!({ "email": "a@example.com", "date_joined": "yesterday" }), "date_joined: Not a valid time."),
        (json!({ "email": "a@example.com", "date_joined": "2999-01-01T00:00:00Z" }), "date_joined: Not a time between"),
        (json!({ "email": "a@example.com", "date_joined": "1969-01-01T00:00:00Z" }), "date_joined: Not a time between"),
        (json!({ "email": "a@example.com", "password": PASSWORD }), "password: There is no such field."),
        (json!({ "email": "USER1@example.com" }), "email: The address is that of line 1."),
        (json!(["a@example.com"]), "It is not an object of JSON."),
    ] {
        let said = refusal(&service, lines(&[good(1), good(2), wrong.clone(), good(3)]));
        let [_, line] = said.lines().collect::<Vec<_>>()[..] else { panic!("{wrong}: {said}") };
        assert!(line.starts_with(&format!("  line 3: {told}")), "{wrong}: {said}");
    }
    let twice = r#"{"email": "a@example.com", "is_active": false, "is_active": true}"#;
    assert!(refusal(&service, format!("{twice}\n")).ends_with("line 1: A field comes twice."));
    // Hashes that no password would ever match, or that would take the machine away; they aren't repeated.
    for hash in [
        "",
        "secret-in-the-clear",
        "md5$salt$b305cadbb3bce54f3aa59c64fec00dea",
        "$argon2id$v=19$m=99999999,t=9,p=1$c2FsdHNhbHQ$AAAA",
    ] {
        let said = refusal(&service, lines(&[json!({ "email": "a@example.com", "password_hash": hash })]));
        assert!(said.ends_with("line 1: password_hash: No password can be checked against this hash."), "{said}");
    }
    let said = refusal(&service, b"\n  \n{\"email\": \"a@example.com\"\n\xff\xfe\n".to_vec());
    assert!(said.ends_with("line 3: It is not an object of JSON.\n  line 4: It is not text in UTF-8."), "{said}");
    let long = format!("{{\"email\": \"a@example.com\", \"bio\": \"{}\"}}\n{}", "x".repeat(100_000), good(1));
    assert!(refusal(&service, long).ends_with("1 line is wrong:\n  line 1: It has more than 65536 bytes."));

    // All that is wrong with a line, and no more complaints than somebody reads.
    let said = refusal(&service, lines(&[json!({ "email": "nobody", "is_active": 1, "timezone": "x" })]));
    assert_eq!(said.lines().count(), 4, "{said}");
    let said = refusal(&service, "x\n".repeat(5000));
    assert!(said.starts_with("nothing was imported, for 5000 lines are wrong:"), "{said}");
    assert_eq!(said.lines().count(), 101);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_an_account_keeps_it() {
    on_each_store(async |service| {
        service.user("jane.doe@example.com").await;
        let stored = async || user::Entity::find_by_id(1).one(service.app.db.reader()).await.unwrap().unwrap();
        let before = stored().await;
        assert_eq!(import(service, &of_each()).await, Imported { made: 2, skipped: 1 });
        assert_eq!(import(service, &of_each()).await, Imported { made: 0, skipped: 3 });
        assert_eq!(stored().await, before);
        service.login("jane.doe@example.com").await;
        let told = audit_event::Entity::find().filter(audit_event::Column::Kind.eq("user.imported"));
        assert_eq!(told.count(service.app.db.reader()).await.unwrap(), 2, "once of each who came in");
        assert_eq!(profile::Entity::find().count(service.app.db.reader()).await.unwrap(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_last_line_changes_nothing() {
    let installation = Installation::new();
    let mut users: Vec<_> = (0..3000).map(|n| json!({ "email": format!("user{n}@example.com") })).collect();
    users.push(json!({ "email": "nobody" }));
    let refused = installation.run_with_input(&["import"], &lines(&users)).await.expect(1);
    assert!(refused.stderr.ends_with("line 3001: email: Enter a valid email address.\n"), "{refused:?}");
    users.pop();
    std::fs::write(installation.folder().join("users.jsonl"), lines(&users)).unwrap();
    let taken = installation.run(&["import", "users.jsonl"]).await.expect(0);
    assert_eq!(taken.stdout, "3000 imported, 0 skipped: they had an account\n");
    let again = installation.run_with_input(&["import"], &lines(&users)).await.expect(0);
    assert_eq!(again.stdout, "0 imported, 3000 skipped: they had an account\n");
    let left: Vec<_> =
        std::fs::read_dir(installation.folder().join("data")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with("import-")), "{left:?}");
    let missing = installation.run(&["import", "nothing.jsonl"]).await.expect(1);
    assert!(missing.stderr.starts_with("identity: nothing.jsonl: No such file"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_killed_is_run_again() {
    const USERS: u64 = 8000;
    for store in Store::all() {
        let database = migrated_database(store).await;
        let installation = Installation::with(&[
            ("DATABASE_URL", &database.url),
            ("JWT_SECRET_KEY", "a-key-that-no-example-has-0123456789abcdef"),
        ]);
        let users: Vec<_> = (0..USERS).map(|n| json!({ "email": format!("user{n}@example.com") })).collect();
        std::fs::write(installation.folder().join("users.jsonl"), lines(&users)).unwrap();
        let db = connect(&database).await;
        let count = async || user::Entity::find().count(db.reader()).await.unwrap();

        let mut first = installation.command(env!("CARGO_BIN_EXE_identity"));
        let mut first =
            first.args(["import", "users.jsonl"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until(Duration::from_secs(30), "the first batches", async || count().await >= 2000).await;
        kill_process(Pid::from_child(&first), Signal::KILL).unwrap();
        first.wait().unwrap();
        let made = count().await;
        assert!(made < USERS && made.is_multiple_of(1000), "whole batches, and not all: {made}");
        assert_eq!(profile::Entity::find().count(db.reader()).await.unwrap(), made, "each with its profile");

        let again = installation.run(&["import", "users.jsonl"]).await.expect(0);
        assert_eq!(again.stdout, format!("{} imported, {made} skipped: they had an account\n", USERS - made));
        assert_eq!(count().await, USERS);
        assert_eq!(profile::Entity::find().count(db.reader()).await.unwrap(), USERS);
        db.close().await;
    }
}
