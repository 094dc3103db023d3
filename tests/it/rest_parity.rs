//! Two faces, one set of handlers: an rpc that has a REST route does the same on both, and refuses the same.

use std::{collections::BTreeMap, sync::LazyLock};

use identity::entity::{profile, session, user};
use reqwest::Method;
use sea_orm::{EntityTrait, QueryOrder};
use serde_json::{Value, json};

use crate::harness::{
    Actor, Face, PASSWORD, Service, Store,
    actor::{Outcome, contract, route},
};

/// The rpcs that answer UNIMPLEMENTED so far. One that is built must leave this list, and get calls below.
pub const NOT_BUILT: [&str; 10] = [
    "AuthService.ChangePassword",
    "UserService.ListUsers",
    "UserService.CreateUser",
    "UserService.BatchGetUsers",
    "UserService.UpdateUser",
    "UserService.DeleteUser",
    "RoleService.GetUserRoles",
    "RoleService.AddUserRole",
    "RoleService.RemoveUserRole",
    "RoleService.CheckPermission",
];

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
            assert!(!path.contains('{'), "{rpc}: say here what fits into {path}");
            (rpc, method, path)
        })
        .collect()
}

/// What is different each time, on one face too.
const VOLATILE: [&str; 8] =
    ["access_token", "refresh_token", "token", "code", "sid", "exp", "date_joined", "updated_at"];

/// Who calls, with which fields, one after the other. `None`: nobody thought of this rpc yet.
async fn calls(rpc: &str, service: &Service) -> Option<Vec<(Actor, Value)>> {
    let user = service.user("user@example.com").await;
    let stranger = service.user("stranger@example.com").await;
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
            let mail = service.mails_to("user@example.com", 1).await.remove(0);
            let code: String = mail.text.chars().filter(char::is_ascii_digit).take(6).collect();
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
        _ => return None,
    })
}

/// What a call left behind in the tables.
async fn state(service: &Service) -> Value {
    let db = service.app.db.reader();
    let users = user::Entity::find().order_by_asc(user::Column::Id).all(db).await.unwrap();
    let users: Vec<_> =
        users.into_iter().map(|u| json!([u.email, u.first_name, u.last_name, u.listed, u.is_verified])).collect();
    let profiles = profile::Entity::find().order_by_asc(profile::Column::UserId).all(db).await.unwrap();
    let profile = |p: profile::Model| json!([p.user_id, p.bio, p.is_public, p.timezone, p.streak_visibility]);
    let profiles: Vec<_> = profiles.into_iter().map(profile).collect();
    let sessions = session::Entity::find().all(db).await.unwrap();
    let mut sessions: Vec<_> =
        sessions.iter().map(|s| format!("{} {} {}", s.user_id, s.generation, s.revoked_at.is_some())).collect();
    sessions.sort();
    json!({ "users": users, "profiles": profiles, "sessions": sessions })
}

/// What both faces must agree on.
fn told(outcome: Outcome) -> (u16, Value, BTreeMap<String, Vec<String>>, Option<u64>) {
    let mut answer = outcome.answer;
    steady(&mut answer);
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
    for store in Store::all() {
        for (rpc, ..) in rest_routes().into_iter().filter(|(rpc, ..)| !NOT_BUILT.contains(rpc)) {
            let mut told_by = Vec::new();
            for face in Face::ALL {
                let service = Service::start(store).await;
                let calls = calls(rpc, &service).await;
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
}

fn without_secrets(fields: &Value) -> Value {
    let mut fields = fields.clone();
    steady(&mut fields);
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_says_so_on_both_faces() {
    let service = Service::start(Store::Sqlite).await;
    let admin = service.admin("admin@example.com").await;
    let fields = |rpc: &str| match rpc {
        "UserService.UpdateUser"
        | "UserService.DeleteUser"
        | "RoleService.GetUserRoles"
        | "RoleService.AddUserRole" => {
            json!({ "id": 1 })
        }
        "RoleService.RemoveUserRole" => json!({ "id": 1, "role": "seller" }),
        _ => json!({}),
    };
    for rpc in NOT_BUILT {
        for face in Face::ALL {
            if face == Face::Rest && route(rpc).is_none() {
                continue;
            }
            let outcome = admin.call(face, rpc, fields(rpc)).await;
            assert_eq!(outcome.status, 501, "{rpc} is built: strike it from NOT_BUILT, and give it calls here");
            assert!(outcome.text.contains("Not implemented yet"), "{rpc}: {outcome:?}");
        }
    }
    service.stop().await;
}
