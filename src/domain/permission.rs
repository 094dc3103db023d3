//! Permissions in the tables: what roles, groups and direct grants allow, taken together.

use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    sea_query::{OnConflict, SelectStatement},
};

use crate::{
    db::Tx,
    domain::authority::Authority,
    entity::{group_permission, permission, user_group, user_permission},
    error::{Error, Result},
    model::{
        permission::Permission,
        role::{PERMISSIONS, Role},
    },
};

/// How many permissions a group may have, and how many a user may hold directly.
pub(super) const MAX_PERMISSIONS: u64 = 200;

impl Permission {
    /// Nothing, or the refusal: what of all roles only admins are allowed is as good as their role, and so as hard to get.
    pub(super) fn require_grantable_by(&self, authority: Authority) -> Result<()> {
        let is_for_admins =
            PERMISSIONS.iter().any(|(name, roles)| *self == Self::own(name) && *roles == [Role::Admin].as_slice());
        if is_for_admins { authority.require_superuser() } else { Ok(()) }
    }
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
