//! Who holds which role, and how one is given and taken.

use std::sync::Arc;

use crate::{
    app::App,
    domain::{
        account::UserChange,
        caller::{Call, Caller},
        permission::granted,
    },
    entity::user,
    error::{Error, Resource, Result},
    model::{
        permission::Permissions,
        role::{Role, Roles},
        user::User,
    },
};

/// A user's roles, and what they and all else allow.
pub struct UserRoles {
    pub user: User,
    pub permissions: Permissions,
}

impl App {
    /// The user's roles and permissions: for oneself and admins.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`.
    pub async fn get_user_roles(&self, caller: &Caller, id: i64) -> Result<UserRoles> {
        let account = self.account_for_oneself_or_admin(caller, id).await?;
        Ok(UserRoles { user: account.user.clone(), permissions: account.permissions() })
    }

    /// Gives the user a role. One that is held already is fine.
    ///
    /// # Errors
    /// `PermissionDenied`: only a superuser gives admin, or changes a superuser; `NotFound`.
    pub async fn add_user_role(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        role: Role,
    ) -> Result<UserRoles> {
        let user = User::from(self.change_user(call, caller, id, move |_| Ok(given(role))).await?);
        let granted = granted(self.db.reader(), user.id).await?;
        Ok(UserRoles { permissions: Permissions::of(&user, granted), user })
    }

    /// Takes a role from the user.
    ///
    /// # Errors
    /// As [`App::add_user_role`]; `NotFound` also if the role is not held; `Conflict` for the last superuser.
    pub async fn remove_user_role(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        role: Role,
    ) -> Result<()> {
        let plan = move |user: &user::Model| {
            if Roles::of(user).has(role) { Ok(taken(role)) } else { Err(Error::NotFound(Resource::Role)) }
        };
        self.change_user(call, caller, id, plan).await?;
        Ok(())
    }
}

/// What to change of a user to give the role.
fn given(role: Role) -> UserChange {
    match role {
        Role::Freelancer => UserChange { is_freelancer: Some(true), ..UserChange::default() },
        Role::Seller => UserChange { is_seller: Some(true), ..UserChange::default() },
        Role::Moderator => UserChange { is_moderator: Some(true), ..UserChange::default() },
        Role::Admin => UserChange { is_staff: Some(true), ..UserChange::default() },
    }
}

/// What to change of a user to take the role. A superuser is an admin too.
fn taken(role: Role) -> UserChange {
    match role {
        Role::Freelancer => UserChange { is_freelancer: Some(false), ..UserChange::default() },
        Role::Seller => UserChange { is_seller: Some(false), ..UserChange::default() },
        Role::Moderator => UserChange { is_moderator: Some(false), ..UserChange::default() },
        Role::Admin => UserChange { is_staff: Some(false), is_superuser: Some(false), ..UserChange::default() },
    }
}
