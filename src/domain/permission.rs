//! Permissions: what roles, groups and direct grants allow, taken together.

use std::{collections::BTreeSet, fmt};

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{OnConflict, SelectStatement},
};

use crate::{
    db::Tx,
    domain::authority::Authority,
    entity::{group_permission, permission, user, user_group, user_permission},
    error::{Error, Result},
    model::role::{PERMISSIONS, Role, Roles},
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
    /// A permission by its name, with or without its app.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
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
pub enum PermissionQuery {
    One(Permission),
    AnyOf(String),
}

impl PermissionQuery {
    /// A permission, or `app.`.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
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

/// What the user may do.
pub(super) async fn permissions_of(db: &impl ConnectionTrait, user: &user::Model) -> Result<Permissions> {
    Ok(Permissions::of(user, granted(db, user.id).await?))
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

pub(super) async fn named(db: &impl ConnectionTrait, which: Condition) -> Result<Vec<Permission>> {
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
