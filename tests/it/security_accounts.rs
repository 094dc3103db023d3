//! Accounts, as somebody meets them who wants to be more than he is, or to know more than he may.
//! The lines are those of `docs/security.md`.

use identity::entity::user::{self, Column};
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use serde_json::{Value, json};

use crate::{
    account::{row, update},
    directory::{add, ids, list, names, person},
    harness::{Actor, Face, PASSWORD, actor::claims, everywhere, on_each_store},
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
