//! Superusers and admins: who makes and unmakes them, and that the last one stays.

use futures_util::future::join_all;
use identity::entity::user;
use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, sea_query::Expr};
use serde_json::json;

use crate::{
    account::{row, staff, update},
    harness::{Face, PASSWORD, everywhere, on_each_store},
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
