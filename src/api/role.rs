//! `RoleService`: what a user may do.

use tonic::{Request, Response, Status};

use super::Api;
use crate::{
    error::Error,
    pb::{self, role_service_server::RoleService},
};

#[tonic::async_trait]
impl RoleService for Api {
    async fn get_user_roles(
        &self,
        _request: Request<pb::GetUserRolesRequest>,
    ) -> Result<Response<pb::UserRoles>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn add_user_role(
        &self,
        _request: Request<pb::AddUserRoleRequest>,
    ) -> Result<Response<pb::UserRoles>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn remove_user_role(&self, _request: Request<pb::RemoveUserRoleRequest>) -> Result<Response<()>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn check_permission(
        &self,
        _request: Request<pb::CheckPermissionRequest>,
    ) -> Result<Response<pb::CheckPermissionResponse>, Status> {
        Err(Error::Unimplemented.into())
    }
}
