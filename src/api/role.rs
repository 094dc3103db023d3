//! `RoleService`: what a user may do, and the groups that bring it.

use tonic::{Request, Response, Status};

use super::{Api, owned, parse, parse_as_user};
use crate::{
    domain::{
        group::{Group, GroupName},
        user_permission::UserPermissions,
        user_role::UserRoles,
    },
    error::{Error, FieldErrors, Resource},
    model::{
        permission::{Permission, PermissionQuery},
        role::Role,
    },
    pb::{self, role_service_server::RoleService},
};

#[tonic::async_trait]
impl RoleService for Api {
    async fn get_user_roles(
        &self,
        request: Request<pb::GetUserRolesRequest>,
    ) -> Result<Response<pb::UserRoles>, Status> {
        let (_, caller, id) = parse_as_user(request, |get, _| Some(get.id))?;
        Ok(Response::new(roles(self.app.get_user_roles(&caller, id).await?)))
    }

    async fn add_user_role(&self, request: Request<pb::AddUserRoleRequest>) -> Result<Response<pb::UserRoles>, Status> {
        let (call, caller, (id, role)) = parse_as_user(request, |add, errors| {
            let role = errors.required("role", add.role);
            Some((add.id, role.and_then(|raw| errors.check("role", Role::parse(&raw)))?))
        })?;
        Ok(Response::new(roles(self.app.add_user_role(call, caller, id, role).await?)))
    }

    async fn remove_user_role(&self, request: Request<pb::RemoveUserRoleRequest>) -> Result<Response<()>, Status> {
        let (call, caller, (id, role)) =
            parse_as_user(request, |remove, _| Some((remove.id, Role::parse(&remove.role).ok())))?;
        let role = role.ok_or(Error::NotFound(Resource::Role))?;
        self.app.remove_user_role(call, caller, id, role).await?;
        Ok(Response::new(()))
    }

    async fn check_permission(
        &self,
        request: Request<pb::CheckPermissionRequest>,
    ) -> Result<Response<pb::CheckPermissionResponse>, Status> {
        let (_, caller, (user_id, asked)) = parse_as_user(request, |check, errors| {
            let asked = errors.required("permission", check.permission);
            Some((check.user_id, asked.and_then(|raw| errors.check("permission", PermissionQuery::parse(&raw)))?))
        })?;
        let allowed = self.app.check_permission(&caller, user_id, &asked).await?;
        Ok(Response::new(pb::CheckPermissionResponse { allowed }))
    }

    async fn get_user_permissions(
        &self,
        request: Request<pb::GetUserPermissionsRequest>,
    ) -> Result<Response<pb::UserPermissions>, Status> {
        let (_, caller, id) = parse_as_user(request, |get, _| Some(get.id))?;
        Ok(Response::new(user_permissions(self.app.get_user_permissions(&caller, id).await?)))
    }

    async fn grant_permission(
        &self,
        request: Request<pb::GrantPermissionRequest>,
    ) -> Result<Response<pb::UserPermissions>, Status> {
        let (call, caller, (id, permission)) =
            parse_as_user(request, |grant, errors| Some((grant.id, required_permission(grant.permission, errors)?)))?;
        Ok(Response::new(user_permissions(self.app.grant_permission(call, caller, id, permission).await?)))
    }

    async fn revoke_permission(&self, request: Request<pb::RevokePermissionRequest>) -> Result<Response<()>, Status> {
        let (call, caller, (id, name)) = parse_as_user(request, |revoke, _| Some((revoke.id, revoke.permission)))?;
        self.app.revoke_permission(call, caller, id, permission_in_path(&name)?).await?;
        Ok(Response::new(()))
    }

    async fn list_groups(
        &self,
        request: Request<pb::ListGroupsRequest>,
    ) -> Result<Response<pb::ListGroupsResponse>, Status> {
        parse(request, |_, _| Some(()))?;
        let results: Vec<_> = self.app.list_groups().await?.into_iter().map(group).collect();
        let count = i64::try_from(results.len()).map_err(Error::internal)?;
        Ok(Response::new(pb::ListGroupsResponse { count, results }))
    }

    async fn create_group(&self, request: Request<pb::CreateGroupRequest>) -> Result<Response<pb::Group>, Status> {
        let (call, caller, name) = parse_as_user(request, |create, errors| required_name(create.name, errors))?;
        Ok(Response::new(group(self.app.create_group(call, caller, name).await?)))
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Result<Response<pb::Group>, Status> {
        let (_, id) = parse(request, |get, _| Some(get.id))?;
        Ok(Response::new(group(self.app.get_group(id).await?)))
    }

    async fn update_group(&self, request: Request<pb::UpdateGroupRequest>) -> Result<Response<pb::Group>, Status> {
        let (call, caller, (id, name)) =
            parse_as_user(request, |update, errors| Some((update.id, required_name(update.name, errors)?)))?;
        Ok(Response::new(group(self.app.rename_group(call, caller, id, name).await?)))
    }

    async fn delete_group(&self, request: Request<pb::DeleteGroupRequest>) -> Result<Response<()>, Status> {
        let (call, caller, id) = parse_as_user(request, |delete, _| Some(delete.id))?;
        self.app.delete_group(call, caller, id).await?;
        Ok(Response::new(()))
    }

    async fn add_group_permission(
        &self,
        request: Request<pb::AddGroupPermissionRequest>,
    ) -> Result<Response<pb::Group>, Status> {
        let (call, caller, (id, permission)) =
            parse_as_user(request, |add, errors| Some((add.id, required_permission(add.permission, errors)?)))?;
        Ok(Response::new(group(self.app.add_group_permission(call, caller, id, permission).await?)))
    }

    async fn remove_group_permission(
        &self,
        request: Request<pb::RemoveGroupPermissionRequest>,
    ) -> Result<Response<()>, Status> {
        let (call, caller, (id, name)) = parse_as_user(request, |remove, _| Some((remove.id, remove.permission)))?;
        self.app.remove_group_permission(call, caller, id, permission_in_path(&name)?).await?;
        Ok(Response::new(()))
    }

    async fn add_group_member(
        &self,
        request: Request<pb::AddGroupMemberRequest>,
    ) -> Result<Response<pb::UserPermissions>, Status> {
        let (call, caller, (id, user_id)) =
            parse_as_user(request, |add, errors| Some((add.id, errors.required("user_id", add.user_id)?)))?;
        Ok(Response::new(user_permissions(self.app.add_group_member(call, caller, id, user_id).await?)))
    }

    async fn remove_group_member(
        &self,
        request: Request<pb::RemoveGroupMemberRequest>,
    ) -> Result<Response<()>, Status> {
        let (call, caller, (id, user_id)) = parse_as_user(request, |remove, _| Some((remove.id, remove.user_id)))?;
        self.app.remove_group_member(call, caller, id, user_id).await?;
        Ok(Response::new(()))
    }
}

fn required_permission(raw: Option<String>, errors: &mut FieldErrors) -> Option<Permission> {
    errors.required("permission", raw).and_then(|raw| errors.check("permission", Permission::parse(&raw)))
}

/// What can't be a permission is one that nobody holds.
fn permission_in_path(raw: &str) -> Result<Permission, Error> {
    Permission::parse(raw).map_err(|_| Error::NotFound(Resource::Permission))
}

fn required_name(raw: Option<String>, errors: &mut FieldErrors) -> Option<GroupName> {
    errors.required("name", raw).and_then(|raw| errors.check("name", GroupName::parse(&raw)))
}

fn roles(of_user: UserRoles) -> pb::UserRoles {
    let UserRoles { user, permissions } = of_user;
    let roles = owned(user.roles().display());
    pb::UserRoles { id: user.id, email: user.email, roles, permissions: permissions.names() }
}

pub(super) fn user_permissions(held: UserPermissions) -> pb::UserPermissions {
    pb::UserPermissions {
        id: held.user_id,
        groups: held.groups.into_iter().map(group).collect(),
        direct: held.direct.iter().map(Permission::to_string).collect(),
        permissions: held.all.names(),
    }
}

fn group(group: Group) -> pb::Group {
    let permissions = group.permissions.iter().map(Permission::to_string).collect();
    pb::Group { id: group.id, name: group.name, permissions }
}
