//! Accounts, as somebody meets them who wants to be more than he is, or to know more than he may.
//! The lines are those of `docs/security.md`.

use std::collections::BTreeSet;

use identity::entity::{
    profile,
    user::{self, Column},
};
use reqwest::{Method, multipart::Form};
use sea_orm::{ColumnTrait, EntityTrait, IdenStatic, Iterable, PaginatorTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};

use crate::{
    account::{row, staff, update},
    directory::{add, ids, list, names, person},
    harness::{
        Actor, Face, PASSWORD, Service,
        actor::{claims, method, outcome_of, route},
        everywhere, on_each_store,
    },
    user::{set_flags, user_id},
};

/// Line 35.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_active_superuser_stays() {
    everywhere(async |service, face| {
        let last = service.admin("last@example.com").await;
        let id = user_id(&last);
        // One who is there but not active can't help.
        let idle =
            json!({ "email": "idle@example.com", "password": PASSWORD, "is_superuser": true, "is_active": false });
        last.call(face, "UserService.CreateUser", idle).await.expect(201);
        let before = row(service, id).await;
        let ways = [
            ("UserService.UpdateUser", json!({ "id": id, "is_active": false })),
            ("UserService.UpdateUser", json!({ "id": id, "is_superuser": false })),
            ("RoleService.RemoveUserRole", json!({ "id": id, "role": "admin" })),
            ("UserService.DeleteUser", json!({ "id": id })),
        ];
        for (rpc, fields) in &ways {
            let refused = last.call(face, rpc, fields.clone()).await;
            assert_eq!(refused.status, 409, "{rpc}: {refused:?}");
            assert!(refused.text.contains("The last superuser has to stay"), "{refused:?}");
            if face == Face::Grpc {
                assert_eq!(refused.reason.as_deref(), Some("LAST_SUPERUSER"));
            }
        }
        assert_eq!(row(service, id).await, before);
        update(&last, face, id, json!({ "first_name": "Joan", "is_staff": false })).await.expect(200);
        let second = service.admin("second@example.com").await;
        last.call(face, "UserService.DeleteUser", json!({ "id": id })).await.expect(204);
        second.call(face, "UserService.DeleteUser", json!({ "id": user_id(&second) })).await.expect(409);
    })
    .await;
}

/// Line 35.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_superusers_who_unmake_each_other_at_once_one_stays() {
    on_each_store(async |service| {
        for round in 0..8 {
            let pair = [
                service.admin(&format!("a{round}@example.com")).await,
                service.admin(&format!("b{round}@example.com")).await,
            ];
            let unmake = async |actor: &Actor, other: &Actor, way: usize| {
                let id = user_id(other);
                let (rpc, fields) = match way % 3 {
                    0 => ("UserService.UpdateUser", json!({ "id": id, "is_superuser": false })),
                    1 => ("UserService.DeleteUser", json!({ "id": id })),
                    _ => ("RoleService.RemoveUserRole", json!({ "id": id, "role": "admin" })),
                };
                actor.call(Face::Grpc, rpc, fields).await
            };
            let [one, other] = &pair;
            let outcomes = tokio::join!(unmake(one, other, round), unmake(other, one, round / 2));
            let mut statuses = [outcomes.0.status, outcomes.1.status];
            statuses.sort_unstable();
            // The one who came too late is no superuser any more, or nobody at all.
            assert!(matches!(statuses, [200 | 204, 401 | 403 | 404]), "round {round}: {outcomes:?}");
            let superusers = user::Entity::find().filter(user::Column::IsSuperuser.eq(true));
            assert_eq!(superusers.count(service.app.db.reader()).await.unwrap(), 1, "round {round}: {outcomes:?}");
            let tx = service.app.db.begin().await.unwrap();
            user::Entity::delete_many().exec(&tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    })
    .await;
}

/// Line 36.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_see_somebody_does_not_find_a_trace_of_them() {
    everywhere(async |service, face| {
        let [user, moderator] = [service.user("user@example.com").await, service.user("moderator@example.com").await];
        set_flags(service, user_id(&moderator), &[(Column::IsModerator, true)]).await;
        let admin = service.admin("admin@example.com").await;
        let private = service.user("private@example.com").await;
        private.call(face, "ProfileService.UpdateMyProfile", json!({ "is_public": false })).await.expect(200);
        let inactive = service.user("inactive@example.com").await;
        set_flags(service, user_id(&inactive), &[(Column::IsActive, false), (Column::Listed, false)]).await;

        for (filter, seen) in [
            (json!({}), vec!["user", "m***", "a***"]),
            (json!({ "search": "jane" }), vec!["user", "m***"]),
            (json!({ "search": "private@example.com" }), vec![]),
            (json!({ "search": "inactive@example.com" }), vec![]),
            (json!({ "is_verified": false }), vec!["user", "m***"]),
            (json!({ "role": "moderator" }), vec!["m***"]),
            (json!({ "page_size": 1, "page": 3 }), vec!["a***"]),
        ] {
            let page = list(&user, face, filter.clone()).await.expect(200);
            assert_eq!(names(&page), seen, "{filter}");
            if filter["page"].is_null() {
                assert_eq!(page["count"], seen.len(), "{filter}");
            }
        }
        // Nor does one find oneself there, whom others don't.
        assert_eq!(names(&list(&private, face, json!({})).await.expect(200)), ["u***", "m***", "a***"]);
        for viewer in [&moderator, &admin] {
            let page = list(viewer, face, json!({})).await.expect(200);
            assert_eq!(names(&page), ["user", "moderator", "admin", "private", "inactive"]);
            assert_eq!(page["count"], 5);
            let page = list(viewer, face, json!({ "search": "VATE@exa" })).await.expect(200);
            assert_eq!(names(&page), ["private"]);
        }
    })
    .await;
}

/// Line 36.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_masked_is_found_only_by_all_of_it() {
    everywhere(async |service, face| {
        let user = service.user("user@example.com").await;
        let admin = service.admin("admin@example.com").await;
        add(service, vec![person("Jo.Smith@Example.com", "Al", "exam"), person("иван@пример.рф", "Иван", "")]).await;
        let masked = |page: &Value| ids(page).len();
        for (search, found) in [
            ("jo.smith@example.com", 1),
            ("JO.SMITH@EXAMPLE.COM", 1),
            ("al JO.SMITH@EXAMPLE.COM", 1),
            ("jane JO.SMITH@EXAMPLE.COM", 0),
            ("ИВАН@ПРИМЕР.РФ", 1),
            ("иван@xn--e1afmkfd.xn--p1ai", 1),
            ("jo.smith@example.co", 0),
            ("o.smith@example.com", 0),
            ("smith", 0),
            ("jo", 0),
            ("@example.com", 0),
            ("example", 0),
            ("@", 0),
            ("exam", 1),
            // One's own address is no exception.
            ("user@", 0),
        ] {
            let page = list(&user, face, json!({ "search": search })).await.expect(200);
            assert_eq!((masked(&page), &page["count"]), (found, &json!(found)), "{search}");
        }
        assert_eq!(names(&list(&admin, face, json!({ "search": "smith" })).await.expect(200)), ["Jo.Smith"]);
        for ordering in ["email", "-email", "first_name,-email", "id, email"] {
            let wrong = list(&user, face, json!({ "ordering": ordering })).await;
            assert_eq!(wrong.expect_field(400, "ordering"), ["You may not order by email."], "{ordering}");
        }
        assert_eq!(list(&user, face, json!({ "ordering": "emails" })).await.expect(200)["count"], 4);
    })
    .await;
}

/// Line 37.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_registers_as_more_than_a_user() {
    on_each_store(async |service| {
        let new = json!({
            "email": "user@example.com", "password": PASSWORD, "id": 77, "is_active": false, "is_staff": true,
            "is_superuser": true, "is_verified": true, "is_freelancer": true, "is_seller": true, "is_moderator": true,
            "role": "admin", "roles": ["Admin"], "listed": false,
        });
        let answer = service.anonymous().call(Face::Rest, "AuthService.Register", new).await.expect(201);
        assert_eq!(claims(answer["access_token"].as_str().unwrap())["roles"], json!(["User"]));
        let user = user::Entity::find().one(service.app.db.reader()).await.unwrap().unwrap();
        assert_ne!(user.id, 77);
        assert!(user.is_active && user.listed);
        assert!(!(user.is_staff || user.is_superuser || user.is_verified));
        assert!(!(user.is_freelancer || user.is_seller || user.is_moderator));
    })
    .await;
}

/// What contract §6 lets its owner set of an account, if the address is verified.
const OF_ONES_OWN: [&str; 4] = ["first_name", "last_name", "is_freelancer", "is_seller"];
/// What it lets admins set: of themselves, and of whoever is no admin.
const OF_ADMINS: [&str; 8] =
    ["email", "first_name", "last_name", "is_active", "is_verified", "is_freelancer", "is_seller", "is_moderator"];
/// What an account is asked for when it is made.
const OF_REGISTRATION: [&str; 4] = ["email", "password", "first_name", "last_name"];

/// The columns of what is kept of a user, and names under which others might be found.
fn everything_of_a_user() -> BTreeSet<String> {
    let columns = user::Column::iter().map(|column| column.as_str().to_owned());
    let columns = columns.chain(profile::Column::iter().map(|column| column.as_str().to_owned()));
    let guesses = ["user_id", "role", "roles", "groups", "permissions", "user_permissions", "user", "is_admin", "pk"];
    columns.chain(guesses.map(str::to_owned)).collect()
}

/// Values that would make a difference in a field of some type.
fn other_values() -> [Value; 7] {
    [
        json!(true),
        json!(false),
        json!(77),
        json!("2001-01-01T00:00:00Z"),
        json!(["Admin", "admin", "manage_users"]),
        json!({ "is_staff": true, "is_superuser": true, "id": 77 }),
        Value::Null,
    ]
}

/// The fields that a request of this rpc has, save those in its path.
fn fields_of(rpc: &str) -> BTreeSet<String> {
    let (_, path, _) = route(rpc).unwrap();
    let names = method(rpc).input().fields().map(|field| field.name().to_owned()).collect::<BTreeSet<_>>();
    names.into_iter().filter(|name| name != "update_mask" && !path.contains(&format!("{{{name}}}"))).collect()
}

/// What nobody can set by this rpc: all of a user that its request doesn't name.
fn read_only(rpc: &str) -> Vec<String> {
    everything_of_a_user().difference(&fields_of(rpc)).cloned().collect()
}

/// One request that gives all of these this value.
fn all_of(names: &[String], value: &Value) -> Value {
    names.iter().map(|name| (name.clone(), value.clone())).collect()
}

/// All that is kept of whom, save what a login leaves, and that something was asked for.
async fn kept(service: &Service) -> Vec<(user::Model, profile::Model)> {
    let rows = user::Entity::find().find_also_related(profile::Entity).order_by_asc(user::Column::Id);
    let rows = rows.all(service.app.db.reader()).await.unwrap();
    rows.into_iter()
        .map(|(user, profile)| (user::Model { last_login: None, version: 0, ..user }, profile.unwrap()))
        .collect()
}

/// Line 37.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_account_everything_is_refused_or_ignored_that_its_caller_may_not_set() {
    const RPC: &str = "UserService.UpdateUser";
    on_each_store(async |service| {
        let superuser = service.admin("root@example.com").await;
        let admin = staff(service, &superuser, "staff@example.com").await;
        let [user, moderator] = [service.user("user@example.com").await, service.user("moderator@example.com").await];
        for (actor, is_moderator) in [(&user, false), (&moderator, true)] {
            let flags = [(Column::IsVerified, true), (Column::IsModerator, is_moderator)];
            set_flags(service, user_id(actor), &flags).await;
        }
        let known = fields_of(RPC);
        assert!(OF_ONES_OWN.iter().chain(&OF_ADMINS).all(|name| known.contains(*name)), "{known:?}");
        for (who, actor, subject, may) in [
            ("oneself", &user, &user, &OF_ONES_OWN[..]),
            ("a stranger", &user, &moderator, &[]),
            ("a moderator", &moderator, &user, &[]),
            ("an admin", &admin, &user, &OF_ADMINS),
            ("an admin of a superuser", &admin, &superuser, &[]),
        ] {
            let (id, before) = (user_id(subject), kept(service).await);
            let patch = async |fields: Value| {
                let sent = actor.request(Method::PATCH, &format!("/api/users/{id}/")).json(&fields).send().await;
                let told = outcome_of(sent.unwrap()).await;
                assert_eq!(kept(service).await, before, "{who}: {fields}: {told:?}");
                told.status
            };
            for value in other_values() {
                // What is only read is ignored, though not for whom the account is no business of.
                let status = if may.is_empty() { 403 } else { 200 };
                assert_eq!(patch(all_of(&read_only(RPC), &value)).await, status, "{who}: {value}");
            }
            for name in known.iter().filter(|name| !may.contains(&name.as_str())) {
                let is_text = ["email", "first_name", "last_name"].contains(&name.as_str());
                let [good, other] =
                    if is_text { [json!("x@example.org"), json!("")] } else { [json!(true), json!(false)] };
                // Whatever it is, and whatever may be set comes with it. One who may set it of others is told what is wrong.
                for value in [&good, &other, &json!(77), &json!([1]), &Value::Null] {
                    let status = patch(json!({ name: value, "first_name": "Joan" })).await;
                    let is_of_admins = who == "an admin of a superuser" && OF_ADMINS.contains(&name.as_str());
                    assert!(status == 403 || (is_of_admins && status == 400), "{who}: {name} = {value}: {status}");
                }
                for masked in [false, true] {
                    let mut fields = json!({ "id": id, name: good });
                    if masked {
                        fields["update_mask"] = json!(camel_case(name));
                    }
                    actor.call(Face::Grpc, RPC, fields).await.expect(403);
                    assert_eq!(kept(service).await, before, "{who}: {name}");
                }
            }
            // By gRPC a mask may name what the message doesn't have.
            for name in read_only(RPC) {
                let fields = json!({ "id": id, "update_mask": camel_case(&name) });
                let told = actor.call(Face::Grpc, RPC, fields).await;
                assert!([400, 403].contains(&told.status), "{who}: {name}: {told:?}");
            }
            assert_eq!(kept(service).await, before, "{who}");
        }
    })
    .await;
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| text + &part[..1].to_uppercase() + &part[1..])
}

/// Line 37.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_makes_an_account_sets_no_more_of_it_than_is_asked_for() {
    on_each_store(async |service| {
        let superuser = service.admin("root@example.com").await;
        let admin = staff(service, &superuser, "staff@example.com").await;
        let anyone = service.anonymous();
        for (rpc, actor, may) in [
            ("AuthService.Register", &anyone, OF_REGISTRATION.to_vec()),
            ("UserService.CreateUser", &admin, [&OF_ADMINS[..], &["password"]].concat()),
        ] {
            let known = fields_of(rpc);
            assert!(may.iter().all(|name| known.contains(*name)), "{rpc}: {known:?}");
            let (verb, path, _) = route(rpc).unwrap();
            let make = async |email: &str, mut fields: Value| {
                fields["email"] = json!(email);
                fields["password"] = json!(PASSWORD);
                outcome_of(actor.request(verb.clone(), &path).json(&fields).send().await.unwrap()).await
            };
            // What is the same of all new accounts.
            let newest = async || {
                let (row, profile) = kept(service).await.pop().unwrap();
                let (email, id) = (row.email, row.id);
                assert_eq!(profile.user_id, id);
                let nobody = user::PasswordHash(String::new());
                let [email_key, search_text] = ["", ""].map(str::to_owned);
                let row = user::Model { id: 0, email: String::new(), email_key, search_text, password: nobody, ..row };
                (email, row, profile::Model { id: 0, user_id: 0, ..profile })
            };
            make(&format!("{rpc}@example.com"), json!({})).await.expect(201);
            let plain = newest().await;
            for (n, value) in other_values().iter().enumerate() {
                let email = format!("{rpc}{n}@example.com");
                make(&email, all_of(&read_only(rpc), value)).await.expect(201);
                let made = newest().await;
                assert_eq!((&made.0, &made.1, &made.2), (&email, &plain.1, &plain.2), "{rpc}: {value}");
            }
            let before = kept(service).await;
            for name in known.iter().filter(|name| !may.contains(&name.as_str())) {
                for value in [true, false] {
                    make("more@example.com", json!({ name: value })).await.expect(403);
                    let fields = json!({ "email": "more@example.com", "password": PASSWORD, name: value });
                    actor.call(Face::Grpc, rpc, fields).await.expect(403);
                }
            }
            assert_eq!(kept(service).await, before, "{rpc}");
        }
    })
    .await;
}

/// Line 37.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_changes_in_its_own_fields_alone() {
    const RPC: &str = "ProfileService.UpdateMyProfile";
    on_each_store(async |service| {
        let user = service.user("user@example.com").await;
        service.user("other@example.com").await;
        assert_eq!(
            fields_of(RPC),
            ["avatar", "bio", "is_public", "streak_visibility", "timezone"].map(str::to_owned).into()
        );
        let before = kept(service).await;
        for value in other_values() {
            let patch = || user.request(Method::PATCH, "/api/profile/me/");
            let sent = patch().json(&all_of(&read_only(RPC), &value)).send().await.unwrap();
            assert_eq!((sent.status().as_u16(), kept(service).await), (200, before.clone()), "{value}");
            let form = read_only(RPC).into_iter().fold(Form::new(), |form, name| form.text(name, value.to_string()));
            let sent = patch().multipart(form).send().await.unwrap();
            assert_eq!((sent.status().as_u16(), kept(service).await), (200, before.clone()), "{value} in a form");
        }
        for name in read_only(RPC) {
            let told = user.call(Face::Grpc, RPC, json!({ "update_mask": camel_case(&name) })).await;
            assert_eq!((told.status, kept(service).await), (400, before.clone()), "{name}: {told:?}");
        }
    })
    .await;
}
