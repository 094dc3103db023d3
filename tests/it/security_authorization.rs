//! Who may call what: every rpc of the contract, tried on both faces by everyone that there is.
//! The lines are those of `docs/security.md`.

use identity::{entity::user, feed::Entry};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait};
use serde_json::{Value, json};

use crate::{
    harness::{
        Actor, Face, PASSWORD, Service, Store,
        actor::{claims, method, route},
    },
    rest_parity::rpcs,
};

/// Who calls. The subject is an ordinary user whom the call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Anonymous,
    /// Deactivated, with a token from before.
    Inactive,
    Stranger,
    Oneself,
    Moderator,
    Admin,
    Superuser,
}

use Who::{Admin, Anonymous, Inactive, Moderator, Oneself, Stranger, Superuser};

const EVERYONE: [Who; 7] = [Anonymous, Inactive, Stranger, Oneself, Moderator, Admin, Superuser];

/// What each of `EVERYONE` is answered, in that order.
type Statuses = [u16; 7];

const ANYONE: Statuses = [200; 7];
const ANY_USER: Statuses = [401, 401, 200, 200, 200, 200, 200];
const CREATED_BY_ADMINS: Statuses = [401, 401, 403, 403, 403, 201, 201];
const CREATED_BY_SUPERUSERS: Statuses = [401, 401, 403, 403, 403, 403, 201];
const GONE_BY_ADMINS: Statuses = [401, 401, 403, 403, 403, 204, 204];

/// An rpc, the fields of the call, and the statuses. In the fields stand for the subject: `"$id"`, `"$email"`,
/// `"$access"`, `"$refresh"`; `"$group"` is a group with the subject in it, which allows `shop.refund`, and
/// `"$admins"` one that allows what admins alone may do; `"$new"` is an address and a name that nobody has.
fn rows() -> Vec<(&'static str, Value, Statuses)> {
    let id = || json!({ "id": "$id" });
    vec![
        ("AuthService.Register", json!({ "email": "$new", "password": PASSWORD }), [201; 7]),
        ("AuthService.Login", json!({ "email": "$email", "password": PASSWORD }), ANYONE),
        ("AuthService.RefreshToken", json!({ "refresh_token": "$refresh" }), ANYONE),
        ("AuthService.Logout", json!({}), ANY_USER),
        ("AuthService.SendVerification", json!({}), [401, 401, 200, 200, 200, 200, 400]),
        ("AuthService.VerifyEmail", json!({ "email": "$email", "code": "000000" }), [400; 7]),
        ("AuthService.VerifyToken", json!({ "token": "$access" }), ANYONE),
        ("AuthService.ChangePassword", json!({ "old_password": PASSWORD, "new_password": "N3w-Passw0rd!" }), ANY_USER),
        ("UserService.ListUsers", json!({}), ANY_USER),
        (
            "UserService.CreateUser",
            json!({ "email": "$new", "password": PASSWORD }),
            [401, 401, 403, 403, 403, 201, 201],
        ),
        ("UserService.GetUser", id(), [401, 401, 404, 200, 200, 200, 200]),
        ("UserService.BatchGetUsers", json!({ "ids": ["$id"] }), ANY_USER),
        ("UserService.UpdateUser", json!({ "id": "$id", "first_name": "Joan" }), [401, 401, 403, 200, 403, 200, 200]),
        ("UserService.UpdateUser", json!({ "id": "$id", "is_seller": true }), [401, 401, 403, 403, 403, 200, 200]),
        ("UserService.UpdateUser", json!({ "id": "$id", "is_verified": true }), [401, 401, 403, 403, 403, 200, 200]),
        ("UserService.UpdateUser", json!({ "id": "$id", "is_staff": true }), [401, 401, 403, 403, 403, 403, 200]),
        ("UserService.ExportUser", id(), [401, 401, 403, 200, 403, 200, 200]),
        ("UserService.DeleteUser", id(), [401, 401, 403, 204, 403, 204, 204]),
        ("AuditService.ListAuditEvents", json!({}), [401, 401, 403, 403, 403, 200, 200]),
        ("AuditService.ListUserActivity", id(), [401, 401, 403, 200, 403, 200, 200]),
        ("ProfileService.GetMyProfile", json!({}), ANY_USER),
        ("ProfileService.GetProfile", json!({ "user_id": "$id" }), [401, 401, 404, 200, 200, 200, 200]),
        ("ProfileService.UpdateMyProfile", json!({ "bio": "x" }), ANY_USER),
        ("RoleService.GetUserRoles", id(), [401, 401, 403, 200, 403, 200, 200]),
        ("RoleService.AddUserRole", json!({ "id": "$id", "role": "seller" }), [401, 401, 403, 403, 403, 201, 201]),
        ("RoleService.AddUserRole", json!({ "id": "$id", "role": "admin" }), [401, 401, 403, 403, 403, 403, 201]),
        (
            "RoleService.RemoveUserRole",
            json!({ "id": "$id", "role": "freelancer" }),
            [401, 401, 403, 403, 403, 204, 204],
        ),
        (
            "RoleService.CheckPermission",
            json!({ "user_id": "$id", "permission": "create_gig" }),
            [401, 401, 403, 200, 403, 200, 200],
        ),
        ("RoleService.GetUserPermissions", id(), [401, 401, 403, 200, 403, 200, 200]),
        ("RoleService.GrantPermission", json!({ "id": "$id", "permission": "shop.sell" }), CREATED_BY_ADMINS),
        ("RoleService.GrantPermission", json!({ "id": "$id", "permission": "manage_users" }), CREATED_BY_SUPERUSERS),
        ("RoleService.RevokePermission", json!({ "id": "$id", "permission": "shop.buy" }), GONE_BY_ADMINS),
        ("RoleService.ListGroups", json!({}), [401, 401, 403, 403, 403, 200, 200]),
        ("RoleService.CreateGroup", json!({ "name": "$new" }), CREATED_BY_ADMINS),
        ("RoleService.GetGroup", json!({ "id": "$group" }), [401, 401, 403, 403, 403, 200, 200]),
        ("RoleService.UpdateGroup", json!({ "id": "$group", "name": "$new" }), [401, 401, 403, 403, 403, 200, 200]),
        ("RoleService.DeleteGroup", json!({ "id": "$group" }), GONE_BY_ADMINS),
        ("RoleService.DeleteGroup", json!({ "id": "$admins" }), [401, 401, 403, 403, 403, 403, 204]),
        ("RoleService.AddGroupPermission", json!({ "id": "$group", "permission": "shop.sell" }), CREATED_BY_ADMINS),
        (
            "RoleService.AddGroupPermission",
            json!({ "id": "$group", "permission": "users.manage_roles" }),
            CREATED_BY_SUPERUSERS,
        ),
        ("RoleService.RemoveGroupPermission", json!({ "id": "$group", "permission": "shop.refund" }), GONE_BY_ADMINS),
        (
            "RoleService.RemoveGroupPermission",
            json!({ "id": "$admins", "permission": "manage_roles" }),
            [401, 401, 403, 403, 403, 403, 204],
        ),
        ("RoleService.AddGroupMember", json!({ "id": "$group", "user_id": "$id" }), CREATED_BY_ADMINS),
        ("RoleService.AddGroupMember", json!({ "id": "$admins", "user_id": "$id" }), CREATED_BY_SUPERUSERS),
        ("RoleService.RemoveGroupMember", json!({ "id": "$group", "user_id": "$id" }), GONE_BY_ADMINS),
        (
            "RoleService.RemoveGroupMember",
            json!({ "id": "$admins", "user_id": "$id" }),
            [401, 401, 403, 403, 403, 403, 204],
        ),
    ]
}

/// What can be called once: it ends the caller's session, changes the password, or is limited.
const ONCE: [&str; 3] = ["AuthService.Logout", "AuthService.SendVerification", "AuthService.ChangePassword"];

/// Line 33.
#[tokio::test(flavor = "multi_thread")]
async fn everyone_may_call_what_is_declared_and_nothing_else() {
    // More calls of one client within the frozen minute than the limit allows.
    let service = Service::start_with(Store::Sqlite, &[("RATE_LIMIT_API", "off")]).await;
    let mut cast = Cast::new(&service).await;
    let mut wrong = Vec::new();
    let mut untouched = None;
    for (rpc, template, statuses) in rows() {
        for face in Face::ALL {
            if face == Face::Rest && route(rpc).is_none() {
                continue;
            }
            for (who, status) in EVERYONE.into_iter().zip(statuses) {
                // A refused call left the last one as it was.
                let (subject, groups) = match untouched.take() {
                    Some(subject) => subject,
                    None => cast.new_subject().await,
                };
                let actor = match who {
                    Oneself => subject.clone(),
                    who if ONCE.contains(&rpc) => cast.new_actor(who).await,
                    who => cast.actor(who),
                };
                let fields = cast.fill(&template, &subject, groups);
                let outcome = actor.call(face, rpc, fields).await;
                if outcome.status != status {
                    wrong.push(format!("{who:?} calls {rpc} {template} by {face:?}: {status} expected, {outcome:?}"));
                }
                untouched = (outcome.status >= 400).then_some((subject, groups));
            }
        }
    }
    service.stop().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Line 33.
#[test]
fn every_rpc_is_in_the_matrix() {
    let rows = rows();
    for rpc in rpcs() {
        assert!(rows.iter().any(|(name, ..)| name == rpc), "{rpc}: who may call it?");
    }
}

/// Line 33.
#[test]
fn the_matrix_agrees_with_what_the_protos_declare() {
    for (rpc, _, statuses) in rows() {
        let is_refused = |who: Who| {
            let at = EVERYONE.iter().position(|w| *w == who).unwrap();
            matches!(statuses[at], 401 | 403)
        };
        let access = declared_access(rpc);
        assert_eq!(is_refused(Anonymous), access != "ACCESS_ANYONE", "{rpc} is {access}");
        assert_eq!(is_refused(Inactive), access != "ACCESS_ANYONE", "{rpc} is {access}");
        if access == "ACCESS_ADMIN" {
            assert!([Stranger, Oneself, Moderator].into_iter().all(is_refused), "{rpc} is {access}");
        }
    }
}

fn declared_access(rpc: &str) -> String {
    let method = method(rpc);
    let policy = method.parent_pool().get_extension_by_name("identity.v1.policy").unwrap();
    let policy = method.options().get_extension(&policy).as_message().cloned().unwrap();
    let number = policy.get_field_by_name("access").unwrap().as_enum_number().unwrap();
    let access = method.parent_pool().get_enum_by_name("identity.v1.Access").unwrap();
    access.get_value(number).unwrap().name().to_owned()
}

/// Everyone who calls.
struct Cast<'a> {
    service: &'a Service,
    actors: Vec<(Who, Actor)>,
    made: u32,
    /// The address of the last subject.
    subject: String,
}

impl<'a> Cast<'a> {
    async fn new(service: &'a Service) -> Self {
        let mut cast = Self { service, actors: Vec::new(), made: 0, subject: String::new() };
        for who in EVERYONE {
            let actor = cast.new_actor(who).await;
            cast.actors.push((who, actor));
        }
        cast
    }

    fn actor(&self, who: Who) -> Actor {
        self.actors.iter().find(|(w, _)| *w == who).unwrap().1.clone()
    }

    fn new_email(&mut self) -> String {
        self.made += 1;
        format!("user{}@example.com", self.made)
    }

    async fn new_actor(&mut self, who: Who) -> Actor {
        let email = self.new_email();
        match who {
            Anonymous => self.service.anonymous(),
            Superuser => self.service.admin(&email).await,
            Inactive => {
                let actor = self.service.user(&email).await;
                self.set(&actor, |user| user.is_active = Set(false)).await;
                actor
            }
            // A freelancer with a private profile.
            Oneself => {
                let actor = self.service.user(&email).await;
                self.subject = email;
                let private = json!({ "is_public": false });
                actor.call(Face::Rest, "ProfileService.UpdateMyProfile", private).await.expect(200);
                self.set(&actor, |user| user.is_freelancer = Set(true)).await;
                actor
            }
            Stranger => self.service.user(&email).await,
            Moderator | Admin => {
                let actor = self.service.user(&email).await;
                let is_admin = who == Admin;
                self.set(&actor, |user| {
                    user.is_moderator = Set(!is_admin);
                    user.is_staff = Set(is_admin);
                })
                .await;
                self.service.login(&email).await
            }
        }
    }

    /// Changes the row of a user, and tells the feed, as the rpc will that does this.
    async fn set(&self, actor: &Actor, change: impl FnOnce(&mut user::ActiveModel)) {
        let (app, id) = (&self.service.app, id_of(actor));
        let now = app.clock.now();
        let tx = app.db.begin().await.unwrap();
        let mut row: user::ActiveModel = user::Entity::find_by_id(id).one(&tx).await.unwrap().unwrap().into();
        change(&mut row);
        row.version = Set(row.version.take().unwrap() + 1);
        let row = row.update(&tx).await.unwrap();
        let changed = [Entry::of_user(id, row.version, now, now + chrono::Duration::hours(1))];
        tx.insert(Entry::inserts(&changed)).await.unwrap();
        tx.commit().await.unwrap();
        app.feed.apply(&changed);
    }

    async fn new_subject(&mut self) -> (Actor, [i64; 2]) {
        let subject = self.new_actor(Oneself).await;
        let groups = self.new_groups(&subject).await;
        (subject, groups)
    }

    /// Two groups with the subject in them, who holds a permission directly as well.
    async fn new_groups(&mut self, subject: &Actor) -> [i64; 2] {
        let superuser = self.actor(Superuser);
        let call = async |rpc: &str, fields: Value| superuser.call(Face::Grpc, rpc, fields).await.expect(201);
        let mut ids = [0; 2];
        for (id, permission) in ids.iter_mut().zip(["shop.refund", "manage_roles"]) {
            let group = call("RoleService.CreateGroup", json!({ "name": self.new_email() })).await;
            *id = group["id"].as_i64().unwrap();
            call("RoleService.AddGroupPermission", json!({ "id": id, "permission": permission })).await;
            call("RoleService.AddGroupMember", json!({ "id": id, "user_id": id_of(subject) })).await;
        }
        call("RoleService.GrantPermission", json!({ "id": id_of(subject), "permission": "shop.buy" })).await;
        ids
    }

    fn fill(&mut self, template: &Value, subject: &Actor, groups: [i64; 2]) -> Value {
        match template {
            Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), self.fill(v, subject, groups))).collect(),
            Value::Array(items) => items.iter().map(|v| self.fill(v, subject, groups)).collect(),
            Value::String(text) => match text.as_str() {
                "$id" => json!(id_of(subject)),
                "$email" => json!(self.subject),
                "$access" => json!(subject.access_token),
                "$refresh" => json!(subject.refresh_token),
                "$new" => json!(self.new_email()),
                "$group" => json!(groups[0]),
                "$admins" => json!(groups[1]),
                _ => template.clone(),
            },
            _ => template.clone(),
        }
    }
}

fn id_of(actor: &Actor) -> i64 {
    claims(actor.access_token.as_deref().unwrap())["user_id"].as_str().unwrap().parse().unwrap()
}
