//! Roles and permissions: what somebody holds, and who gives and takes it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    harness::{Actor, Face, Service, everywhere, on_each_store},
    user::user_id,
};

pub async fn add(actor: &Actor, face: Face, id: i64, role: &str) -> crate::harness::Outcome {
    actor.call(face, "RoleService.AddUserRole", json!({ "id": id, "role": role })).await
}

async fn allowed(actor: &Actor, user: i64, permission: &str) -> bool {
    let fields = json!({ "user_id": user, "permission": permission });
    let answer = actor.call(Face::Grpc, "RoleService.CheckPermission", fields).await.expect(200);
    answer["allowed"].as_bool().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_come_with_their_permissions_in_the_documented_order() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        let get = async || user.call(face, "RoleService.GetUserRoles", json!({ "id": id })).await.expect(200);
        let none = json!({ "id": id, "email": "user@example.com", "roles": ["User"], "permissions": [] });
        assert_eq!(get().await, none);

        add(&admin, face, id, "seller").await.expect(201);
        add(&admin, face, id, "freelancer").await.expect(201);
        let permissions = ["create_gig", "create_product", "view_analytics", "receive_orders"];
        let both = json!({
            "id": id, "email": "user@example.com", "roles": ["Freelancer", "Seller"], "permissions": permissions,
        });
        assert_eq!(get().await, both);
        let moderator = add(&admin, face, id, "moderator").await.expect(201);
        assert_eq!(moderator["roles"], json!(["Freelancer", "Seller", "Moderator"]));
        let mut more = permissions.to_vec();
        more.extend(["moderate_content", "manage_disputes"]);
        assert_eq!(moderator["permissions"], json!(more));
        let again = add(&admin, face, id, "moderator").await.expect(201);
        assert_eq!(again, moderator, "one that is held is fine");

        let mine = admin.call(face, "RoleService.GetUserRoles", json!({ "id": user_id(&admin) })).await.expect(200);
        more.extend(["manage_users", "manage_roles"]);
        assert_eq!((&mine["roles"], &mine["permissions"]), (&json!(["Admin"]), &json!(more)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_not_one_is_a_bad_field_in_a_body_and_nowhere_in_a_path() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        for role in ["Seller", "user", "superuser", "", " seller"] {
            add(&admin, face, id, role).await.expect_field(400, "role");
        }
        for role in ["Seller", "user", "seller"] {
            let fields = json!({ "id": id, "role": role });
            let outcome = admin.call(face, "RoleService.RemoveUserRole", fields).await;
            assert_eq!(outcome.status, 404, "{role} is not held: {outcome:?}");
            assert!(outcome.text.contains("Role not found"), "{outcome:?}");
        }
        add(&admin, face, id, "seller").await.expect(201);
        let fields = json!({ "id": id, "role": "seller" });
        admin.call(face, "RoleService.RemoveUserRole", fields).await.expect(204);
        let left = user.call(face, "RoleService.GetUserRoles", json!({ "id": id })).await.expect(200);
        assert_eq!(left["roles"], json!(["User"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_direct_grants_add_to_what_roles_allow() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        add(&admin, face, id, "seller").await.expect(201);
        let group = admin.call(face, "RoleService.CreateGroup", json!({ "name": "Поддержка" })).await.expect(201);
        let group_id = group["id"].clone();
        assert_eq!(group, json!({ "id": group_id, "name": "Поддержка", "permissions": [] }));
        for permission in ["shop.refund", "moderate_content", "users.create_gig", "billing.view-all"] {
            let fields = json!({ "id": group_id, "permission": permission });
            admin.call(face, "RoleService.AddGroupPermission", fields).await.expect(201);
        }
        let member = json!({ "id": group_id, "user_id": id });
        admin.call(face, "RoleService.AddGroupMember", member.clone()).await.expect(201);
        let grant = json!({ "id": id, "permission": "audit.read" });
        let held = admin.call(face, "RoleService.GrantPermission", grant.clone()).await.expect(201);
        let permissions = [
            "create_gig",
            "create_product",
            "view_analytics",
            "receive_orders",
            "moderate_content",
            "audit.read",
            "billing.view-all",
            "shop.refund",
        ];
        let expected = json!({
            "id": id,
            "groups": [{
                "id": group_id, "name": "Поддержка",
                "permissions": ["billing.view-all", "shop.refund", "create_gig", "moderate_content"],
            }],
            "direct": ["audit.read"],
            "permissions": permissions,
        });
        assert_eq!(held, expected);
        let seen = user.call(face, "RoleService.GetUserPermissions", json!({ "id": id })).await.expect(200);
        assert_eq!(seen, expected);
        let roles = user.call(face, "RoleService.GetUserRoles", json!({ "id": id })).await.expect(200);
        assert_eq!((&roles["roles"], &roles["permissions"]), (&json!(["Seller"]), &json!(permissions)));
        let token = json!({ "token": user.access_token });
        let token = service.anonymous().call(face, "AuthService.VerifyToken", token).await.expect(200);
        assert_eq!(token["permissions"], json!(permissions));

        // Each goes as it came, and what comes otherwise too stays.
        admin
            .call(face, "RoleService.GrantPermission", json!({ "id": id, "permission": "shop.refund" }))
            .await
            .expect(201);
        admin.call(face, "RoleService.RevokePermission", grant.clone()).await.expect(204);
        admin.call(face, "RoleService.RevokePermission", grant).await.expect(404);
        admin.call(face, "RoleService.RemoveGroupMember", member.clone()).await.expect(204);
        admin.call(face, "RoleService.RemoveGroupMember", member.clone()).await.expect(404);
        let left = user.call(face, "RoleService.GetUserPermissions", json!({ "id": id })).await.expect(200);
        let left_over = ["create_product", "view_analytics", "receive_orders", "shop.refund"];
        assert_eq!(left["permissions"], json!(left_over));
        assert_eq!((&left["groups"], &left["direct"]), (&json!([]), &json!(["shop.refund"])));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_is_asked_for_by_name_by_app_and_name_or_by_app_alone() {
    on_each_store(async |service| {
        let superuser = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let id = user_id(&user);
        add(&superuser, Face::Rest, id, "seller").await.expect(201);
        let grant = json!({ "id": id, "permission": "shop.refund" });
        superuser.call(Face::Rest, "RoleService.GrantPermission", grant).await.expect(201);
        let answers = [
            ("create_product", true),
            ("users.create_product", true),
            ("create_gig", false),
            ("shop.refund", true),
            ("shop.sell", false),
            ("refund", false),
            ("shop.", true),
            ("users.", true),
            ("billing.", false),
        ];
        for (permission, expected) in answers {
            assert_eq!(allowed(&user, id, permission).await, expected, "{permission}");
            assert!(allowed(&superuser, user_id(&superuser), permission).await, "a superuser has all: {permission}");
        }
        for nonsense in ["", ".", "a.b.c", "a b", "shop..", ".x", "x".repeat(101).as_str()] {
            let fields = json!({ "user_id": id, "permission": nonsense });
            user.call(Face::Grpc, "RoleService.CheckPermission", fields).await.expect_field(400, "permission");
        }
        let off = json!({ "id": id, "is_active": false });
        superuser.call(Face::Rest, "UserService.UpdateUser", off).await.expect(200);
        for permission in ["create_product", "shop.refund", "users."] {
            assert!(!allowed(&superuser, id, permission).await, "one who is not active has none: {permission}");
        }
        let roles = superuser.call(Face::Rest, "RoleService.GetUserRoles", json!({ "id": id })).await.expect(200);
        assert_eq!(roles["permissions"], json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_made_renamed_listed_and_deleted() {
    everywhere(async |service, face| {
        let admin = service.admin("admin@example.com").await;
        let user = service.user("user@example.com").await;
        let call = async |rpc: &str, fields: Value| admin.call(face, rpc, fields).await;
        let empty = call("RoleService.ListGroups", json!({})).await.expect(200);
        assert_eq!(empty, json!({ "count": 0, "results": [] }));
        let mut ids = Vec::new();
        for name in ["Writers", " Editors ", "Админы"] {
            let made = call("RoleService.CreateGroup", json!({ "name": name })).await.expect(201);
            assert_eq!(made["name"], name.trim());
            ids.push(made["id"].as_i64().unwrap());
        }
        let listed = call("RoleService.ListGroups", json!({})).await.expect(200);
        let names: Vec<_> = listed["results"].as_array().unwrap().iter().map(|group| group["name"].clone()).collect();
        assert_eq!((&listed["count"], names), (&json!(3), vec![json!("Editors"), json!("Writers"), json!("Админы")]));

        let taken = ["A group with this name already exists."];
        let outcome = call("RoleService.CreateGroup", json!({ "name": "Editors" })).await;
        assert_eq!(outcome.expect_field(400, "name"), taken);
        let outcome = call("RoleService.UpdateGroup", json!({ "id": ids[0], "name": "Editors" })).await;
        assert_eq!(outcome.expect_field(400, "name"), taken);
        let renamed = call("RoleService.UpdateGroup", json!({ "id": ids[0], "name": "Authors" })).await.expect(200);
        assert_eq!(renamed, json!({ "id": ids[0], "name": "Authors", "permissions": [] }));
        call("RoleService.UpdateGroup", json!({ "id": ids[0], "name": "Authors" })).await.expect(200);

        let permission = json!({ "id": ids[0], "permission": "shop.refund" });
        call("RoleService.AddGroupPermission", permission.clone()).await.expect(201);
        let again = call("RoleService.AddGroupPermission", permission).await.expect(201);
        assert_eq!(again["permissions"], json!(["shop.refund"]), "one that is there is fine");
        let member = json!({ "id": ids[0], "user_id": user_id(&user) });
        call("RoleService.AddGroupMember", member.clone()).await.expect(201);
        let nobody = json!({ "id": ids[0], "user_id": 999 });
        let refused = call("RoleService.AddGroupMember", nobody).await;
        assert_eq!(refused.expect_field(400, "user_id"), ["There is no such user."]);
        let again = call("RoleService.AddGroupMember", member).await.expect(201);
        assert_eq!(again["groups"].as_array().unwrap().len(), 1);
        assert!(allowed(&user, user_id(&user), "shop.refund").await);
        let members = call("UserService.ListUsers", json!({ "group": ids[0] })).await.expect(200);
        assert_eq!((&members["count"], &members["results"][0]["id"]), (&json!(1), &json!(user_id(&user))));
        let others = call("UserService.ListUsers", json!({ "group": ids[1], "search": "user" })).await.expect(200);
        assert_eq!(others["count"], 0);
        user.call(face, "UserService.ListUsers", json!({ "group": ids[0] })).await.expect(403);

        call("RoleService.DeleteGroup", json!({ "id": ids[0] })).await.expect(204);
        call("RoleService.GetGroup", json!({ "id": ids[0] })).await.expect(404);
        assert!(!allowed(&user, user_id(&user), "shop.refund").await);
        call("UserService.GetUser", json!({ "id": user_id(&user) })).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_more_groups_and_permissions_than_fit_into_an_answer() {
    on_each_store(async |service| {
        use identity::entity::{group, permission, user_permission};
        use sea_orm::{ActiveValue::Set, EntityTrait};
        let admin = service.admin("admin@example.com").await;
        let id = user_id(&admin);
        let tx = service.app.db.begin().await.unwrap();
        let groups = (0..999).map(|n| group::ActiveModel { name: Set(format!("group {n}")), ..Default::default() });
        group::Entity::insert_many(groups).exec_without_returning(&tx).await.unwrap();
        let permissions = (1..=199).map(|n| permission::ActiveModel {
            id: Set(n),
            app_label: Set("shop".to_owned()),
            codename: Set(format!("p{n}")),
            name: Set(String::new()),
        });
        permission::Entity::insert_many(permissions).exec_without_returning(&tx).await.unwrap();
        let held = (1..=199).map(|n| user_permission::ActiveModel { user_id: Set(id), permission_id: Set(n) });
        user_permission::Entity::insert_many(held).exec_without_returning(&tx).await.unwrap();
        tx.commit().await.unwrap();

        admin.call(Face::Rest, "RoleService.CreateGroup", json!({ "name": "the last" })).await.expect(201);
        let refused = admin.call(Face::Rest, "RoleService.CreateGroup", json!({ "name": "one more" })).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        let listed = admin.call(Face::Rest, "RoleService.ListGroups", json!({})).await.expect(200);
        assert_eq!(listed["count"], 1000);
        let grant = |name: &str| json!({ "id": id, "permission": name });
        // Known only to the store of ids until here: PostgreSQL's sequence begins at 1.
        if service.app.db.backend_name() == "SQLite" {
            admin.call(Face::Rest, "RoleService.GrantPermission", grant("shop.last")).await.expect(201);
            let refused = admin.call(Face::Rest, "RoleService.GrantPermission", grant("shop.more")).await;
            assert_eq!(refused.status, 409, "{refused:?}");
        }
    })
    .await;
}

/// Nobody gets past the rules by putting a role into a path in another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_permission_in_a_path_is_read_as_it_is_written() {
    on_each_store(async |service: &Service| {
        let admin = service.admin("admin@example.com").await;
        let id = user_id(&admin);
        let grant = json!({ "id": id, "permission": "shop.refund" });
        admin.call(Face::Rest, "RoleService.GrantPermission", grant).await.expect(201);
        for (path, status) in
            [("shop.refund%20", 404), ("SHOP.refund", 404), ("shop%2erefund", 204), ("shop.refund", 404), ("%00", 404)]
        {
            let path = format!("/api/users/{id}/permissions/{path}/");
            let response = admin.request(Method::DELETE, &path).send().await.unwrap();
            assert_eq!(response.status(), status, "{path}");
        }
    })
    .await;
}
