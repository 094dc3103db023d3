//! The audit: each security-relevant change leaves a row in its own transaction, nobody changes it, and it can be read.

use std::{collections::BTreeSet, fs};

use chrono::{DateTime, Duration, Utc};
use identity::{
    domain::{
        session::MAX_SESSIONS,
        trail::{Filter, Kinds},
    },
    entity::{
        audit_event::{self, Column},
        session,
    },
};
use reqwest::Method;
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QueryTrait,
    Statement,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    account::verify,
    harness::{
        Actor, Face, Outcome, PASSWORD, Service,
        actor::{contract, outcome_of},
        everywhere, on_each_store,
    },
    rest_parity::state,
    user::user_id,
};

const EMAIL: &str = "user@example.com";
const NEW_PASSWORD: &str = "An0ther-password";

/// Reads the audit as it grows.
struct Reader<'a> {
    service: &'a Service,
    last: i64,
    seen: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(service: &'a Service) -> Self {
        Self { service, last: 0, seen: BTreeSet::new() }
    }

    /// The rows since it last looked.
    async fn news(&mut self) -> Vec<audit_event::Model> {
        use sea_orm::ColumnTrait;
        let rows = audit_event::Entity::find().filter(Column::Id.gt(self.last)).order_by_asc(Column::Id);
        let rows = rows.all(self.service.app.db.reader()).await.unwrap();
        self.last = rows.last().map_or(self.last, |row| row.id);
        self.seen.extend(rows.iter().map(|row| row.kind.clone()));
        rows
    }

    /// The call left this row alone, which says who did it to whom, and all else of it.
    #[track_caller]
    fn expect(
        &mut self,
        outcome: Outcome,
        kind: &'static str,
        who: Option<i64>,
        whom: Option<i64>,
        detail: Value,
    ) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            assert!(outcome.status < 300, "{caller}: {outcome:?}");
            let rows = self.news().await;
            let [row] = rows.as_slice() else { panic!("{caller}: {kind} left {rows:?}") };
            assert_eq!((row.kind.as_str(), row.actor_id, row.user_id), (kind, who, whom), "{caller}");
            assert_eq!((row.ip.as_deref(), row.created_at), (Some("127.0.0.1"), self.service.clock.now()), "{caller}");
            assert!(row.request_id.is_some(), "{caller}: {row:?}");
            if outcome.request_id.is_some() {
                assert_eq!(row.request_id, outcome.request_id, "{caller}");
            }
            assert_eq!(serde_json::from_str::<Value>(&row.detail).unwrap(), detail, "{caller}");
            outcome.answer
        }
    }

    async fn expect_nothing(&mut self, why: &str) {
        let rows = self.news().await;
        assert!(rows.is_empty(), "{why}: {rows:?}");
    }
}

/// All kinds of events, as the contract names them.
fn kinds() -> BTreeSet<String> {
    let request = contract().get_message_by_name("identity.v1.ListAuditEventsRequest").unwrap();
    let rest = contract().get_extension_by_name("identity.v1.rest").unwrap();
    let options = request.get_field_by_name("kind").unwrap().options();
    let rest = options.get_extension(&rest).as_message().cloned().unwrap();
    let values = rest.get_field_by_name("values").unwrap().as_message().cloned().unwrap();
    let one_of = values.get_field_by_name("one_of").unwrap().as_list().unwrap().to_vec();
    one_of.iter().map(|name| name.as_str().unwrap().to_owned()).filter(|name| name.contains('.')).collect()
}

/// Line 57. What changes nothing leaves nothing.
#[expect(clippy::too_many_lines, reason = "a step for each kind of event")]
#[tokio::test(flavor = "multi_thread")]
async fn each_change_leaves_one_row_that_says_who_what_on_whom_from_where_and_when() {
    everywhere(async |service, face| {
        let mut audit = Reader::new(service);
        let admin = service.admin("admin@example.com").await;
        let boss = user_id(&admin);
        // By an operator, from no address; then a login.
        let rows = audit.news().await;
        assert_eq!((rows[0].actor_id, rows[0].user_id, rows[0].ip.as_deref()), (None, Some(boss), None), "{rows:?}");
        assert_eq!(rows.len(), 2, "{rows:?}");

        let anonymous = service.anonymous();
        let account = json!({ "email": EMAIL, "password": PASSWORD });
        let registered = anonymous.call(face, "AuthService.Register", account.clone()).await;
        let id = registered.answer["id"].as_i64().unwrap();
        let (user, none) = (Some(id), || json!({}));
        audit.expect(registered, "user.registered", user, user, none()).await;
        let login = async |password: &str| {
            anonymous.call(face, "AuthService.Login", json!({ "email": EMAIL, "password": password })).await
        };
        let mut own = anonymous.clone();
        own.take_tokens(&audit.expect(login(PASSWORD).await, "session.began", user, user, none()).await);
        verify(service, EMAIL).await;
        let verified = audit.news().await;
        assert_eq!((verified[0].actor_id, verified[0].user_id), (user, user), "{verified:?}");
        let change = json!({ "old_password": PASSWORD, "new_password": NEW_PASSWORD });
        let changed = own.call(face, "AuthService.ChangePassword", change).await;
        audit.expect(changed, "user.password_changed", user, user, none()).await;

        // A stolen refresh token: who had it isn't known.
        let old = json!({ "refresh_token": own.refresh_token });
        own.take_tokens(&own.call(face, "AuthService.RefreshToken", old.clone()).await.expect(200));
        audit.expect_nothing("a refresh").await;
        service.clock.advance(Duration::seconds(11));
        let reused = own.call(face, "AuthService.RefreshToken", old).await;
        assert_eq!(reused.status, 401);
        let reused = Outcome { status: 200, ..reused };
        audit.expect(reused, "session.refresh_token_reused", None, user, none()).await;

        own.take_tokens(&audit.expect(login(NEW_PASSWORD).await, "session.began", user, user, none()).await);
        let other = service.anonymous().with_token(own.access_token.as_deref().unwrap());
        let logout = other.call(face, "AuthService.Logout", json!({})).await;
        audit.expect(logout, "session.ended", user, user, none()).await;
        crowd(service, id).await;
        own.take_tokens(&login(NEW_PASSWORD).await.expect(200));
        let crowded = audit.news().await;
        let crowded: Vec<_> =
            crowded.iter().map(|row| (row.kind.as_str(), row.actor_id, row.detail.as_str())).collect();
        assert_eq!(crowded, [("session.began", user, "{}"), ("session.crowded_out", user, r#"{"sessions":1}"#)]);

        // What admins do.
        let new = json!({ "email": "made@example.com", "password": PASSWORD });
        let made = admin.call(face, "UserService.CreateUser", new).await;
        let made_id = made.answer["id"].as_i64();
        audit.expect(made, "user.created", Some(boss), made_id, none()).await;
        let change = |changed: Value| json!({ "changed": changed });
        for (actor, who, fields, changed) in [
            (&own, user, json!({ "first_name": "Joan" }), json!({ "first_name": null })),
            (&admin, Some(boss), json!({ "email": "new@example.com" }), json!({ "email": null, "is_verified": false })),
            (&admin, Some(boss), json!({ "is_staff": true }), json!({ "is_staff": true })),
            (&admin, Some(boss), json!({ "is_superuser": true }), json!({ "is_superuser": true })),
            (
                &admin,
                Some(boss),
                json!({ "is_staff": false, "is_superuser": false }),
                json!({ "is_staff": false, "is_superuser": false }),
            ),
            (&admin, Some(boss), json!({ "is_active": false }), json!({ "is_active": false })),
            (&admin, Some(boss), json!({ "is_active": true }), json!({ "is_active": true })),
        ] {
            let mut fields = fields;
            fields["id"] = json!(id);
            let updated = actor.call(face, "UserService.UpdateUser", fields.clone()).await;
            audit.expect(updated, "user.updated", who, user, change(changed)).await;
            admin.call(face, "UserService.UpdateUser", fields).await.expect(200);
            audit.expect_nothing("the same once more").await;
        }
        let by_admin = [
            (
                "RoleService.AddUserRole",
                json!({ "id": id, "role": "seller" }),
                "user.updated",
                change(json!({ "is_seller": true })),
                user,
            ),
            (
                "RoleService.RemoveUserRole",
                json!({ "id": id, "role": "seller" }),
                "user.updated",
                change(json!({ "is_seller": false })),
                user,
            ),
            (
                "RoleService.GrantPermission",
                json!({ "id": id, "permission": "shop.buy" }),
                "user.permission_granted",
                json!({ "permission": "shop.buy" }),
                user,
            ),
            (
                "RoleService.RevokePermission",
                json!({ "id": id, "permission": "shop.buy" }),
                "user.permission_revoked",
                json!({ "permission": "shop.buy" }),
                user,
            ),
            ("RoleService.CreateGroup", json!({ "name": "Help" }), "group.created", json!({ "group": "Help" }), None),
            (
                "RoleService.UpdateGroup",
                json!({ "id": 1, "name": "Support" }),
                "group.renamed",
                json!({ "group": "Support" }),
                None,
            ),
            (
                "RoleService.AddGroupPermission",
                json!({ "id": 1, "permission": "shop.refund" }),
                "group.permission_added",
                json!({ "group": "Support", "permission": "shop.refund" }),
                None,
            ),
            (
                "RoleService.AddGroupMember",
                json!({ "id": 1, "user_id": id }),
                "group.member_added",
                json!({ "group": "Support" }),
                user,
            ),
            (
                "RoleService.RemoveGroupMember",
                json!({ "id": 1, "user_id": id }),
                "group.member_removed",
                json!({ "group": "Support" }),
                user,
            ),
            (
                "RoleService.RemoveGroupPermission",
                json!({ "id": 1, "permission": "shop.refund" }),
                "group.permission_removed",
                json!({ "group": "Support", "permission": "shop.refund" }),
                None,
            ),
            ("RoleService.DeleteGroup", json!({ "id": 1 }), "group.deleted", json!({ "group": "Support" }), None),
            // To read what is recorded of others, and to take it along, is worth a row as well.
            ("UserService.ExportUser", json!({ "id": id }), "user.exported", none(), user),
            ("AuditService.ListUserActivity", json!({ "id": id }), "audit.read", none(), user),
            ("AuditService.ListAuditEvents", json!({}), "audit.read", none(), None),
            ("AuditService.ListAuditEvents", json!({ "user_id": id }), "audit.read", none(), user),
        ];
        let stranger = service.user("stranger@example.com").await;
        audit.news().await;
        for (rpc, fields, kind, detail, whom) in by_admin {
            stranger.call(face, rpc, fields.clone()).await.expect(403);
            audit.expect_nothing("a refusal").await;
            audit.expect(admin.call(face, rpc, fields).await, kind, Some(boss), whom, detail).await;
        }
        stranger.call(face, "AuditService.ListUserActivity", json!({ "id": user_id(&stranger) })).await.expect(200);
        audit.expect_nothing("one's own activity").await;
        assert_eq!(login("wrong-Passw0rd").await.status, 404, "the address is another");
        audit.expect_nothing("a login that failed").await;
        let gone = admin.call(face, "UserService.DeleteUser", json!({ "id": id })).await;
        audit.expect(gone, "user.deleted", Some(boss), user, none()).await;

        let imported = crate::import::import(service, &[json!({ "email": "imported@example.com" })]).await;
        let rows = audit.news().await;
        assert_eq!((imported.made, rows[0].actor_id, rows[0].ip.as_deref()), (1, None, None), "{rows:?}");

        // What takes a setting of its own is in `adoption.rs`.
        audit.seen.insert("session.adopted".into());
        assert_eq!(audit.seen, kinds(), "a kind that the contract doesn't name, or that was not walked through");
    })
    .await;
}

/// As many sessions of the user as there may be.
async fn crowd(service: &Service, user_id: i64) {
    let now = service.clock.now();
    let one = |_| session::ActiveModel {
        id: Set(Uuid::new_v4()),
        user_id: Set(user_id),
        generation: Set(1),
        created_at: Set(now),
        rotated_at: Set(now),
        expires_at: Set(now + Duration::days(7)),
        ends_at: Set(now + Duration::days(30)),
        revoked_at: Set(None),
        ip: Set(None),
        user_agent: Set(None),
    };
    let tx = service.app.db.begin().await.unwrap();
    session::Entity::insert_many((0..MAX_SESSIONS).map(one)).exec_without_returning(&tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// Line 57. The row is in the transaction of the change: without the one there is not the other.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_recorded_does_not_happen() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user(EMAIL).await;
        let (id, boss) = (user_id(&user), user_id(&admin));
        admin.call(Face::Rest, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
        execute(
            service,
            "CREATE TRIGGER no_audit BEFORE INSERT ON audit_events BEGIN SELECT RAISE(ABORT, 'no'); END",
            "CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
             CREATE TRIGGER no_audit BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION no_audit()",
        )
        .await;
        let before = state(service).await;
        let credentials = json!({ "email": EMAIL, "password": PASSWORD });
        let calls = [
            (&user, "AuthService.Register", json!({ "email": "new@example.com", "password": PASSWORD })),
            (&user, "AuthService.Login", credentials),
            (&user, "AuthService.ChangePassword", json!({ "old_password": PASSWORD, "new_password": NEW_PASSWORD })),
            (&user, "UserService.UpdateUser", json!({ "id": id, "first_name": "Joan" })),
            (&admin, "UserService.CreateUser", json!({ "email": "new@example.com", "password": PASSWORD })),
            (&admin, "UserService.UpdateUser", json!({ "id": id, "is_staff": true })),
            (&admin, "RoleService.AddUserRole", json!({ "id": id, "role": "moderator" })),
            (&admin, "RoleService.GrantPermission", json!({ "id": id, "permission": "shop.buy" })),
            (&admin, "RoleService.CreateGroup", json!({ "name": "Help" })),
            (&admin, "RoleService.UpdateGroup", json!({ "id": 1, "name": "Help" })),
            (&admin, "RoleService.AddGroupPermission", json!({ "id": 1, "permission": "shop.buy" })),
            (&admin, "RoleService.AddGroupMember", json!({ "id": 1, "user_id": boss })),
            (&admin, "RoleService.DeleteGroup", json!({ "id": 1 })),
            (&admin, "UserService.ExportUser", json!({ "id": id })),
            (&admin, "AuditService.ListAuditEvents", json!({})),
            (&admin, "AuditService.ListUserActivity", json!({ "id": id })),
            (&admin, "UserService.DeleteUser", json!({ "id": id })),
            (&user, "AuthService.Logout", json!({})),
        ];
        for (actor, rpc, fields) in calls {
            let refused = actor.call(Face::Rest, rpc, fields).await;
            assert_eq!((refused.status, refused.answer), (500, Value::Null), "{rpc}");
            assert_eq!(state(service).await, before, "{rpc}");
        }
        user.call(Face::Rest, "ProfileService.GetMyProfile", json!({})).await.expect(200);
    })
    .await;
}

async fn execute(service: &Service, on_sqlite: &str, on_postgres: &str) {
    let tx = service.app.db.begin().await.unwrap();
    let sql = if tx.get_database_backend() == DbBackend::Sqlite { on_sqlite } else { on_postgres };
    tx.execute_unprepared(sql).await.unwrap();
    tx.commit().await.unwrap();
}

/// Line 57. The database itself refuses it, whoever asks; only that the traces of a row are taken away, all at once, is let
/// through, for those of a user who was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_audit_says_stands() {
    on_each_store(async |service| {
        let user = service.user(EMAIL).await;
        service.login(EMAIL).await;
        let try_to = async |set: &str| {
            let tx = service.app.db.begin().await.unwrap();
            let done = tx.execute_unprepared(&format!("UPDATE audit_events SET {set}")).await;
            if done.is_ok() {
                tx.commit().await.unwrap();
            }
            done.map(|done| done.rows_affected()).map_err(|refused| refused.to_string())
        };
        for set in [
            "kind = 'session.ended'",
            "actor_id = NULL",
            "user_id = 7",
            "ip = '192.0.2.1'",
            "ip = NULL",
            "user_agent = NULL, request_id = NULL",
            "detail = '[]'",
            "created_at = '2020-01-01T00:00:00+00:00'",
            "id = id + 100",
            "ip = NULL, user_agent = NULL, request_id = NULL, actor_id = 7",
        ] {
            let refused = try_to(set).await.expect_err(set);
            assert!(refused.contains("what the audit says stands"), "{set}: {refused}");
        }
        assert_eq!(try_to("ip = NULL, user_agent = NULL, request_id = NULL").await, Ok(2));
        let activity = user.call(Face::Rest, "AuditService.ListUserActivity", json!({ "id": user_id(&user) })).await;
        assert_eq!(activity.expect(200)["results"][0]["kind"], "session.began");
    })
    .await;
}

/// Line 57. Rows leave the audit by their age alone, see `housekeeping.rs`; and no file but these speaks to its table.
#[test]
fn only_four_files_know_the_table_of_the_audit_and_one_removes_from_it() {
    let mut open = vec![std::path::PathBuf::from("src")];
    let mut found = BTreeSet::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix("src").unwrap().to_str().unwrap().to_owned();
        let squeezed: String = text.split_whitespace().collect();
        for change in ["audit_event::Entity::delete", "audit_event::Entity::update", "remove::<audit_event::Entity>"] {
            if squeezed.contains(change) {
                found.insert(format!("{change} in {file}"));
            }
        }
        let in_sql =
            ["FROM", "INTO", "UPDATE", "TABLE"].iter().any(|word| squeezed.contains(&format!("{word}audit_events")));
        assert!(!in_sql, "{file} has SQL of its own for the audit");
        let names_it = squeezed.contains("audit_event::") || squeezed.contains("audit_event,");
        if names_it {
            found.insert(file);
        }
    }
    let expected = [
        "audit_event::Entity::update in domain/erasure.rs",
        "domain/audit.rs",
        "domain/erasure.rs",
        "domain/housekeeping.rs",
        "domain/trail.rs",
        "remove::<audit_event::Entity> in domain/housekeeping.rs",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

// Reading it.

/// Three users, each of whom did something; the clock moves on with each.
async fn story(service: &Service) -> (Actor, Vec<DateTime<Utc>>) {
    let admin = service.admin("admin@example.com").await;
    let mut times = Vec::new();
    for n in 0..3 {
        service.clock.advance(Duration::minutes(1));
        times.push(service.clock.now());
        let email = format!("user{n}@example.com");
        let user = service.user(&email).await;
        service.login(&email).await.call(Face::Rest, "AuthService.Logout", json!({})).await.expect(200);
        let fields = json!({ "id": user_id(&user), "is_seller": true });
        admin.call(Face::Rest, "UserService.UpdateUser", fields).await.expect(200);
    }
    service.clock.advance(Duration::minutes(1));
    times.push(service.clock.now());
    (admin, times)
}

async fn list(admin: &Actor, face: Face, fields: Value) -> Vec<Value> {
    let page = admin.call(face, "AuditService.ListAuditEvents", fields).await.expect(200);
    page["results"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_list_what_happened_by_user_actor_kind_and_time_the_newest_first() {
    everywhere(async |service, face| {
        let (admin, times) = story(service).await;
        let told = |events: &[Value]| {
            let number = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let one = |e: &Value| {
                format!("{} {} {}", e["kind"].as_str().unwrap(), number(&e["actor_id"]), number(&e["user_id"]))
            };
            events.iter().map(one).collect::<Vec<_>>()
        };
        let of = async |fields: Value| told(&list(&admin, face, fields).await);
        let of_two = of(json!({ "user_id": 2, "until": times[3].to_rfc3339() })).await;
        assert_eq!(of_two, ["user.updated 1 2", "session.ended 2 2", "session.began 2 2", "user.registered 2 2"]);
        assert_eq!(
            of(json!({ "actor_id": 1, "kind": "user" })).await,
            ["user.updated 1 4", "user.updated 1 3", "user.updated 1 2"]
        );
        assert_eq!(
            of(json!({ "kind": "session.ended" })).await,
            ["session.ended 4 4", "session.ended 3 3", "session.ended 2 2"]
        );
        let (since, until) = (times[1].to_rfc3339(), times[2].to_rfc3339());
        let second = of(json!({ "since": since, "until": until })).await;
        assert_eq!(second, ["user.updated 1 3", "session.ended 3 3", "session.began 3 3", "user.registered 3 3"]);
        let sessions = of(json!({ "kind": "session", "since": since, "until": until })).await;
        assert_eq!(sessions, ["session.ended 3 3", "session.began 3 3"]);
        assert_eq!(of(json!({ "user_id": 3, "kind": "session.began" })).await, ["session.began 3 3"]);
        assert_eq!(of(json!({ "user_id": 999, "kind": "session" })).await, [""; 0]);

        let ask = async |fields: Value| admin.call(face, "AuditService.ListAuditEvents", fields).await;
        for kind in ["", "sess", "session.", "session.began ", "user.x"] {
            let wrong = ask(json!({ "kind": kind })).await.expect_field(400, "kind");
            assert_eq!(wrong, ["There is no such kind of event."], "{kind}");
        }
        for kind in kinds().iter().flat_map(|kind| [kind.as_str(), kind.split('.').next().unwrap()]) {
            ask(json!({ "kind": kind })).await.expect(200);
        }
        for time in
            ["yesterday", "2026-11-23", "2026-13-01T00:00:00Z", "", "10000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"]
        {
            let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("since", time).finish();
            let answer = admin.request(Method::GET, &format!("/api/audit/events/?{query}")).send().await.unwrap();
            outcome_of(answer).await.expect_field(400, "since");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_without_gap_or_repetition_while_more_happens() {
    everywhere(async |service, face| {
        let (admin, _) = story(service).await;
        for filter in [json!({}), json!({ "kind": "session" }), json!({ "actor_id": 1, "kind": "user" })] {
            let with = |page_size: i64, token: &Value| {
                let mut fields = filter.clone();
                fields["page_size"] = json!(page_size);
                fields["page_token"] = token.clone();
                fields
            };
            let ask = async |fields: Value| admin.call(face, "AuditService.ListAuditEvents", fields).await;
            let first = ask(with(2, &json!(""))).await.expect(200);
            let all = list(&admin, face, with(100, &first["next_page_token"])).await;
            let (mut token, mut paged) = (first["next_page_token"].clone(), Vec::new());
            while token != "" {
                if paged.is_empty() {
                    service.login("user0@example.com").await;
                }
                let page = ask(with(2, &token)).await.expect(200);
                let events = page["results"].as_array().unwrap();
                assert!(events.len() == 2 || page["next_page_token"] == "", "{page}");
                paged.extend(events.iter().map(|event| event["id"].clone()));
                token = page["next_page_token"].clone();
            }
            assert_eq!(paged, all.iter().map(|event| event["id"].clone()).collect::<Vec<_>>(), "{filter}");
            assert!(!all.is_empty(), "{filter}");

            // The link leads to the same place, and the token to no other list.
            let next = first["next"].as_str().unwrap();
            let there = admin.http.get(next).bearer_auth(admin.access_token.as_ref().unwrap()).send().await.unwrap();
            let there = outcome_of(there).await.expect(200);
            assert_eq!(there["results"].as_array().unwrap().len(), all.len().min(2), "{next}");
            let elsewhere = json!({ "user_id": 2, "page_token": first["next_page_token"] });
            ask(elsewhere).await.expect_field(400, "page_token");
            let activity = json!({ "id": 2, "page_token": first["next_page_token"] });
            let activity = admin.call(face, "AuditService.ListUserActivity", activity).await;
            activity.expect_field(400, "page_token");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_sees_what_happened_to_the_own_account_but_not_where_administrators_are() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user(EMAIL).await;
        let id = user_id(&user);
        let old = user.refresh_token.clone();
        user.call(face, "AuthService.RefreshToken", json!({ "refresh_token": old })).await.expect(200);
        service.clock.advance(Duration::minutes(1));
        user.call(face, "AuthService.RefreshToken", json!({ "refresh_token": old })).await.expect(401);
        let user = service.login(EMAIL).await;
        let change = json!({ "id": id, "is_seller": true, "last_name": "Roe" });
        admin.call(face, "UserService.UpdateUser", change).await.expect(200);
        let activity = user.call(face, "AuditService.ListUserActivity", json!({ "id": id })).await.expect(200);
        let told: Vec<_> = activity["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let [kind, by, ip] = ["kind", "by", "ip"].map(|key| entry[key].as_str().unwrap_or("-"));
                assert_eq!(
                    entry["user_agent"].is_null(),
                    by == "administrator" || entry["user_agent"].is_null(),
                    "{entry}"
                );
                format!("{kind} by {by} from {ip}")
            })
            .collect();
        assert_eq!(
            told,
            [
                "user.updated by administrator from -",
                "session.began by self from 127.0.0.1",
                "session.refresh_token_reused by unknown from 127.0.0.1",
                "user.registered by self from 127.0.0.1",
            ]
        );
        assert!(!activity.to_string().contains("actor"), "{activity}");
        let changed = &activity["results"][0]["detail"]["changed"];
        assert_eq!(changed[0], json!({ "field": "is_seller", "value": true }));
        assert!(changed[1]["field"] == "last_name" && changed[1]["value"].is_null(), "{changed}");
        // An admin sees the same, and that he or she looked.
        let seen = admin.call(face, "AuditService.ListUserActivity", json!({ "id": id })).await.expect(200);
        assert_eq!(seen["results"][0]["kind"], "audit.read");
        assert_eq!(seen["results"].as_array().unwrap()[1..], activity["results"].as_array().unwrap()[..]);
        let own = admin.call(face, "AuditService.ListUserActivity", json!({ "id": user_id(&admin) })).await.expect(200);
        assert_eq!(own["results"][1]["by"], "operator", "{own}");
        admin.call(face, "AuditService.ListUserActivity", json!({ "id": 999 })).await.expect(404);
    })
    .await;
}

/// No list of the audit walks through all of it.
#[tokio::test(flavor = "multi_thread")]
async fn each_filter_is_served_by_an_index_in_its_order() {
    on_each_store(async |service| {
        let now = service.clock.now();
        let one = |n: i64| audit_event::ActiveModel {
            kind: Set(["session.began", "session.ended", "user.updated"][usize::try_from(n % 3).unwrap()].into()),
            actor_id: Set(Some(n % 50)),
            user_id: Set(Some(n % 50)),
            ip: Set(None),
            user_agent: Set(None),
            request_id: Set(None),
            detail: Set("{}".into()),
            created_at: Set(now + Duration::seconds(n)),
            ..Default::default()
        };
        let tx = service.app.db.begin().await.unwrap();
        for from in (0..20_000).step_by(1000) {
            audit_event::Entity::insert_many((from..from + 1000).map(one)).exec_without_returning(&tx).await.unwrap();
        }
        tx.commit().await.unwrap();
        let db = service.app.db.reader();
        let backend = db.get_database_backend();
        if backend == DbBackend::Postgres {
            db.execute_unprepared("VACUUM ANALYZE audit_events").await.unwrap();
        }
        let kinds = |raw: &str| Some(Kinds::parse(raw).unwrap());
        let (since, after) = (Some(now + Duration::seconds(100)), (now + Duration::seconds(15_000), 15_000));
        let any = Filter::default;
        for (filter, index) in [
            (any(), "audit_events_by_time"),
            (Filter { since, ..any() }, "audit_events_by_time"),
            (Filter { user_id: Some(7), ..any() }, "audit_events_by_user"),
            (Filter { user_id: Some(7), since, kinds: kinds("session"), ..any() }, "audit_events_by_user"),
            (Filter { actor_id: Some(7), ..any() }, "audit_events_by_actor"),
            (Filter { kinds: kinds("session.began"), since, ..any() }, "audit_events_by_kind"),
            (Filter { kinds: kinds("group"), ..any() }, "audit_events_by_kind"),
        ] {
            for after in [None, Some(after)] {
                let query = filter.select(after, 21).build(backend);
                let (explain, column) = match backend {
                    DbBackend::Sqlite => ("EXPLAIN QUERY PLAN", "detail"),
                    _ => ("EXPLAIN", "QUERY PLAN"),
                };
                let asked = Statement { sql: format!("{explain} {}", query.sql), ..query };
                let rows = db.query_all_raw(asked).await.unwrap();
                let plan: Vec<String> = rows.iter().map(|row| row.try_get("", column).unwrap()).collect();
                let plan = plan.join("\n");
                assert!(plan.contains(index), "{filter:?} without {index}:\n{plan}");
                assert!(!plan.contains("Seq Scan") && !plan.lines().any(|l| l.trim() == "SCAN audit_events"), "{plan}");
            }
        }
        assert_eq!(audit_event::Entity::find().count(db).await.unwrap(), 20_000);
    })
    .await;
}
