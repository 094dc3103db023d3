//! Permissions: what roles, groups and direct grants allow. Contract §5.

use std::{collections::BTreeSet, fmt, sync::Arc};

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
    sea_query::{Expr, OnConflict, SelectStatement},
};

use crate::{
    app::App,
    db::Tx,
    domain::{
        audit::Event,
        authority::{Authority, Subject},
        caller::{Call, Caller},
        event::News,
        role::{PERMISSIONS, Role, Roles},
    },
    entity::{group_permission, permission, user, user_group, user_permission},
    error::{Conflict, Denial, Error, Resource, Result},
};

/// The app of this service itself, as Django named it. Its permissions are named without it.
const OWN_APP: &str = "users";
const NAME_MAX_CHARS: usize = 100;
/// How many permissions a group may have, and how many a user may hold directly.
pub(super) const MAX_PERMISSIONS: u64 = 200;

/// A permission, as Django names it: `app.codename`; one of this service's own by its codename alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permission {
    app: String,
    codename: String,
}

impl Permission {
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let (app, codename) = raw.split_once('.').unwrap_or((OWN_APP, raw));
        if raw.is_empty() {
            return Err("This field may not be blank.");
        }
        if !is_name(app) || !is_name(codename) {
            return Err("Name it as \"codename\" or \"app.codename\": letters, digits, _ and -.");
        }
        Ok(Self { app: app.to_owned(), codename: codename.to_owned() })
    }

    fn own(codename: &str) -> Self {
        Self { app: OWN_APP.to_owned(), codename: codename.to_owned() }
    }

    /// Nothing, or the refusal: what of all roles only admins are allowed is as good as their role, and so as hard to get.
    pub(super) fn require_grantable_by(&self, authority: Authority) -> Result<()> {
        let is_for_admins =
            PERMISSIONS.iter().any(|(name, roles)| *self == Self::own(name) && *roles == [Role::Admin].as_slice());
        if is_for_admins { authority.require_superuser() } else { Ok(()) }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.app == OWN_APP { f.write_str(&self.codename) } else { write!(f, "{}.{}", self.app, self.codename) }
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX_CHARS).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// What is asked of somebody: one permission, or any of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    One(Permission),
    AnyOf(String),
}

impl Asked {
    /// A permission, or `app.`.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        match raw.strip_suffix('.').filter(|app| is_name(app)) {
            Some(app) => Ok(Self::AnyOf(app.to_owned())),
            None => Permission::parse(raw).map(Self::One),
        }
    }
}

/// What somebody may do.
#[derive(Debug, Clone)]
pub struct Permissions {
    held: BTreeSet<Permission>,
    /// A superuser: whatever it is.
    everything: bool,
}

impl Permissions {
    /// Those of the roles, and those granted besides; none for who is not active.
    fn of(user: &user::Model, granted: Vec<Permission>) -> Self {
        if !user.is_active {
            return Self { held: BTreeSet::new(), everything: false };
        }
        Self { everything: user.is_superuser, ..Self::of_roles(Roles::of(user), granted) }
    }

    /// Those of the roles, and those granted besides.
    pub(super) fn of_roles(roles: Roles, granted: Vec<Permission>) -> Self {
        let held = roles.permissions().into_iter().map(Permission::own).chain(granted).collect();
        Self { held, everything: false }
    }

    /// Django's `has_perm`.
    pub fn has_perm(&self, permission: &Permission) -> bool {
        self.everything || self.held.contains(permission)
    }

    /// Django's `has_module_perms`: any permission of the app.
    pub fn has_module_perms(&self, app: &str) -> bool {
        self.everything || self.held.iter().any(|permission| permission.app == app)
    }

    /// By name: those that roles bring in the order of their table, then the others by the alphabet.
    pub fn names(&self) -> Vec<String> {
        let of_roles: Vec<_> = PERMISSIONS.iter().map(|(name, _)| Permission::own(name)).collect();
        let first = of_roles.iter().filter(|permission| self.held.contains(permission));
        let others = self.held.iter().filter(|permission| !of_roles.contains(permission));
        first.chain(others).map(Permission::to_string).collect()
    }
}

/// What a user may do, and where it comes from.
pub struct Holdings {
    pub user_id: i64,
    pub groups: Vec<super::group::Group>,
    pub direct: Vec<Permission>,
    pub all: Permissions,
}

impl App {
    /// What the user may do, and where it comes from: for oneself and admins.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`.
    pub async fn get_user_permissions(&self, caller: &Caller, user_id: i64) -> Result<Holdings> {
        let user = self.get_for_oneself_or_admin(caller, user_id).await?;
        holdings(self.db.reader(), &user).await
    }

    /// Whether the user has the permission: for oneself and admins to ask. A superuser has all, an inactive user none.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`.
    pub async fn check_permission(&self, caller: &Caller, user_id: i64, asked: &Asked) -> Result<bool> {
        let user = self.get_for_oneself_or_admin(caller, user_id).await?;
        let permissions = permissions_of(self.db.reader(), &user).await?;
        Ok(match asked {
            Asked::One(permission) => permissions.has_perm(permission),
            Asked::AnyOf(app) => permissions.has_module_perms(app),
        })
    }

    /// The user, for oneself and admins. For others it is the same whether there is one or not.
    pub(super) async fn get_for_oneself_or_admin(&self, caller: &Caller, user_id: i64) -> Result<user::Model> {
        if caller.user_id != user_id && !caller.roles.is_admin() {
            return Err(Error::PermissionDenied(Denial::Role));
        }
        let user = user::Entity::find_by_id(user_id).one(self.db.reader()).await?;
        user.ok_or(Error::NotFound(Resource::User))
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
    ) -> Result<Holdings> {
        let app = Arc::clone(self);
        self.change(async move {
            let now = app.clock.now();
            let tx = app.db.begin().await?;
            let Subject { user, authority, .. } = app.lock_subject(&tx, &caller, user_id).await?;
            authority.require_admin()?;
            permission.require_grantable_by(authority)?;
            let permission_id = id_of(&tx, &permission).await?;
            let row = user_permission::Model { user_id, permission_id };
            let taken = user_permission::Entity::insert(user_permission::ActiveModel::from(row))
                .on_conflict(OnConflict::new().do_nothing().to_owned())
                .exec_without_returning(&tx)
                .await?;
            if taken == 1 {
                let held = user_permission::Entity::find().filter(user_permission::Column::UserId.eq(user_id));
                if held.count(&tx).await? > MAX_PERMISSIONS {
                    return Err(Error::Conflict(Conflict::TooManyPermissions));
                }
                let event = Event::PermissionGranted(permission.to_string());
                app.audit(&tx, event, Some(&call), user_id).await?;
                app.tell_of_permissions(&tx, user_id, now).await?;
            }
            let holdings = holdings(&tx, &user).await?;
            tx.commit().await?;
            app.outbox_has_mail();
            Ok(holdings)
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
        let app = Arc::clone(self);
        self.change(async move {
            let now = app.clock.now();
            let tx = app.db.begin().await?;
            let Subject { authority, .. } = app.lock_subject(&tx, &caller, user_id).await?;
            authority.require_admin()?;
            permission.require_grantable_by(authority)?;
            let gone = user_permission::Entity::delete_many()
                .filter(user_permission::Column::UserId.eq(user_id))
                .filter(user_permission::Column::PermissionId.in_subquery(id_query(&permission)))
                .exec(&tx)
                .await?;
            if gone.rows_affected == 0 {
                return Err(Error::NotFound(Resource::Permission));
            }
            app.audit(&tx, Event::PermissionRevoked(permission.to_string()), Some(&call), user_id).await?;
            app.tell_of_permissions(&tx, user_id, now).await?;
            tx.commit().await?;
            app.outbox_has_mail();
            Ok(())
        })
        .await
    }
}

impl App {
    /// Tells others that what the user holds has changed, within `tx`, which has the row.
    pub(super) async fn tell_of_permissions(&self, tx: &Tx, user_id: i64, now: DateTime<Utc>) -> Result<()> {
        let touched = user::Entity::update_many()
            .col_expr(user::Column::Version, Expr::col(user::Column::Version).add(1))
            .filter(user::Column::Id.eq(user_id))
            .exec_with_returning(tx)
            .await?;
        for user in &touched {
            self.announce(tx, News::RolesChanged, user, now).await?;
        }
        Ok(())
    }
}

/// What the user may do.
pub(super) async fn permissions_of(db: &impl ConnectionTrait, user: &user::Model) -> Result<Permissions> {
    Ok(Permissions::of(user, granted(db, user.id).await?))
}

/// What the user may do, and where it comes from.
pub(super) async fn holdings(db: &impl ConnectionTrait, user: &user::Model) -> Result<Holdings> {
    let of_user = user_permission::Entity::find()
        .select_only()
        .column(user_permission::Column::PermissionId)
        .filter(user_permission::Column::UserId.eq(user.id));
    let mut direct = named(db, Condition::all().add(permission::Column::Id.in_subquery(of_user.into_query()))).await?;
    direct.sort();
    Ok(Holdings {
        user_id: user.id,
        groups: super::group::groups_of(db, user.id).await?,
        direct,
        all: permissions_of(db, user).await?,
    })
}

/// What groups and direct grants allow the user.
pub(super) async fn granted(db: &impl ConnectionTrait, user_id: i64) -> Result<Vec<Permission>> {
    let directly = user_permission::Entity::find()
        .select_only()
        .column(user_permission::Column::PermissionId)
        .filter(user_permission::Column::UserId.eq(user_id));
    let groups = user_group::Entity::find()
        .select_only()
        .column(user_group::Column::GroupId)
        .filter(user_group::Column::UserId.eq(user_id));
    let by_group = group_permission::Entity::find()
        .select_only()
        .column(group_permission::Column::PermissionId)
        .filter(group_permission::Column::GroupId.in_subquery(groups.into_query()));
    let either = Condition::any()
        .add(permission::Column::Id.in_subquery(directly.into_query()))
        .add(permission::Column::Id.in_subquery(by_group.into_query()));
    named(db, either).await
}

async fn named(db: &impl ConnectionTrait, which: Condition) -> Result<Vec<Permission>> {
    let rows: Vec<(String, String)> = permission::Entity::find()
        .select_only()
        .columns([permission::Column::AppLabel, permission::Column::Codename])
        .filter(which)
        .order_by_asc(permission::Column::Id)
        .into_tuple()
        .all(db)
        .await?;
    Ok(rows.into_iter().map(|(app, codename)| Permission { app, codename }).collect())
}

/// A row's names as a permission.
pub(super) fn of_row(row: permission::Model) -> Permission {
    Permission { app: row.app_label, codename: row.codename }
}

/// Selects the id of the permission, if it has one.
pub(super) fn id_query(permission: &Permission) -> SelectStatement {
    permission::Entity::find()
        .select_only()
        .column(permission::Column::Id)
        .filter(permission::Column::AppLabel.eq(&permission.app))
        .filter(permission::Column::Codename.eq(&permission.codename))
        .into_query()
}

/// The id of the permission, which is made known if it isn't yet.
pub(super) async fn id_of(tx: &Tx, permission: &Permission) -> Result<i64> {
    use sea_orm::ActiveValue::{NotSet, Set};
    let row = permission::ActiveModel {
        id: NotSet,
        app_label: Set(permission.app.clone()),
        codename: Set(permission.codename.clone()),
        name: Set(permission.to_string()),
    };
    permission::Entity::insert(row)
        .on_conflict(
            OnConflict::columns([permission::Column::AppLabel, permission::Column::Codename]).do_nothing().to_owned(),
        )
        .exec_without_returning(tx)
        .await?;
    let id: Option<i64> = permission::Entity::find()
        .select_only()
        .column(permission::Column::Id)
        .filter(permission::Column::AppLabel.eq(&permission.app))
        .filter(permission::Column::Codename.eq(&permission.codename))
        .into_tuple()
        .one(tx)
        .await?;
    id.ok_or_else(|| Error::internal("a permission just made known is not there"))
}
