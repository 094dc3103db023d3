//! Superusers and admins: who makes and unmakes them, and that the last one stays.

use futures_util::future::join_all;
use identity::entity::user;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, sea_query::Expr};
use serde_json::json;

use crate::{
    account::{row, staff, update},
    harness::{Actor, Face, PASSWORD, everywhere, on_each_store},
    user::user_id,
};

#[tokio::test(flavor = "multi_thread")]
async fn only_a_superuser_makes_staff_and_superusers() {
    everywhere(async |service, face| {
        let superuser = service.admin("admin@example.com").await;
        let staff = staff(service, &superuser, "staff@example.com").await;
        for flag in ["is_staff", "is_superuser"] {
            let new = json!({ "email": format!("{flag}@example.com"), "password": PASSWORD, flag: true });
            staff.call(face, "UserService.CreateUser", new.clone()).await.expect(403);
            let made = superuser.call(face, "UserService.CreateUser", new).await.expect(201);
            assert_eq!(made["roles"], json!(["Admin"]));
        }
        // Not even what it would be anyway, as in a PATCH.
        let none = json!({ "email": "mod@example.com", "password": PASSWORD, "is_moderator": true, "is_staff": false });
        staff.call(face, "UserService.CreateUser", none).await.expect(403);
        let new = json!({ "email": "mod@example.com", "password": PASSWORD, "is_moderator": true });
        assert_eq!(staff.call(face, "UserService.CreateUser", new).await.expect(201)["roles"], json!(["Moderator"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn staff_leaves_superusers_alone() {
    everywhere(async |service, face| {
        let superuser = service.admin("admin@example.com").await;
        let other = service.admin("other@example.com").await;
        let staff = staff(service, &superuser, "staff@example.com").await;
        let id = user_id(&other);
        let before = row(service, id).await;
        update(&staff, face, id, json!({ "first_name": "x" })).await.expect(403);
        update(&staff, face, id, json!({ "is_active": false })).await.expect(403);
        staff.call(face, "UserService.DeleteUser", json!({ "id": id })).await.expect(403);
        let seller = json!({ "id": id, "role": "seller" });
        staff.call(face, "RoleService.AddUserRole", seller).await.expect(403);
        let admin = json!({ "id": id, "role": "admin" });
        staff.call(face, "RoleService.RemoveUserRole", admin.clone()).await.expect(403);
        assert_eq!(row(service, id).await, before);
        // Nor does it make its like, or unmake it.
        let peer = service.user("peer@example.com").await;
        let peer = json!({ "id": user_id(&peer), "role": "admin" });
        staff.call(face, "RoleService.AddUserRole", peer.clone()).await.expect(403);
        superuser.call(face, "RoleService.AddUserRole", peer.clone()).await.expect(201);
        staff.call(face, "RoleService.RemoveUserRole", peer).await.expect(403);
        update(&staff, face, user_id(&staff), json!({ "is_superuser": true })).await.expect(403);
        superuser.call(face, "RoleService.RemoveUserRole", admin).await.expect(204);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_superuser_puts_an_admin_out_of_office() {
    everywhere(async |service, face| {
        let superuser = service.admin("admin@example.com").await;
        let [one, peer] = ["one@example.com", "peer@example.com"].map(|email| staff(service, &superuser, email));
        let (one, peer) = (one.await, peer.await);
        let id = user_id(&peer);
        let before = row(service, id).await;
        // Without an account, or with an address of somebody else's, nobody is an admin any more.
        update(&one, face, id, json!({ "is_active": false })).await.expect(403);
        update(&one, face, id, json!({ "email": "mine@example.com" })).await.expect(403);
        one.call(face, "UserService.DeleteUser", json!({ "id": id })).await.expect(403);
        assert_eq!(row(service, id).await, before);
        update(&one, face, id, json!({ "first_name": "Joan" })).await.expect(200);
        update(&one, face, user_id(&one), json!({ "email": "another@example.com" })).await.expect(200);
        update(&superuser, face, id, json!({ "is_active": false })).await.expect(200);
        superuser.call(face, "UserService.DeleteUser", json!({ "id": id })).await.expect(204);
        one.call(face, "UserService.DeleteUser", json!({ "id": user_id(&one) })).await.expect(204);
    })
    .await;
}

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

#[tokio::test(flavor = "multi_thread")]
async fn superusers_who_unmake_each_other_get_answers_and_not_each_others_locks() {
    on_each_store(async |service| {
        const SUPERUSERS: usize = 6;
        let mut all = Vec::new();
        for n in 0..SUPERUSERS {
            all.push(service.admin(&format!("{n}@example.com")).await);
        }
        for round in 0..12 {
            let unmake = async |call: usize| {
                // Mostly the first, whose lock is the first that the others want, too.
                let n = call % (SUPERUSERS - 1) + 1;
                let other = if call % 4 == 3 { (n + call) % SUPERUSERS } else { 0 };
                let id = user_id(&all[other]);
                match (call + round) % 3 {
                    0 => update(&all[n], Face::Grpc, id, json!({ "is_superuser": false })).await,
                    1 => update(&all[n], Face::Grpc, id, json!({ "is_superuser": true })).await,
                    _ => {
                        let admin = json!({ "id": id, "role": "admin" });
                        all[n].call(Face::Grpc, "RoleService.RemoveUserRole", admin).await
                    }
                }
            };
            let outcomes = join_all((0..4 * SUPERUSERS).map(unmake)).await;
            let statuses: Vec<_> = outcomes.iter().map(|outcome| outcome.status).collect();
            assert!(
                statuses.iter().all(|status| matches!(status, 200 | 204 | 403 | 404 | 409)),
                "round {round}: {outcomes:?}"
            );
            let superusers = user::Entity::find().filter(user::Column::IsSuperuser.eq(true));
            let left = superusers.count(service.app.db.reader()).await.unwrap();
            assert!(left >= 1, "round {round}: {statuses:?}");
            let tx = service.app.db.begin().await.unwrap();
            let all = user::Entity::update_many().col_expr(user::Column::IsSuperuser, Expr::value(true));
            all.exec(&tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    })
    .await;
}
