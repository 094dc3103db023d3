//! Two faces, one set of handlers: an rpc that has a REST route does the same on both, and refuses the same.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use identity::{
    entity::{group, group_permission, outbox, profile, session, user, user_group, user_permission},
    model::role::Roles,
};
use reqwest::Method;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, PASSWORD, Service, Store,
    actor::{Outcome, contract, route},
    wait_until,
};

/// Every rpc of the contract, as `Service.Rpc`.
pub fn rpcs() -> &'static [String] {
    static RPCS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let services = contract().services().filter(|s| s.package_name() == "identity.v1");
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        methods.map(|m| format!("{}.{}", m.parent_service().name(), m.name())).collect()
    });
    &RPCS
}

/// Every rpc that has a REST route, with its verb and its path, the path's variables filled with something that fits.
pub fn rest_routes() -> Vec<(&'static str, Method, String)> {
    let routes = rpcs().iter().filter_map(|rpc| route(rpc).map(|(method, path, _)| (rpc.as_str(), method, path)));
    routes
        .map(|(rpc, method, path)| {
            let path = path.replace("{id}", "1").replace("{user_id}", "1").replace("{role}", "seller");
            let path = path.replace("{permission}", "shop.refund");
            assert!(!path.contains('{'), "{rpc}: say here what fits into {path}");
            (rpc, method, path)
        })
        .collect()
}

/// What is different each time, on one face too. Links name the port.
const VOLATILE: [&str; 21] = [
    "access_token",
    "refresh_token",
    "token",
    "code",
    "sid",
    "exp",
    "date_joined",
    "updated_at",
    "next",
    "previous",
    "next_page_token",
    "occurred_at",
    "user_agent",
    "request_id",
    "exported_at",
    "last_login",
    "began_at",
    "refreshed_at",
    "expires_at",
    "last_login_at",
    "created_at",
];

/// Who calls, with which fields, one after the other. `None`: nobody thought of this rpc yet.
#[expect(clippy::too_many_lines, reason = "some for each rpc")]
async fn calls(rpc: &str, service: &Service) -> Option<Vec<(Actor, Value)>> {
    let user = service.user("user@example.com").await;
    let stranger = service.user("stranger@example.com").await;
    let admin = service.admin("admin@example.com").await;
    let anonymous = service.anonymous();
    let with = |actor: &Actor, fields: Value| (actor.clone(), fields);
    let tokens = json!({ "access": user.access_token, "refresh": user.refresh_token });
    Some(match rpc {
        "AuthService.Register" => vec![
            with(&anonymous, json!({ "email": "New@Example.com", "password": PASSWORD, "first_name": " Joan " })),
            with(&anonymous, json!({ "email": "new@example.com", "password": PASSWORD })),
            with(&anonymous, json!({})),
            with(&anonymous, json!({ "email": "no address", "password": "short", "last_name": "\u{0}" })),
            with(&anonymous, json!({ "email": "", "password": "" })),
        ],
        "AuthService.Login" => vec![
            with(&anonymous, json!({ "email": "USER@example.com", "password": PASSWORD })),
            with(&anonymous, json!({ "email": "user@example.com", "password": "wrong" })),
            with(&anonymous, json!({ "email": "nobody@example.com", "password": PASSWORD })),
            with(&anonymous, json!({ "email": "user@example.com" })),
            with(&anonymous, json!({ "email": "x", "password": "" })),
        ],
        "AuthService.RefreshToken" => vec![
            with(&anonymous, json!({ "refresh_token": tokens["refresh"] })),
            with(&anonymous, json!({ "refresh_token": tokens["refresh"] })),
            with(&anonymous, json!({ "refresh_token": tokens["access"] })),
            with(&anonymous, json!({ "refresh_token": "nonsense" })),
            with(&anonymous, json!({ "refresh_token": "" })),
            with(&anonymous, json!({})),
        ],
        "AuthService.Logout" => vec![
            with(&anonymous, json!({})),
            with(&user, json!({})),
            with(&user, json!({})),
            with(&stranger.with_token("nonsense"), json!({})),
        ],
        "AuthService.SendVerification" => {
            vec![
                with(&anonymous, json!({})),
                with(&user, json!({})),
                with(&user, json!({})),
                with(&stranger, json!({})),
            ]
        }
        "AuthService.VerifyEmail" => {
            let code = service.code_mailed_to("user@example.com", 1).await;
            vec![
                with(&anonymous, json!({ "email": "user@example.com", "code": "no code" })),
                with(&anonymous, json!({ "email": "nobody@example.com", "code": code })),
                with(&anonymous, json!({ "email": "User@example.com", "code": code })),
                with(&anonymous, json!({ "email": "user@example.com", "code": code })),
                with(&anonymous, json!({ "email": "no address" })),
            ]
        }
        "AuthService.VerifyToken" => vec![
            with(&anonymous, json!({ "token": tokens["access"] })),
            with(&anonymous, json!({ "token": tokens["refresh"] })),
            with(&anonymous, json!({ "token": "nonsense" })),
            with(&anonymous, json!({ "token": " " })),
            with(&anonymous, json!({})),
        ],
        "UserService.ListUsers" => {
            vec![
                with(&anonymous, json!({})),
                with(&user, json!({})),
                with(&admin, json!({ "ordering": "-email", "page_size": 2 })),
                with(&admin, json!({ "ordering": "-email", "page_size": 2, "page": 2 })),
                with(&admin, json!({ "search": "STRANGER, @example", "role": "seller", "is_verified": false })),
                with(&admin, json!({ "role": "admin", "is_verified": true, "page_size": 0 })),
                with(&user, json!({ "ordering": "email" })),
                with(&user, json!({ "search": "\u{0}", "role": "boss", "page": 0 })),
                with(&admin, json!({ "group": 1 })),
                with(&user, json!({ "group": 1 })),
                with(&user, json!({ "page": -1 })),
                with(&user, json!({ "page": i64::MAX, "page_size": i64::MIN })),
            ]
        }
        "UserService.GetUser" => vec![
            with(&anonymous, json!({ "id": 1 })),
            with(&user, json!({ "id": 1 })),
            with(&stranger, json!({ "id": 1 })),
            with(&user, json!({ "id": 0 })),
            with(&user, json!({ "id": 999 })),
            with(&user, json!({ "id": i64::MAX })),
            with(&user, json!({ "id": i64::MIN })),
        ],
        "ProfileService.GetMyProfile" => vec![with(&anonymous, json!({})), with(&user, json!({}))],
        "ProfileService.GetProfile" => vec![
            with(&anonymous, json!({ "user_id": 1 })),
            with(&user, json!({ "user_id": 1 })),
            with(&stranger, json!({ "user_id": 1 })),
            with(&user, json!({ "user_id": 999 })),
        ],
        "ProfileService.UpdateMyProfile" => vec![
            with(&anonymous, json!({ "bio": "x" })),
            with(&user, json!({})),
            with(&user, json!({ "bio": "About me", "is_public": false, "timezone": "europe/moscow" })),
            with(&user, json!({ "bio": "", "streak_visibility": false })),
            with(&user, json!({ "bio": "\u{7}", "timezone": "" })),
            with(&user, json!({ "bio": "x".repeat(1001), "timezone": "Nowhere" })),
        ],
        "UserService.ExportUser" => {
            // What is exported of a message says whether it was sent.
            all_are_sent(service).await;
            vec![
                with(&user, json!({ "id": 1 })),
                with(&stranger, json!({ "id": 1 })),
                with(&admin, json!({ "id": 1 })),
                with(&admin, json!({ "id": 999 })),
            ]
        }
        _ => return user_calls(rpc, &user, &stranger, &admin).or_else(|| group_calls(rpc, &user, &admin)),
    })
}

/// The user's id is 1, the stranger's 2, the admin's 3.
fn user_calls(rpc: &str, user: &Actor, stranger: &Actor, admin: &Actor) -> Option<Vec<(Actor, Value)>> {
    let with = |actor: &Actor, fields: Value| (actor.clone(), fields);
    Some(match rpc {
        "AuthService.ChangePassword" => vec![
            with(user, json!({})),
            with(user, json!({ "old_password": "wrong", "new_password": "N3w-Passw0rd!" })),
            with(user, json!({ "old_password": PASSWORD, "new_password": "short" })),
            with(user, json!({ "old_password": PASSWORD, "new_password": "User@Example.com" })),
            with(user, json!({ "old_password": PASSWORD, "new_password": "N3w-Passw0rd!" })),
            with(user, json!({ "old_password": PASSWORD, "new_password": "N3w-Passw0rd!" })),
        ],
        "UserService.CreateUser" => vec![
            with(user, json!({ "email": "new@example.com", "password": PASSWORD })),
            with(admin, json!({ "email": "New@Example.com", "password": PASSWORD, "is_seller": true })),
            with(admin, json!({ "email": "new@example.com", "password": PASSWORD })),
            with(admin, json!({ "email": "x", "password": "short", "first_name": "\u{0}" })),
            with(admin, json!({ "is_active": false })),
            with(admin, json!({ "email": "off@example.com", "password": PASSWORD, "is_active": false })),
        ],
        "UserService.UpdateUser" => vec![
            with(user, json!({ "id": 1 })),
            with(user, json!({ "id": 1, "first_name": " Joan ", "last_name": "" })),
            with(user, json!({ "id": 1, "is_seller": true })),
            with(user, json!({ "id": 1, "is_seller": false })),
            with(user, json!({ "id": 1, "is_staff": true })),
            with(stranger, json!({ "id": 1, "first_name": "x" })),
            with(stranger, json!({ "id": 999, "first_name": "x" })),
            with(admin, json!({ "id": 999, "first_name": "x" })),
            with(admin, json!({ "id": 1, "email": "stranger@example.com" })),
            with(admin, json!({ "id": 1, "email": "no address", "first_name": "\u{1}" })),
            with(admin, json!({ "id": 1, "email": "Other@Example.com", "is_moderator": true, "is_active": false })),
            with(admin, json!({ "id": 3, "is_superuser": false })),
        ],
        "UserService.DeleteUser" => vec![
            with(stranger, json!({ "id": 1 })),
            with(admin, json!({ "id": 999 })),
            with(admin, json!({ "id": 3 })),
            with(user, json!({ "id": 1 })),
            with(user, json!({ "id": 1 })),
            with(admin, json!({ "id": 2 })),
        ],
        "AuditService.ListAuditEvents" => vec![
            with(user, json!({})),
            with(admin, json!({})),
            with(admin, json!({ "kind": "session", "page_size": 1 })),
            with(admin, json!({ "user_id": 3, "actor_id": 3, "kind": "session.began" })),
            with(admin, json!({ "since": "2000-01-01T00:00:00Z", "until": "2000-01-01T00:00:00.5Z" })),
            with(admin, json!({ "kind": "nonsense", "user_id": -1 })),
            with(admin, json!({ "page_token": "nonsense" })),
            with(admin, json!({ "page_size": i64::MIN, "actor_id": i64::MAX })),
        ],
        "AuditService.ListUserActivity" => vec![
            with(user, json!({ "id": 1 })),
            with(user, json!({ "id": 2 })),
            with(admin, json!({ "id": 1, "page_size": 1 })),
            with(admin, json!({ "id": 999 })),
            with(user, json!({ "id": 1, "page_token": "nonsense" })),
        ],
        "RoleService.GetUserRoles" => vec![
            with(user, json!({ "id": 1 })),
            with(stranger, json!({ "id": 1 })),
            with(admin, json!({ "id": 3 })),
            with(admin, json!({ "id": 999 })),
        ],
        "RoleService.AddUserRole" => vec![
            with(user, json!({ "id": 1, "role": "seller" })),
            with(admin, json!({ "id": 1, "role": "seller" })),
            with(admin, json!({ "id": 1, "role": "seller" })),
            with(admin, json!({ "id": 1, "role": "admin" })),
            with(admin, json!({ "id": 1, "role": "Seller" })),
            with(admin, json!({ "id": 1, "role": "" })),
            with(admin, json!({ "id": 1 })),
            with(admin, json!({ "id": 999, "role": "seller" })),
        ],
        "RoleService.RemoveUserRole" => vec![
            with(admin, json!({ "id": 1, "role": "seller" })),
            with(admin, json!({ "id": 1, "role": "nonsense" })),
            with(admin, json!({ "id": 999, "role": "seller" })),
            with(admin, json!({ "id": 3, "role": "admin" })),
            with(user, json!({ "id": 3, "role": "admin" })),
            with(admin, json!({ "id": 3, "role": "Admin" })),
        ],
        _ => return None,
    })
}

fn group_calls(rpc: &str, user: &Actor, admin: &Actor) -> Option<Vec<(Actor, Value)>> {
    let with = |actor: &Actor, fields: Value| (actor.clone(), fields);
    let long = "x".repeat(151);
    Some(match rpc {
        "RoleService.GetUserPermissions" => vec![
            with(user, json!({ "id": 1 })),
            with(user, json!({ "id": 3 })),
            with(admin, json!({ "id": 1 })),
            with(admin, json!({ "id": 999 })),
        ],
        "RoleService.GrantPermission" => vec![
            with(user, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "users.create_gig" })),
            with(admin, json!({ "id": 1, "permission": "a b" })),
            with(admin, json!({ "id": 1, "permission": "" })),
            with(admin, json!({ "id": 1 })),
            with(admin, json!({ "id": 999, "permission": "shop.refund" })),
        ],
        "RoleService.CreateGroup" => vec![
            with(user, json!({ "name": "Support" })),
            with(admin, json!({ "name": " Support " })),
            with(admin, json!({ "name": "Support" })),
            with(admin, json!({ "name": " " })),
            with(admin, json!({ "name": long })),
            with(admin, json!({ "name": "\u{0}" })),
            with(admin, json!({})),
        ],
        "RoleService.ListGroups" => vec![with(user, json!({})), with(admin, json!({}))],
        "RoleService.GetGroup" => vec![with(admin, json!({ "id": 1 })), with(admin, json!({ "id": 999 }))],
        "RoleService.UpdateGroup" => vec![
            with(admin, json!({ "id": 1, "name": "Editors" })),
            with(admin, json!({ "id": 1, "name": "Taken" })),
            with(admin, json!({ "id": 1, "name": "" })),
            with(admin, json!({ "id": 1 })),
            with(admin, json!({ "id": 999, "name": "x" })),
        ],
        "RoleService.DeleteGroup" => {
            vec![with(user, json!({ "id": 1 })), with(admin, json!({ "id": 1 })), with(admin, json!({ "id": 1 }))]
        }
        "RoleService.AddGroupPermission" => vec![
            with(admin, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "shop." })),
            with(admin, json!({ "id": 1 })),
            with(admin, json!({ "id": 999, "permission": "shop.refund" })),
        ],
        "RoleService.RemoveGroupPermission" | "RoleService.RevokePermission" => vec![
            with(user, json!({ "id": 1, "permission": "shop.buy" })),
            with(admin, json!({ "id": 1, "permission": "shop.refund" })),
            with(admin, json!({ "id": 1, "permission": "shop.buy" })),
            with(admin, json!({ "id": 1, "permission": "shop.buy" })),
            with(admin, json!({ "id": 1, "permission": "a b" })),
            with(admin, json!({ "id": 999, "permission": "shop.buy" })),
        ],
        "RoleService.AddGroupMember" => vec![
            with(user, json!({ "id": 1, "user_id": 1 })),
            with(admin, json!({ "id": 1, "user_id": 1 })),
            with(admin, json!({ "id": 1, "user_id": 999 })),
            with(admin, json!({ "id": 999, "user_id": 1 })),
            with(admin, json!({ "id": 1 })),
        ],
        "RoleService.RemoveGroupMember" => vec![
            with(admin, json!({ "id": 1, "user_id": 3 })),
            with(admin, json!({ "id": 1, "user_id": 3 })),
            with(admin, json!({ "id": 1, "user_id": 999 })),
            with(admin, json!({ "id": 999, "user_id": 1 })),
        ],
        _ => return None,
    })
}

/// Waits until no message waits to be sent.
async fn all_are_sent(service: &Service) {
    wait_until(Duration::from_secs(5), "all messages to be sent", async || {
        let waiting = outbox::Entity::find().filter(outbox::Column::State.eq(outbox::State::Pending));
        waiting.count(service.app.db.reader()).await.unwrap() == 0
    })
    .await;
}

/// A group with a permission and a member, and another; for what is about groups.
async fn make_groups(service: &Service) {
    let admin = service.login("admin@example.com").await;
    let call = async |rpc: &str, fields: Value| admin.call(Face::Grpc, rpc, fields).await.expect(201);
    call("RoleService.CreateGroup", json!({ "name": "Support" })).await;
    call("RoleService.CreateGroup", json!({ "name": "Taken" })).await;
    call("RoleService.AddGroupPermission", json!({ "id": 1, "permission": "shop.buy" })).await;
    call("RoleService.AddGroupMember", json!({ "id": 1, "user_id": 3 })).await;
    call("RoleService.GrantPermission", json!({ "id": 1, "permission": "shop.buy" })).await;
}

/// What is in the tables: what a call left behind.
pub async fn state(service: &Service) -> Value {
    let db = service.app.db.reader();
    let users = user::Entity::find().order_by_asc(user::Column::Id).all(db).await.unwrap();
    let users: Vec<_> = users
        .into_iter()
        .map(|u| json!([u.email, u.first_name, u.last_name, u.listed, u.is_verified, Roles::of(&u).display()]))
        .collect();
    let profiles = profile::Entity::find().order_by_asc(profile::Column::UserId).all(db).await.unwrap();
    let profile = |p: profile::Model| json!([p.user_id, p.bio, p.is_public, p.timezone, p.streak_visibility]);
    let profiles: Vec<_> = profiles.into_iter().map(profile).collect();
    let sessions = session::Entity::find().all(db).await.unwrap();
    let mut sessions: Vec<_> =
        sessions.iter().map(|s| format!("{} {} {}", s.user_id, s.generation, s.revoked_at.is_some())).collect();
    sessions.sort();
    let groups: Vec<_> = group::Entity::find().order_by_asc(group::Column::Id).all(db).await.unwrap();
    let groups: Vec<_> = groups.into_iter().map(|g| json!([g.id, g.name])).collect();
    let members = user_group::Entity::find().all(db).await.unwrap();
    let allowed = group_permission::Entity::find().all(db).await.unwrap();
    let granted = user_permission::Entity::find().all(db).await.unwrap();
    let links = [format!("{members:?}"), format!("{allowed:?}"), format!("{granted:?}")];
    json!({ "users": users, "profiles": profiles, "sessions": sessions, "groups": groups, "links": links })
}

/// What both faces must agree on.
pub fn told(outcome: Outcome) -> (u16, Value, BTreeMap<String, Vec<String>>, Option<u64>) {
    let mut answer = outcome.answer;
    steady(&mut answer);
    if answer == json!({}) {
        answer = Value::Null; // gRPC's empty message, and REST's empty body
    }
    (outcome.status, answer, outcome.fields, outcome.retry_after)
}

/// Without what is different each time, and without nulls: gRPC leaves out what REST writes as null.
fn steady(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| !VOLATILE.contains(&key.as_str()) && !value.is_null());
            fields.values_mut().for_each(steady);
        }
        Value::Array(items) => items.iter_mut().for_each(steady),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_does_the_same_on_both_faces() {
    if Store::all().contains(&Store::Sqlite) {
        compare_faces(Store::Sqlite).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_does_the_same_on_both_faces_over_postgresql() {
    if Store::all().contains(&Store::Postgres) {
        compare_faces(Store::Postgres).await;
    }
}

async fn compare_faces(store: Store) {
    for (rpc, ..) in rest_routes() {
        let mut told_by = Vec::new();
        for face in Face::ALL {
            let service = Service::start(store).await;
            let calls = calls(rpc, &service).await;
            if rpc.contains("Group") && rpc != "RoleService.CreateGroup" || rpc.contains("Permission") {
                make_groups(&service).await;
            }
            if rpc == "RoleService.RemoveUserRole" {
                let role = json!({ "id": 1, "role": "seller" });
                let admin = service.login("admin@example.com").await;
                admin.call(face, "RoleService.AddUserRole", role).await.expect(201);
            }
            let calls = calls.unwrap_or_else(|| panic!("{rpc} has a REST route: give it calls here"));
            let mut outcomes = Vec::new();
            for (actor, fields) in calls {
                let outcome = told(actor.call(face, rpc, fields.clone()).await);
                outcomes.push((without_secrets(&fields), outcome, state(&service).await));
            }
            assert!(outcomes.iter().any(|(_, (status, ..), _)| *status < 300), "{rpc} never succeeds here");
            told_by.push(outcomes);
            service.stop().await;
        }
        let grpc = told_by.pop().unwrap();
        let rest = told_by.pop().unwrap();
        for (rest, grpc) in rest.into_iter().zip(grpc) {
            assert_eq!(rest, grpc, "{rpc} on {store:?}: REST, then gRPC");
        }
    }
}

fn without_secrets(fields: &Value) -> Value {
    let mut fields = fields.clone();
    steady(&mut fields);
    fields
}
