//! How the databases go about every statement of the service. A service that is asked for everything says what it asks its
//! database; each of these statements is explained, and the plans are kept in `plans.txt`, where a change of one is seen.
//!
//! The plans are made on tables without rows and without statistics, for any values, with PostgreSQL told to read no table from end to
//! end where it can do otherwise (`enable_seqscan = off`): what it still reads so, no index serves. How lists go about many users,
//! `directory/plans.rs` has.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use expect_test::expect_file;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

use crate::{
    avatar::{encoded, upload},
    harness::{
        Actor, Face, PASSWORD, Store,
        actor::{Outcome, claims},
        process::{Installation, Serving},
        stores::migrated_database,
        wait_for, wait_until,
    },
    rest_parity::rpcs,
};

/// The plans in the file are those of this version; of others only the rule is held.
const POSTGRES_VERSION: &str = "15";

/// What may be read from end to end: tables that stay small.
const SMALL: [(&str, &str); 6] = [
    ("counters", "a row a counter"),
    ("groups", "as many as an installation has teams, and shown on one page"),
    ("group_permissions", "what groups bring, shown with them"),
    ("permissions", "as many as somebody wrote into a program"),
    ("user_counts", "64 rows, and on PostgreSQL those since housekeeping came by"),
    ("erasures", "the users who were deleted since housekeeping came by"),
];

/// Indexes of a part of a table that may be read from end to end.
const SMALL_INDEXES: [(&str, &str); 2] =
    [("outbox_pending", "what waits to be sent"), ("outbox_abandoned", "what was given up, for 30 days")];

/// Words that stand for no table: parts of a statement that it has made itself.
const PARTS: [&str; 3] = ["found", "part", "CONSTANT"];

/// Statements that read a table of any size, and why.
const EXPLAINED: [(&str, &str); 2] = [("instr(", "a word too short for an index of trigrams"), ("strpos(", "the same")];

/// What was asked and how it ended: each rpc is to succeed once.
struct Caller {
    succeeded: BTreeSet<String>,
}

impl Caller {
    async fn ask(&mut self, actor: &Actor, rpc: &str, fields: Value) -> Outcome {
        let outcome = actor.call(Face::Grpc, rpc, fields).await;
        if outcome.status < 300 {
            self.succeeded.insert(rpc.to_owned());
        }
        outcome
    }

    async fn each(&mut self, actor: &Actor, calls: impl IntoIterator<Item = (&str, Value)>) {
        for (rpc, fields) in calls {
            let outcome = self.ask(actor, rpc, fields.clone()).await;
            assert!(outcome.status < 300, "{rpc} {fields}: {outcome:?}");
        }
    }
}

fn id_of(actor: &Actor) -> i64 {
    claims(actor.access_token.as_deref().unwrap())["user_id"].as_str().unwrap().parse().unwrap()
}

/// The code in the mail to this address.
async fn code(installation: &Installation, address: &str) -> String {
    let folder = installation.folder().join("mails");
    wait_for(Duration::from_secs(20), "the mail with the code", async || {
        let mails = std::fs::read_dir(&folder).ok()?.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
        let mail = mails.into_iter().find(|mail| mail.contains(address) && mail.contains("code is "))?;
        Some(mail.split("code is ").nth(1)?.chars().take(6).collect())
    })
    .await
}

/// Asks the service for everything.
async fn ask_for_everything(installation: &Installation, service: &Serving<'_>) {
    let mut caller = Caller { succeeded: BTreeSet::new() };
    let anonymous = service.anonymous();
    let login = async |email: &str, password: &str| {
        let mut actor = anonymous.clone();
        let fields = json!({ "email": email, "password": password });
        actor.take_tokens(&actor.call(Face::Grpc, "AuthService.Login", fields).await.expect(200));
        actor
    };
    let admin = login("admin@example.com", PASSWORD).await;
    let mut user = anonymous.clone().sign_up("user@example.com").await;
    let other = anonymous.clone().sign_up("other@example.com").await;
    let (id, other_id) = (id_of(&user), id_of(&other));

    // Accounts.
    let new = json!({ "email": "new@example.com", "password": PASSWORD });
    caller.each(&anonymous, [("AuthService.Register", new)]).await;
    let wrong = json!({ "email": "user@example.com", "code": "000000" });
    caller.ask(&anonymous, "AuthService.VerifyEmail", wrong).await;
    let right = json!({ "email": "user@example.com", "code": code(installation, "user@example.com").await });
    caller.each(&other, [("AuthService.SendVerification", json!({}))]).await;
    caller.each(&anonymous, [("AuthService.VerifyEmail", right)]).await;
    let credentials = |password: &str| json!({ "email": "user@example.com", "password": password });
    caller.ask(&anonymous, "AuthService.Login", credentials("wrong-Passw0rd")).await;
    caller.each(&anonymous, [("AuthService.Login", credentials(PASSWORD))]).await;
    let first = json!({ "refresh_token": user.refresh_token });
    let second = caller.ask(&anonymous, "AuthService.RefreshToken", first.clone()).await.expect(200);
    let second = json!({ "refresh_token": second["refresh_token"] });
    caller.each(&anonymous, [("AuthService.RefreshToken", first.clone()), ("AuthService.RefreshToken", second)]).await;
    assert_eq!(caller.ask(&anonymous, "AuthService.RefreshToken", first).await.status, 401, "theft");
    user = login("user@example.com", PASSWORD).await;
    let token = json!({ "token": user.access_token });
    let change = json!({ "old_password": PASSWORD, "new_password": "N3w-Passw0rd!" });
    caller.each(&user, [("AuthService.VerifyToken", token), ("AuthService.ChangePassword", change)]).await;

    // Users and profiles.
    let lists = [
        json!({}),
        json!({ "page": 2, "page_size": 1, "ordering": "-date_joined" }),
        json!({ "search": "example" }),
        json!({ "search": "ex" }),
        json!({ "role": "seller", "is_verified": true }),
    ];
    for fields in lists {
        caller.each(&user, [("UserService.ListUsers", fields.clone())]).await;
        caller.each(&admin, [("UserService.ListUsers", fields)]).await;
    }
    let page = caller.ask(&user, "UserService.ListUsers", json!({ "page_size": 1, "ordering": "last_name" })).await;
    let next = json!({ "page_size": 1, "ordering": "last_name", "page_token": page.answer["next_page_token"] });
    let profile = json!({ "bio": "x", "is_public": true, "timezone": "Asia/Tokyo", "streak_visibility": false });
    let of_user = [
        ("UserService.ListUsers", next),
        ("UserService.BatchGetUsers", json!({ "ids": [id, other_id] })),
        ("UserService.GetUser", json!({ "id": other_id })),
        ("UserService.UpdateUser", json!({ "id": id, "first_name": "Joan", "is_seller": true })),
        ("ProfileService.GetMyProfile", json!({})),
        ("ProfileService.GetProfile", json!({ "user_id": other_id })),
        ("ProfileService.UpdateMyProfile", profile),
        ("UserService.ExportUser", json!({ "id": id })),
        ("AuditService.ListUserActivity", json!({ "id": id })),
    ];
    caller.each(&user, of_user).await;
    let picture = encoded(&image::DynamicImage::new_rgb8(8, 8), image::ImageFormat::Png);
    let mine = upload(&user, Face::Rest, picture.clone()).await.expect(200);
    assert!(anonymous.http.get(mine["avatar"].as_str().unwrap()).send().await.unwrap().status().is_success());
    upload(&user, Face::Rest, picture).await.expect(200);

    // What admins do.
    let made = json!({ "email": "made@example.com", "password": PASSWORD, "is_moderator": true });
    let made = caller.ask(&admin, "UserService.CreateUser", made).await.expect(201)["id"].clone();
    let role = json!({ "id": id, "role": "freelancer" });
    let group = json!({ "id": 1, "permission": "shop.buy" });
    let member = json!({ "id": 1, "user_id": id });
    let of_admin = [
        ("UserService.UpdateUser", json!({ "id": made, "email": "mad@example.com", "is_staff": true })),
        ("UserService.UpdateUser", json!({ "id": made, "is_staff": false, "is_active": false })),
        ("RoleService.AddUserRole", role.clone()),
        ("RoleService.GetUserRoles", json!({ "id": id })),
        ("RoleService.RemoveUserRole", role),
        ("RoleService.CreateGroup", json!({ "name": "Support" })),
        ("RoleService.ListGroups", json!({})),
        ("RoleService.GetGroup", json!({ "id": 1 })),
        ("RoleService.UpdateGroup", json!({ "id": 1, "name": "Help" })),
        ("RoleService.AddGroupPermission", group.clone()),
        ("RoleService.AddGroupMember", member.clone()),
        ("UserService.ListUsers", json!({ "group": 1 })),
        ("RoleService.GrantPermission", json!({ "id": id, "permission": "shop.buy" })),
        ("RoleService.GetUserPermissions", json!({ "id": id })),
        ("RoleService.CheckPermission", json!({ "user_id": id, "permission": "shop.buy" })),
        ("RoleService.RevokePermission", json!({ "id": id, "permission": "shop.buy" })),
        ("RoleService.RemoveGroupMember", member),
        ("RoleService.RemoveGroupPermission", group),
        ("RoleService.DeleteGroup", json!({ "id": 1 })),
        ("AuditService.ListAuditEvents", json!({})),
        ("AuditService.ListAuditEvents", json!({ "user_id": id, "kind": "session" })),
        ("AuditService.ListAuditEvents", json!({ "actor_id": id, "since": "2020-01-01T00:00:00Z" })),
        ("UserService.DeleteUser", json!({ "id": made })),
    ];
    caller.each(&admin, of_admin).await;
    caller.each(&user, [("AuthService.Logout", json!({}))]).await;
    assert!(anonymous.request(Method::GET, "/readyz").send().await.unwrap().status().is_success());
    let missing: Vec<_> = rpcs().iter().filter(|rpc| !caller.succeeded.contains(*rpc)).collect();
    assert!(missing.is_empty(), "never asked for here: {missing:?}");
}

/// The statements in a log.
fn statements(log: &str) -> impl Iterator<Item = String> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let said = lines.filter_map(|line| {
        let whole = line["db.statement"].as_str()?.trim();
        let said = if whole.is_empty() { line["summary"].as_str()? } else { whole };
        // What is one transaction may be one text.
        Some(said.split("; ").map(|sql| sql.trim().to_owned()).collect::<Vec<_>>())
    });
    said.flatten().filter(|sql| {
        let is_explained = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"].iter().any(|verb| sql.starts_with(verb));
        let is_of_migrations =
            sql.contains("seaql_migrations") || sql.contains("pg_catalog") || sql.contains("information_schema");
        is_explained && !is_of_migrations && !sql.contains("sqlite_master")
    })
}

/// A statement without what is different each time: how many values it has.
fn shape(sql: &str) -> String {
    let mut shape = String::new();
    let mut rest = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some((before, after)) = rest.split_once('$') {
        shape += before;
        shape.push('?');
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
    }
    shape += &rest;
    for (several, one) in [("?, ?", "?"), ("(?), (?)", "(?)")] {
        while shape.contains(several) {
            shape = shape.replace(several, one);
        }
    }
    shape
}

/// A statement as somebody reads it: what it selects of a row is not what it is about.
fn readable(shape: &str) -> String {
    let Some((columns, rest)) = shape.strip_prefix("SELECT ").and_then(|rest| rest.split_once(" FROM ")) else {
        return shape.to_owned();
    };
    let columns = if columns.len() > 80 && !columns.contains('(') { "…" } else { columns };
    format!("SELECT {columns} FROM {rest}")
}

/// The plan for any values.
async fn explain(store: Store, url: &str, sql: &str) -> Vec<String> {
    match store {
        Store::Postgres => {
            let mut connection = PgConnection::connect(url).await.unwrap();
            connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off").await.unwrap();
            let prepare = format!("PREPARE explained AS {sql}");
            connection.execute(AssertSqlSafe(prepare)).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            // More than any statement of one row has.
            let is_asked_for = |n: &usize| sql.contains(&format!("${n}"));
            let values: Vec<_> = (1..500).take_while(is_asked_for).map(|_| "NULL").collect();
            let values = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
            let explain = format!("EXPLAIN (COSTS OFF) EXECUTE explained{values}");
            // By the simple protocol: EXECUTE takes no part in the other.
            let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        }
        Store::Sqlite => {
            let mut connection = SqliteConnection::connect(url).await.unwrap();
            let explain = format!("EXPLAIN QUERY PLAN {sql}");
            let rows = sqlx::query(AssertSqlSafe(explain)).fetch_all(&mut connection).await;
            let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
            rows.iter().map(|row| row.get("detail")).collect()
        }
    }
}

/// The tables that a plan reads from end to end. For a page, an index is read only until the page is full.
fn read_whole(store: Store, plan: &[String], is_a_page: bool) -> BTreeSet<String> {
    let first_word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let of_line = |at: usize| {
        let line = plan[at].trim().trim_start_matches("->").trim();
        if SMALL_INDEXES.iter().any(|(index, _)| line.split_whitespace().any(|word| word == *index)) {
            return None;
        }
        match store {
            Store::Sqlite => {
                let table = first_word(line.strip_prefix("SCAN ")?);
                let is_walk = is_a_page && line.contains(" USING ");
                let is_table = !PARTS.contains(&table.as_str()) && !line.contains("VIRTUAL TABLE INDEX 0:M");
                (is_table && !is_walk).then_some(table)
            }
            Store::Postgres => {
                if let Some(table) = line.strip_prefix("Seq Scan on ") {
                    return Some(first_word(table));
                }
                let rest = line.strip_prefix("Index").and_then(|rest| rest.split_once("Scan")).map(|(_, rest)| rest)?;
                let table = first_word(rest.split_once(" on ")?.1);
                let has_condition = plan.get(at + 1).is_some_and(|next| next.trim().starts_with("Index Cond"));
                (!has_condition && !is_a_page).then_some(table)
            }
        }
    };
    (0..plan.len()).filter_map(of_line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_finds_its_rows_by_an_index() {
    let (mut told, mut wrong) = (String::new(), Vec::new());
    let mut is_of_this_version = true;
    for store in Store::all() {
        let (database, empty) = (migrated_database(store).await, migrated_database(store).await);
        let installation = Installation::with(&[
            ("DATABASE_URL", &database.url),
            ("JWT_SECRET_KEY", "a-key-that-no-example-has-0123456789abcdef"),
            ("LOG_LEVEL", "info,sqlx=debug"),
            ("LOG_FORMAT", "json"),
            ("EMAIL_BACKEND", "file"),
            ("EMAIL_FILE_PATH", "mails"),
            ("NOTIFICATION_SERVICE_URL", "http://127.0.0.1:9/"),
            ("RATE_LIMIT_REGISTER", "off"),
            ("SUPERUSER_PASSWORD", PASSWORD),
        ]);
        let superuser = installation.run(&["createsuperuser", "--email", "admin@example.com"]).await.expect(0);
        let service = installation.serve().await;
        ask_for_everything(&installation, &service).await;
        let is_swept = async || {
            service.log().contains("DELETE FROM \\\"known_clients\\\"")
                || service.log().contains("FROM \\\"erasures\\\"")
        };
        wait_until(Duration::from_secs(30), "housekeeping", is_swept).await;
        let imported =
            installation.run_with_input(&["import"], "{\"email\": \"imported@example.com\"}").await.expect(0);
        let requeued = installation.run(&["outbox", "requeue", "--all"]).await.expect(0);
        let log = [service.log(), superuser.stderr, imported.stderr, requeued.stderr].concat();
        service.stop().await;

        let mut shapes = BTreeMap::new();
        for sql in statements(&log) {
            // Of one shape always the same, in whatever order they came: the one with the fewest values.
            let kept = shapes.entry(shape(&sql)).or_insert_with(|| sql.clone());
            if (sql.len(), &sql) < (kept.len(), kept) {
                *kept = sql;
            }
        }
        assert!(shapes.len() > 50, "the log doesn't tell what it asked: {}", shapes.len());
        if store == Store::Postgres {
            let mut connection = PgConnection::connect(&empty.url).await.unwrap();
            let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await.unwrap();
            is_of_this_version = version.split('.').next() == Some(POSTGRES_VERSION);
        }
        let gap = if told.is_empty() { "" } else { "\n\n" };
        told = told + gap + &format!("{store:?}\n");
        for (shape, sql) in shapes {
            let plan = explain(store, &empty.url, &sql).await;
            let steps = if plan.is_empty() { "nothing to look up".into() } else { plan.join("\n    ") };
            told = told + "\n" + &readable(&shape) + "\n    " + &steps + "\n";
            let mut whole = read_whole(store, &plan, shape.contains("ORDER BY") && shape.contains("LIMIT"));
            whole.retain(|table| !SMALL.iter().any(|(small, _)| small == table));
            if !whole.is_empty() && !EXPLAINED.iter().any(|(part, _)| shape.contains(part)) {
                wrong.push(format!("{store:?} reads all of {whole:?}:\n  {shape}\n    {}", plan.join("\n    ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if is_of_this_version && Store::all().len() == 2 {
        expect_file!["./plans.txt"].assert_eq(&told);
    }
}
