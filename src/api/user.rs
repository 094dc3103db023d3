//! `UserService`: the directory of users, and their administration.

use std::{num::NonZeroU64, sync::Arc};

use tonic::{Request, Response, Status};

use super::{Api, new_account, owned, parse_as_user, patch::Patch, rest::RawQuery, timestamp};
use crate::{
    domain::{
        account::{UserChange, UserField},
        caller::Call,
        directory::{Filter, Ordering, Position, Query, Search},
        page::PageSize,
        registration::{AccountFlags, NewAccount},
        user::{BatchIds, EmailAddress, PersonName},
    },
    error::{Error, FieldErrors, Resource, Result},
    model::{role::Role, user::User},
    pb::{self, user_service_server::UserService},
};

#[tonic::async_trait]
impl UserService for Api {
    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let parameters = parameters(&request);
        let (call, caller, query) = parse_as_user(request, list_query)?;
        let page = self.app.list_users(caller, query?).await?;
        let link = |number: u64| format!("{}/api/users/{}", self.app.base_url(&call), query_of(&parameters, number));
        let number = page.number.map(NonZeroU64::get);
        let next = number.filter(|_| page.next_page_token.is_some()).map(|number| link(number + 1));
        let previous = number.filter(|number| *number > 1).map(|number| link(number - 1));
        Ok(Response::new(pb::ListUsersResponse {
            count: i64::try_from(page.count).unwrap_or(i64::MAX),
            next,
            previous,
            results: page.users.into_iter().map(reply).collect(),
            next_page_token: page.next_page_token.unwrap_or_default(),
        }))
    }

    async fn create_user(&self, request: Request<pb::CreateUserRequest>) -> Result<Response<pb::User>, Status> {
        let (call, caller, (new, flags)) = parse_as_user(request, new_user)?;
        Ok(Response::new(reply(self.app.create_user(call, caller, new, flags).await?)))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Result<Response<pb::User>, Status> {
        let (_, caller, id) = parse_as_user(request, |get, _| Some(get.id))?;
        let found = self.app.get_user(&caller, id).await?;
        Ok(Response::new(reply(found.ok_or(Error::NotFound(Resource::User))?)))
    }

    async fn batch_get_users(
        &self,
        request: Request<pb::BatchGetUsersRequest>,
    ) -> Result<Response<pb::BatchGetUsersResponse>, Status> {
        let (_, caller, ids) = parse_as_user(request, |batch, errors| errors.check("ids", BatchIds::parse(batch.ids)))?;
        let users = self.app.batch_get_users(&caller, &ids).await?;
        Ok(Response::new(pb::BatchGetUsersResponse { users: users.into_iter().map(reply).collect() }))
    }

    async fn update_user(&self, request: Request<pb::UpdateUserRequest>) -> Result<Response<pb::User>, Status> {
        let asked = request.extensions().get::<Arc<Call>>().and_then(|call| call.caller.clone());
        let (id, mut named) = (request.get_ref().id, Vec::new());
        let parsed =
            parse_as_user(request, |update, errors| Some((update.id, user_change(update, errors, &mut named))));
        if let (Err(Error::Invalid(_)), Some(caller)) = (&parsed, asked) {
            // Whoever may not set a field is told that, and not how to write it.
            self.app.require_may_set(&caller, id, &named).await?;
        }
        let (call, caller, (id, change)) = parsed?;
        Ok(Response::new(reply(self.app.update_user(call, caller, id, change).await?)))
    }

    async fn export_user(&self, request: Request<pb::ExportUserRequest>) -> Result<Response<pb::UserExport>, Status> {
        let (call, caller, id) = parse_as_user(request, |export, _| Some(export.id))?;
        let export = self.app.export_user(Arc::clone(&call), caller, id).await?;
        Ok(Response::new(self.exported(&call, export)))
    }

    async fn delete_user(&self, request: Request<pb::DeleteUserRequest>) -> Result<Response<()>, Status> {
        let (call, caller, id) = parse_as_user(request, |delete, _| Some(delete.id))?;
        self.app.delete_user(call, caller, id).await?;
        Ok(Response::new(()))
    }
}

fn new_user(new: pb::CreateUserRequest, errors: &mut FieldErrors) -> Option<(NewAccount, AccountFlags)> {
    let flags = AccountFlags {
        is_active: new.is_active.unwrap_or(true),
        is_verified: new.is_verified.unwrap_or_default(),
        is_freelancer: new.is_freelancer.unwrap_or_default(),
        is_seller: new.is_seller.unwrap_or_default(),
        is_moderator: new.is_moderator.unwrap_or_default(),
        is_staff: new.is_staff,
        is_superuser: new.is_superuser,
    };
    Some((new_account(new.email, new.password, [new.first_name, new.last_name], errors)?, flags))
}

/// What to change; and in `named` each field that the request names, also with a value that can't be read.
fn user_change(update: pb::UpdateUserRequest, errors: &mut FieldErrors, named: &mut Vec<UserField>) -> UserChange {
    let mut patch = Patch::new(update.update_mask, &UserField::NAMES.map(|(name, _)| name), errors);
    let email = patch.check("email", update.email, |raw| EmailAddress::parse(&raw));
    let first_name = patch.check("first_name", update.first_name, |raw| PersonName::parse(&raw));
    let last_name = patch.check("last_name", update.last_name, |raw| PersonName::parse(&raw));
    let change = UserChange {
        email: patch.value("email", email),
        first_name: patch.value("first_name", first_name),
        last_name: patch.value("last_name", last_name),
        is_active: patch.value("is_active", update.is_active),
        is_verified: patch.value("is_verified", update.is_verified),
        is_freelancer: patch.value("is_freelancer", update.is_freelancer),
        is_seller: patch.value("is_seller", update.is_seller),
        is_moderator: patch.value("is_moderator", update.is_moderator),
        is_staff: patch.value("is_staff", update.is_staff),
        is_superuser: patch.value("is_superuser", update.is_superuser),
    };
    let wrong = UserField::NAMES.into_iter().filter(|(name, _)| errors.has(name)).map(|(_, field)| field);
    named.extend(change.fields().chain(wrong));
    change
}

/// What to list. A page that can't be is not found rather than wrong, and the fields that are wrong come first.
fn list_query(list: pb::ListUsersRequest, errors: &mut FieldErrors) -> Option<Result<Query>> {
    let page_is_readable = !errors.forget("page");
    errors.forget("page_size");
    let search = errors.check("search", Search::parse(&list.search.unwrap_or_default()));
    let role = list.role.and_then(|raw| errors.check("role", Role::parse(&raw)));
    let filter = Filter { search: search?, role, is_verified: list.is_verified, group_id: list.group };
    let ordering = Ordering::parse(&list.ordering.unwrap_or_default());
    // An empty token is that of no page: whoever hands on what came last begins so.
    let position = match list.page_token.filter(|token| !token.is_empty()) {
        Some(token) => Some(Position::After(token)),
        None if page_is_readable => Position::page(list.page.unwrap_or(1)),
        None => None,
    };
    let query = |position| Query { filter, ordering, position, page_size: PageSize::new(list.page_size) };
    Some(position.map(query).ok_or(Error::NotFound(Resource::Page)))
}

/// What a list was asked for, save the page: as it came on REST, unknown parameters too; on gRPC as it would come.
fn parameters(request: &Request<pb::ListUsersRequest>) -> Vec<(String, String)> {
    if let Some(RawQuery(query)) = request.extensions().get() {
        return form_urlencoded::parse(query.as_bytes()).into_owned().filter(|(name, _)| name != "page").collect();
    }
    let list = request.get_ref();
    [
        ("page_size", list.page_size.map(|n| n.to_string())),
        ("search", list.search.clone()),
        ("role", list.role.clone()),
        ("is_verified", list.is_verified.map(|is| is.to_string())),
        ("ordering", list.ordering.clone()),
        ("group", list.group.map(|id| id.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect()
}

/// The query of a page of this list: sorted by name, and without a number for the first page, as the Django service did it.
fn query_of(parameters: &[(String, String)], page: u64) -> String {
    let page = (page > 1).then(|| ("page".to_owned(), page.to_string()));
    let mut all: Vec<_> = parameters.iter().chain(&page).collect();
    all.sort_by_key(|(name, _)| name);
    if all.is_empty() {
        return String::new();
    }
    format!("?{}", form_urlencoded::Serializer::new(String::new()).extend_pairs(all).finish())
}

fn reply(user: User) -> pb::User {
    pb::User {
        id: user.id,
        roles: owned(user.roles().display()),
        email: user.email,
        first_name: user.first_name,
        last_name: user.last_name,
        is_active: user.is_active,
        is_verified: user.is_verified,
        is_freelancer: user.is_freelancer,
        is_seller: user.is_seller,
        is_moderator: user.is_moderator,
        date_joined: Some(timestamp(user.date_joined)),
        updated_at: Some(timestamp(user.updated_at)),
    }
}
