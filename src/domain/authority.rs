//! Who may change whom: oneself, an admin whoever is no superuser, a superuser everybody. The last superuser stays.

use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

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
    pub fn of(user: &user::Model) -> Self {
        Self { is_admin: user.is_staff || user.is_superuser, is_superuser: user.is_superuser }
    }

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
    is_oneself: bool,
}

impl Subject {
    /// Nothing, or the refusal where an admin would put another out of office, which only a superuser does: without an
    /// account, or with an address of somebody else's, nobody is an admin any more.
    pub fn require_not_a_peer(&self) -> Result<()> {
        if self.user.is_staff && !self.is_oneself { self.authority.require_superuser() } else { Ok(()) }
    }

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
        Ok(Authority::of(&user))
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
        // With a superuser all of them, in the order of their ids: of two who demote each other one waits, and then is none any
        // more. In one statement, so that who ceases to be one meanwhile keeps its place in the order.
        let mut locked = Condition::any().add(user::Column::Id.eq(id));
        if seen.is_superuser {
            locked = locked.add(user::Column::IsSuperuser.eq(true));
        }
        let locked = user::Entity::find().filter(locked).order_by_asc(user::Column::Id).lock_exclusive();
        let locked = locked.all(&self.db).await?;
        let user = locked.iter().find(|user| user.id == id).cloned().ok_or_else(missing)?;
        // Again, now that whoever was before us is through.
        let authority = self.authority(caller).await?;
        if caller.user_id != id {
            authority.require_admin()?;
            if user.is_superuser {
                authority.require_superuser()?;
            }
        }
        // Who was made one just before we had the row: then the others need no lock, for whoever unmakes them waits for this one.
        let superusers = if user.is_superuser && !seen.is_superuser {
            user::Entity::find().filter(user::Column::IsSuperuser.eq(true)).all(&self.db).await?
        } else {
            locked
        };
        let is_active_superuser = |user: &user::Model| user.is_active && user.is_superuser;
        let is_last_superuser =
            is_active_superuser(&user) && !superusers.iter().any(|other| other.id != id && is_active_superuser(other));
        Ok(Subject { user, authority, is_last_superuser, is_oneself: caller.user_id == id })
    }
}
