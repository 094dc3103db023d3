//! What a user holds besides roles: permissions granted directly, and membership in groups.

use std::sync::Arc;

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QuerySelect,
    QueryTrait,
    sea_query::{Expr, OnConflict},
};

use crate::{
    app::App,
    domain::{
        audit::Event,
        authority::Subject,
        caller::{Call, Caller},
        change::Transaction,
        event::UserEvent,
        group::{self, Group},
        permission::{MAX_PERMISSIONS, granted, id_of, id_query, named},
    },
    entity::{permission, user, user_group, user_permission},
    error::{Conflict, Denial, Error, Resource, Result},
    model::{
        permission::{Permission, PermissionQuery, Permissions},
        user::{Account, User},
    },
};

/// What a user may do, and where it comes from.
pub struct UserPermissions {
    pub user_id: i64,
    pub groups: Vec<Group>,
    pub direct: Vec<Permission>,
    pub all: Permissions,
}

impl App {
    /// What the user may do, and where it comes from: for oneself and admins.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`.
    pub async fn get_user_permissions(&self, caller: &Caller, user_id: i64) -> Result<UserPermissions> {
        let account = self.account_for_oneself_or_admin(caller, user_id).await?;
        user_permissions(self.db.reader(), &account.user).await
    }

    /// Whether the user has the permission: for oneself and admins to ask. A superuser has all, an inactive user none.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`.
    pub async fn check_permission(&self, caller: &Caller, user_id: i64, asked: &PermissionQuery) -> Result<bool> {
        let permissions = self.account_for_oneself_or_admin(caller, user_id).await?.permissions();
        Ok(match asked {
            PermissionQuery::One(permission) => permissions.has_perm(permission),
            PermissionQuery::AnyOf(app) => permissions.has_module_perms(app),
        })
    }

    /// The account, for oneself and admins. For others it is the same whether there is one or not.
    pub(super) async fn account_for_oneself_or_admin(&self, caller: &Caller, user_id: i64) -> Result<Arc<Account>> {
        if caller.user_id != user_id && !caller.roles.is_admin() {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        self.account(user_id).await?.ok_or(Error::NotFound(Resource::User))
    }

    /// Gives the user a permission, and returns all that it holds. One that is held directly already is fine.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; `Conflict` if there are too many.
    pub async fn grant_permission(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        user_id: i64,
        permission: Permission,
    ) -> Result<UserPermissions> {
        self.change(move |tx| {
            Box::pin(async move {
                let Subject { user, authority, .. } = tx.lock_subject(&caller, user_id).await?;
                authority.require_admin()?;
                permission.require_grantable_by(authority)?;
                let permission_id = id_of(&tx.db, &permission).await?;
                let row = user_permission::Model { user_id, permission_id };
                let taken = user_permission::Entity::insert(user_permission::ActiveModel::from(row))
                    .on_conflict(OnConflict::new().do_nothing().to_owned())
                    .exec_without_returning(&tx.db)
                    .await?;
                if taken == 1 {
                    let held = user_permission::Entity::find().filter(user_permission::Column::UserId.eq(user_id));
                    if held.count(&tx.db).await? > MAX_PERMISSIONS {
                        return Err(Error::Conflict(Conflict::TooManyPermissions));
                    }
                    let event = Event::PermissionGranted(permission.to_string());
                    tx.audit(event, Some(&call), user_id)?;
                    tx.tell_of_permissions(user_id).await?;
                }
                user_permissions(&tx.db, &user.into()).await
            })
        })
        .await
    }

    /// Takes a directly granted permission from the user.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`, also if it is not granted directly.
    pub async fn revoke_permission(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        user_id: i64,
        permission: Permission,
    ) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                let Subject { authority, .. } = tx.lock_subject(&caller, user_id).await?;
                authority.require_admin()?;
                permission.require_grantable_by(authority)?;
                let gone = user_permission::Entity::delete_many()
                    .filter(user_permission::Column::UserId.eq(user_id))
                    .filter(user_permission::Column::PermissionId.in_subquery(id_query(&permission)))
                    .exec(&tx.db)
                    .await?;
                if gone.rows_affected == 0 {
                    return Err(Error::NotFound(Resource::Permission));
                }
                tx.audit(Event::PermissionRevoked(permission.to_string()), Some(&call), user_id)?;
                tx.tell_of_permissions(user_id).await?;
                Ok(())
            })
        })
        .await
    }

    /// Puts a user into the group, and returns all that the user holds. One who is there already is fine.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if there is no such user; `PermissionDenied`.
    pub async fn add_group_member(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        user_id: i64,
    ) -> Result<UserPermissions> {
        self.change(move |tx| {
            Box::pin(async move {
                let Subject { user, authority, .. } =
                    tx.lock_subject(&caller, user_id).await.map_err(or_no_such_user)?;
                authority.require_admin()?;
                let group = tx.lock_group(id).await?;
                group.require_changeable_by(authority)?;
                let row = user_group::ActiveModel::from(user_group::Model { user_id, group_id: id });
                let added = user_group::Entity::insert(row)
                    .on_conflict(OnConflict::new().do_nothing().to_owned())
                    .exec_without_returning(&tx.db)
                    .await?;
                if added == 1 {
                    tx.audit(Event::GroupMemberAdded(group.name), Some(&call), user_id)?;
                    tx.tell_of_permissions(user_id).await?;
                }
                user_permissions(&tx.db, &user.into()).await
            })
        })
        .await
    }

    /// Takes a user out of the group.
    ///
    /// # Errors
    /// `NotFound`, also if the user is not in there; `PermissionDenied`.
    pub async fn remove_group_member(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        user_id: i64,
    ) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                let Subject { authority, .. } = tx.lock_subject(&caller, user_id).await?;
                authority.require_admin()?;
                let group = tx.lock_group(id).await?;
                group.require_changeable_by(authority)?;
                if user_group::Entity::delete_by_id((user_id, id)).exec(&tx.db).await?.rows_affected == 0 {
                    return Err(Error::NotFound(Resource::Membership));
                }
                tx.audit(Event::GroupMemberRemoved(group.name), Some(&call), user_id)?;
                tx.tell_of_permissions(user_id).await?;
                Ok(())
            })
        })
        .await
    }
}

impl Transaction {
    /// Tells others that what the user holds has changed. The row is ours.
    pub async fn tell_of_permissions(&mut self, user_id: i64) -> Result<()> {
        let touched = user::Entity::update_many()
            .col_expr(user::Column::Version, Expr::col(user::Column::Version).add(1))
            .filter(user::Column::Id.eq(user_id))
            .exec_with_returning(&self.db)
            .await?;
        for user in &touched {
            self.announce(&UserEvent::RolesChanged, user)?;
            self.account_changed(user);
        }
        Ok(())
    }
}

/// What the user may do, and where it comes from.
pub(super) async fn user_permissions(db: &impl ConnectionTrait, user: &User) -> Result<UserPermissions> {
    let of_user = user_permission::Entity::find()
        .select_only()
        .column(user_permission::Column::PermissionId)
        .filter(user_permission::Column::UserId.eq(user.id));
    let mut direct = named(db, Condition::all().add(permission::Column::Id.in_subquery(of_user.into_query()))).await?;
    direct.sort();
    Ok(UserPermissions {
        user_id: user.id,
        groups: group::groups_of(db, user.id).await?,
        direct,
        all: Permissions::of(user, granted(db, user.id).await?),
    })
}

/// The user comes in a field here, and is not what the call is about.
fn or_no_such_user(error: Error) -> Error {
    let Error::NotFound(Resource::User) = error else { return error };
    Error::invalid("user_id", "There is no such user.")
}
