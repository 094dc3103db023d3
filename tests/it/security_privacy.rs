//! Privacy: what is kept of a user can be taken along, and goes when the user does.

use chrono::Duration;
use identity::entity::{audit_event, erasure, outbox, session, user, verification_code};
use reqwest::Method;
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait,
    QueryFilter, Statement,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::{Actor, Face, PASSWORD, Service, Store, actor::outcome_of, everywhere, on_each_store, wait_until},
    user::user_id,
};

const EMAIL: &str = "jane@example.com";

async fn export(actor: &Actor, face: Face, id: i64) -> Value {
    actor.call(face, "UserService.ExportUser", json!({ "id": id })).await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_all_that_is_kept_of_a_user_and_nothing_that_opens_anything() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user(EMAIL).await;
        let id = user_id(&user);
        let code = service.code_mailed_to(EMAIL, 1).await;
        let profile = json!({ "bio": "Paints", "timezone": "Europe/Moscow", "is_public": false });
        user.call(face, "ProfileService.UpdateMyProfile", profile).await.expect(200);
        let group = admin.call(face, "RoleService.CreateGroup", json!({ "name": "Support" })).await.expect(201);
        let member = json!({ "id": group["id"], "user_id": id });
        admin.call(face, "RoleService.AddGroupMember", member).await.expect(201);
        let grant = json!({ "id": id, "permission": "shop.buy" });
        admin.call(face, "RoleService.GrantPermission", grant).await.expect(201);
        service.login(EMAIL).await.call(face, "AuthService.Logout", json!({})).await.expect(200);

        let all = export(&user, face, id).await;
        let account = &all["account"];
        assert_eq!(
            (&account["email"], &account["first_name"], &account["is_superuser"]),
            (&json!(EMAIL), &json!("Jane"), &json!(false))
        );
        assert!(account["last_login"].is_string(), "{account}");
        assert_eq!((&all["profile"]["bio"], &all["profile"]["timezone"]), (&json!("Paints"), &json!("Europe/Moscow")));
        assert_eq!(all["permissions"]["groups"][0]["name"], "Support");
        assert_eq!(all["permissions"]["direct"], json!(["shop.buy"]));
        let sessions = all["sessions"].as_array().unwrap();
        assert_eq!(sessions.len(), 2);
        assert_eq!(sessions.iter().filter(|session| session["ended_at"].is_string()).count(), 1);
        assert!(sessions.iter().all(|session| session["ip"] == "127.0.0.1"), "{sessions:?}");
        assert_eq!(all["known_networks"][0]["network"], "127.0.0.1");
        assert_eq!(all["verifications"][0]["email"], EMAIL);
        assert_eq!(all["messages"][0]["kind"], "verification_code");
        let kinds: Vec<_> =
            all["activity"].as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "user.exported",
                "session.ended",
                "session.began",
                "user.permission_granted",
                "group.member_added",
                "user.registered"
            ]
        );
        assert_eq!(all["truncated"], json!([]));

        let text = all.to_string();
        let db = service.app.db.reader();
        let row = user::Entity::find_by_id(id).one(db).await.unwrap().unwrap();
        let session = session::Entity::find().filter(session::Column::UserId.eq(id)).one(db).await.unwrap().unwrap();
        let kept = [code, row.password.0, session.id.to_string(), service.app.keys.refresh_jti(session.id, 1)];
        for secret in kept.iter().chain([user.access_token.as_ref().unwrap(), user.refresh_token.as_ref().unwrap()]) {
            assert!(!text.contains(secret.as_str()), "{secret} is in {text}");
        }
        for word in ["password\":", "hash", "argon2", "token\"", "payload", "search_text"] {
            assert!(!text.contains(word), "{word} is in {text}");
        }

        // An admin gets the same, but for what has happened since.
        let mut by_admin = export(&admin, face, id).await;
        assert_eq!(by_admin["activity"][0]["by"], "administrator");
        by_admin["activity"].as_array_mut().unwrap().remove(0);
        assert_eq!(by_admin, all);
        let stranger = service.user("stranger@example.com").await;
        for id in [id, 999] {
            stranger.call(face, "UserService.ExportUser", json!({ "id": id })).await.expect(403);
        }
        admin.call(face, "UserService.ExportUser", json!({ "id": 999 })).await.expect(404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_says_of_which_lists_it_has_the_newest_only() {
    on_each_store(async |service| {
        let user = service.user(EMAIL).await;
        let id = user_id(&user);
        let now = service.clock.now();
        let one = |n: i64| session::ActiveModel {
            id: Set(Uuid::new_v4()),
            user_id: Set(id),
            generation: Set(1),
            created_at: Set(now - Duration::seconds(n)),
            rotated_at: Set(now),
            expires_at: Set(now + Duration::days(7)),
            ends_at: Set(now + Duration::days(30)),
            revoked_at: Set(Some(now)),
            ip: Set(Some(format!("2001:db8::{n:x}"))),
            user_agent: Set(Some("x".repeat(255))),
        };
        let tx = service.app.db.begin().await.unwrap();
        session::Entity::insert_many((1..=1000).map(one)).exec_without_returning(&tx).await.unwrap();
        tx.commit().await.unwrap();
        insert_events(service, 1000, id, Some(id)).await;
        for face in Face::ALL {
            let all = export(&user, face, id).await;
            assert_eq!(all["sessions"].as_array().unwrap().len(), 1000);
            assert_eq!(all["activity"].as_array().unwrap().len(), 1000);
            assert_eq!(all["truncated"], json!(["sessions", "activity"]));
            // What a client takes by default in one gRPC message is 4 MiB.
            assert!(all.to_string().len() < 2 << 20, "{}", all.to_string().len());
        }
    })
    .await;
}

async fn insert_events(service: &Service, count: i64, user_id: i64, actor_id: Option<i64>) {
    let now = service.clock.now();
    let one = |n: i64| audit_event::ActiveModel {
        kind: Set("session.began".into()),
        actor_id: Set(actor_id),
        user_id: Set(Some(user_id)),
        ip: Set(Some("203.0.113.77".into())),
        user_agent: Set(Some(format!("Agent/1.0 {}", "x".repeat(240)))),
        request_id: Set(Some("a-request".into())),
        detail: Set("{}".into()),
        created_at: Set(now - Duration::seconds(n)),
        ..Default::default()
    };
    let tx = service.app.db.begin().await.unwrap();
    for from in (0..count).step_by(500) {
        let some = (from..count.min(from + 500)).map(one);
        audit_event::Entity::insert_many(some).exec_without_returning(&tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Of what a user brings along, what nobody else has: in the address, the names, the profile, the headers; and the address that it comes
/// from. In letters of their own, so that not even three of them in a row come from elsewhere.
const CANARIES: [&str; 7] =
    ["qxjvkone", "ѫѯѱѵѷѹѻone", "ѡѣѥѧѩѭtwo", "canary-in-the-bio", "Canary/1.0", "canary-request", "203.0.113.77"];

/// All that is in all tables, in hexadecimal digits, table by table.
async fn everything(service: &Service) -> Vec<(String, String)> {
    let db = service.app.db.reader();
    let backend = db.get_database_backend();
    let texts = async |sql: String| -> Vec<String> {
        let rows = db.query_all_raw(Statement::from_string(backend, sql)).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index::<Option<String>>(0).unwrap().unwrap_or_default()).collect()
    };
    let tables = match backend {
        DbBackend::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'",
        _ => "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'",
    };
    let mut all = Vec::new();
    for table in texts(tables.to_owned()).await {
        let rows = match backend {
            DbBackend::Sqlite => {
                let columns = texts(format!("SELECT name FROM pragma_table_info('{table}')")).await;
                let columns: Vec<_> = columns.iter().map(|column| format!("coalesce(hex(\"{column}\"), '')")).collect();
                texts(format!("SELECT {} FROM {table}", columns.join(" || ' ' || "))).await
            }
            _ => texts(format!("SELECT encode(convert_to(t::text, 'UTF8'), 'hex') FROM {table} t")).await,
        };
        all.push((table, rows.join(" ").to_lowercase()));
    }
    assert!(all.len() > 15, "{all:?}");
    all
}

/// The tables in which the bytes are.
fn places<'a>(all: &'a [(String, String)], bytes: &[u8]) -> Vec<&'a str> {
    let digits = hex::encode(bytes);
    all.iter().filter(|(_, rows)| rows.contains(&digits)).map(|(table, _)| table.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_deleted_leaves_nothing_of_oneself_in_any_table() {
    for store in Store::all() {
        for by_admin in [false, true] {
            let service = Service::start_with(store, &[("TRUSTED_PROXIES", "127.0.0.1")]).await;
            let admin = service.admin("admin@example.com").await;
            let [name, first, last, bio, agent, request_id, ip] = CANARIES;
            let email = format!("{name}@example.com");
            let send = async |actor: &Actor, method: Method, path: &str, fields: Value| {
                let request = actor.coming_from(ip).request(method, path).json(&fields);
                let request = request.header("user-agent", agent).header("x-request-id", request_id);
                outcome_of(request.send().await.unwrap()).await
            };
            let account = json!({ "email": email, "password": PASSWORD, "first_name": first, "last_name": last });
            let mut user = service.anonymous();
            user.take_tokens(&send(&user, Method::POST, "/api/auth/register/", account).await.expect(201));
            let id = user_id(&user);
            service.mails_to(&email, 1).await;
            send(&user, Method::PATCH, "/api/profile/me/", json!({ "bio": bio })).await.expect(200);
            // A row that isn't known to be the user's, but of an attempt upon the account.
            let old = json!({ "refresh_token": user.refresh_token });
            send(&user, Method::POST, "/api/auth/refresh/", old.clone()).await.expect(200);
            service.clock.advance(Duration::minutes(1));
            send(&user, Method::POST, "/api/auth/refresh/", old).await.expect(401);
            let credentials = json!({ "email": email, "password": PASSWORD });
            user.take_tokens(&send(&user, Method::POST, "/api/auth/login/", credentials).await.expect(200));
            // Another's act upon the user, from another place.
            let update = json!({ "id": id, "is_seller": true });
            admin.call(Face::Rest, "UserService.UpdateUser", update).await.expect(200);
            give_up_a_message(&service, id).await;

            let before = everything(&service).await;
            for canary in CANARIES {
                assert!(!places(&before, canary.as_bytes()).is_empty(), "{store:?}: {canary} is nowhere to be found");
            }
            // The index of the search has each three letters, save for the byte that those before have as well.
            let trigram = &first.as_bytes()[1..6];
            if store == Store::Sqlite {
                assert_eq!(
                    places(&before, trigram).last(),
                    Some(&"users_search_data"),
                    "{:?}",
                    places(&before, trigram)
                );
            }
            let gone = if by_admin { &admin } else { &user };
            send(gone, Method::DELETE, &format!("/api/users/{id}/"), json!({})).await.expect(204);

            let after = everything(&service).await;
            assert_eq!(places(&after, trigram), [""; 0], "{store:?}");
            for canary in CANARIES {
                // What the admin did, the admin did from there.
                let of_admin = by_admin && [agent, request_id, ip].contains(&canary);
                let expected: &[&str] = if of_admin { &["audit_events"] } else { &[] };
                assert_eq!(places(&after, canary.as_bytes()), expected, "{store:?} {canary}");
            }
            let db = service.app.db.reader();
            let rows = audit_event::Entity::find().filter(audit_event::Column::UserId.eq(id)).all(db).await.unwrap();
            let told: Vec<_> = rows.iter().map(|row| (row.kind.as_str(), row.actor_id, row.ip.is_some())).collect();
            let (own, boss) = (Some(id), Some(user_id(&admin)));
            assert_eq!(
                told,
                [
                    ("user.registered", own, false),
                    ("session.refresh_token_reused", None, false),
                    ("session.began", own, false),
                    ("user.updated", boss, true),
                    ("user.deleted", if by_admin { boss } else { own }, by_admin),
                ]
            );
            let codes = verification_code::Entity::find().count(db).await.unwrap();
            let messages = outbox::Entity::find().filter(outbox::Column::UserId.eq(id)).count(db).await.unwrap();
            assert_eq!((codes, messages), (0, 0), "{store:?}");
            service.stop().await;
        }
    }
}

/// A letter to the user that nobody took.
async fn give_up_a_message(service: &Service, user_id: i64) {
    let now = service.clock.now();
    let row = outbox::ActiveModel {
        kind: Set("password_changed".into()),
        dedup_id: Set(Uuid::new_v4()),
        payload: Set("sealed".into()),
        user_id: Set(Some(user_id)),
        attempts: Set(1),
        next_attempt_at: Set(now),
        leased_until: Set(None),
        state: Set(outbox::State::Abandoned),
        last_error: Set(Some("no such user here".into())),
        created_at: Set(now),
        ..Default::default()
    };
    let tx = service.app.db.begin().await.unwrap();
    row.insert(&tx).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_must_hear_of_a_deletion_still_goes_out() {
    use crate::harness::receiver::Receiver;
    for store in Store::all() {
        let receiver = Receiver::start().await;
        let service = Service::start_with(store, &[("NOTIFICATION_SERVICE_URL", &receiver.url())]).await;
        let user = service.user(EMAIL).await;
        user.call(Face::Rest, "UserService.DeleteUser", json!({ "id": user_id(&user) })).await.expect(204);
        let received = receiver.take(2, std::time::Duration::from_secs(5)).await;
        let told: Vec<_> = received.iter().map(|event| event.json()["type"].clone()).collect();
        assert_eq!(told, ["user.registered", "user.deleted"], "{store:?}");
        // Of what was sent only that it was sent is kept.
        wait_until(std::time::Duration::from_secs(5), "all is settled", async || {
            let left = outbox::Entity::find().filter(outbox::Column::Payload.ne("")).count(service.app.db.reader());
            left.await.unwrap() == 0
        })
        .await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_trail_housekeeping_takes_the_rest_and_then_forgets_whose_it_was() {
    on_each_store(async |service| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user(EMAIL).await;
        let id = user_id(&user);
        insert_events(service, 2300, id, Some(id)).await;
        insert_events(service, 5, id, None).await;
        insert_events(service, 5, id, Some(user_id(&admin))).await;
        let db = service.app.db.reader();
        let traced = async || {
            let of_user = audit_event::Entity::find().filter(audit_event::Column::UserId.eq(id));
            of_user.filter(audit_event::Column::Ip.is_not_null()).count(db).await.unwrap()
        };
        user.call(Face::Rest, "UserService.DeleteUser", json!({ "id": id })).await.expect(204);
        assert!((1000..2000).contains(&traced().await), "the newest thousand at once: {} are left", traced().await);
        let swept = service.app.sweep().await.unwrap();
        assert_eq!((traced().await, swept.erasures), (5, 0), "those of the administrator stay");
        assert_eq!(erasure::Entity::find().count(db).await.unwrap(), 1);
        service.clock.advance(Duration::minutes(2));
        assert_eq!(service.app.sweep().await.unwrap().erasures, 1);
        assert_eq!(erasure::Entity::find().count(db).await.unwrap(), 0);
        assert_eq!(
            audit_event::Entity::find().filter(audit_event::Column::UserId.eq(id)).count(db).await.unwrap(),
            2312
        );
    })
    .await;
}
