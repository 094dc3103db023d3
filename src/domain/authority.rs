//! Who may change whom: oneself, an admin whoever is no superuser, a superuser everybody. The last superuser stays.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    domain::{caller::Caller, change::Transaction},
    entity::user,
    error::{AuthFailure, Conflict, Denial, Error, Resource, Result},
};

/// Who means to change something, as the database has it now and not as a token said it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Authority {
    pub is_admin: bool,
    pub is_superuser: bool,
}

impl Authority {
    pub fn require_admin(self) -> Result<()> {
        if self.is_admin { Ok(()) } else { Err(Error::PermissionDenied(Denial::Role)) }
    }

    pub fn require_superuser(self) -> Result<()> {
        if self.is_superuser { Ok(()) } else { Err(Error::PermissionDenied(Denial::Role)) }
    }
}

/// A user who is to be changed. The row is ours until the commit.
pub(super) struct Subject {
    pub user: user::Model,
    /// What whoever changes it may do.
    pub authority: Authority,
    is_last_superuser: bool,
}

impl Subject {
    /// Nothing, or the refusal where nobody would be left to make superusers.
    pub fn require_dispensable(&self) -> Result<()> {
        if self.is_last_superuser { Err(Error::Conflict(Conflict::LastSuperuser)) } else { Ok(()) }
    }
}

impl Transaction {
    /// What the caller may do, as of now.
    ///
    /// # Errors
    /// `Unauthenticated` if the account is gone or inactive.
    pub async fn authority(&self, caller: &Caller) -> Result<Authority> {
        let user = user::Entity::find_by_id(caller.user_id).one(&self.db).await?.filter(|user| user.is_active);
        let user = user.ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))?;
        Ok(Authority { is_admin: user.is_staff || user.is_superuser, is_superuser: user.is_superuser })
    }

    /// The user with this id, locked, if the caller may change it: oneself and, for an admin, others. Whoever may not learns
    /// nothing, not even whether there is such a user.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; `Unauthenticated` if the caller's account is gone or inactive.
    pub async fn lock_subject(&self, caller: &Caller, id: i64) -> Result<Subject> {
        if caller.user_id != id {
            self.authority(caller).await?.require_admin()?;
        }
        let missing = || Error::NotFound(Resource::User);
        let seen = user::Entity::find_by_id(id).one(&self.db).await?.ok_or_else(missing)?;
        // All superusers, in the order of their ids: of two who demote each other one waits, and then is none any more.
        let superusers = if seen.is_superuser {
            let all = user::Entity::find().filter(user::Column::IsSuperuser.eq(true)).order_by_asc(user::Column::Id);
            all.lock_exclusive().all(&self.db).await?
        } else {
            Vec::new()
        };
        let user = user::Entity::find_by_id(id).lock_exclusive().one(&self.db).await?.ok_or_else(missing)?;
        // Again, now that whoever was before us is through.
        let authority = self.authority(caller).await?;
        if caller.user_id != id {
            authority.require_admin()?;
            if user.is_superuser {
                authority.require_superuser()?;
            }
        }
        let is_active_superuser = |user: &user::Model| user.is_active && user.is_superuser;
        let is_last_superuser =
            is_active_superuser(&user) && !superusers.iter().any(|other| other.id != id && is_active_superuser(other));
        Ok(Subject { user, authority, is_last_superuser })
    }
}
