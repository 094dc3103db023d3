//! `UserService`: the directory of users, and their administration.

use chrono::{DateTime, Utc};
use tonic::{Request, Response, Status};

use super::{Api, auth::owned, parse_as_user};
use crate::{
    domain::user::VisibleUser,
    error::{Error, Resource},
    pb::{self, user_service_server::UserService},
};

#[tonic::async_trait]
impl UserService for Api {
    async fn list_users(
        &self,
        _request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn create_user(&self, _request: Request<pb::CreateUserRequest>) -> Result<Response<pb::User>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Result<Response<pb::User>, Status> {
        let (_, caller, id) = parse_as_user(request, |get, _| Some(get.id))?;
        let found = self.app.get_user(&caller, id).await?;
        Ok(Response::new(reply(found.ok_or(Error::NotFound(Resource::User))?)))
    }

    async fn batch_get_users(
        &self,
        _request: Request<pb::BatchGetUsersRequest>,
    ) -> Result<Response<pb::BatchGetUsersResponse>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn update_user(&self, _request: Request<pb::UpdateUserRequest>) -> Result<Response<pb::User>, Status> {
        Err(Error::Unimplemented.into())
    }

    async fn delete_user(&self, _request: Request<pb::DeleteUserRequest>) -> Result<Response<()>, Status> {
        Err(Error::Unimplemented.into())
    }
}

fn reply(visible: VisibleUser) -> pb::User {
    let roles = owned(visible.roles().display());
    let VisibleUser { user, email } = visible;
    pb::User {
        id: user.id,
        email,
        first_name: user.first_name,
        last_name: user.last_name,
        is_active: user.is_active,
        is_verified: user.is_verified,
        is_freelancer: user.is_freelancer,
        is_seller: user.is_seller,
        is_moderator: user.is_moderator,
        roles,
        date_joined: Some(timestamp(user.date_joined)),
        updated_at: Some(timestamp(user.updated_at)),
    }
}

fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}
