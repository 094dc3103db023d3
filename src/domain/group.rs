//! Groups: named sets of permissions, which their members hold besides those of their roles.

use std::{collections::HashMap, sync::Arc};

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{NotSet, Set},
    ColumnTrait, ConnectionTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
    SqlErr,
    sea_query::Expr,
};

use crate::{
    app::App,
    domain::{
        audit::Event,
        authority::Authority,
        caller::{Call, Caller},
        change::Transaction,
        permission::{self as rules, MAX_PERMISSIONS},
    },
    entity::{group, group_permission, permission, user_group},
    error::{Conflict, Error, Resource, Result},
    model::permission::Permission,
};

const NAME_MAX_CHARS: usize = 150;
/// How many groups there may be: all of them fit into one answer.
const MAX_GROUPS: u64 = 1000;

/// The name of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupName(String);

impl GroupName {
    /// White space around the name doesn't count.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let name = raw.trim();
        if name.chars().any(char::is_control) {
            Err("Control characters are not allowed.")
        } else if name.is_empty() {
            Err("This field may not be blank.")
        } else if name.chars().count() > NAME_MAX_CHARS {
            Err("Ensure this field has no more than 150 characters.")
        } else {
            Ok(Self(name.to_owned()))
        }
    }
}

/// A group, with what it allows.
#[derive(Debug, Clone)]
pub struct Group {
    pub id: i64,
    pub name: String,
    /// By the alphabet.
    pub permissions: Vec<Permission>,
}

impl Group {
    /// Nothing, or the refusal: a group that brings what admins alone may do is as hard to change as that is to grant.
    pub(super) fn require_changeable_by(&self, authority: Authority) -> Result<()> {
        self.permissions.iter().try_for_each(|permission| permission.require_grantable_by(authority))
    }
}

impl App {
    /// All groups, by name.
    ///
    /// # Errors
    /// `Unavailable` if the database is away.
    pub async fn list_groups(&self) -> Result<Vec<Group>> {
        let groups = group::Entity::find().order_by_asc(group::Column::Name).limit(MAX_GROUPS);
        with_permissions(self.db.reader(), groups.all(self.db.reader()).await?).await
    }

    /// # Errors
    /// `NotFound`.
    pub async fn get_group(&self, id: i64) -> Result<Group> {
        find(self.db.reader(), group::Entity::find_by_id(id)).await
    }

    /// Makes a group without permissions or members.
    ///
    /// # Errors
    /// `GroupNameTaken`; `Conflict` if there are too many.
    pub async fn create_group(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        GroupName(name): GroupName,
    ) -> Result<Group> {
        self.change(move |tx| {
            Box::pin(async move {
                tx.authority(&caller).await?.require_admin()?;
                let row = group::ActiveModel { id: NotSet, name: Set(name) };
                let made = row.insert(&tx.db).await.map_err(or_name_taken)?;
                if group::Entity::find().count(&tx.db).await? > MAX_GROUPS {
                    return Err(Error::Conflict(Conflict::TooManyGroups));
                }
                tx.audit_at_large(Event::GroupCreated(made.name.clone()), &call)?;
                Ok(Group { id: made.id, name: made.name, permissions: Vec::new() })
            })
        })
        .await
    }

    /// Gives the group another name.
    ///
    /// # Errors
    /// `NotFound`; `GroupNameTaken`.
    pub async fn rename_group(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        GroupName(name): GroupName,
    ) -> Result<Group> {
        self.change(move |tx| {
            Box::pin(async move {
                let (_, group) = tx.lock_group_for(&caller, id).await?;
                if group.name != name {
                    let rename = group::Entity::update_many()
                        .col_expr(group::Column::Name, Expr::value(name.clone()))
                        .filter(group::Column::Id.eq(id));
                    rename.exec(&tx.db).await.map_err(or_name_taken)?;
                    tx.audit_at_large(Event::GroupRenamed(name.clone()), &call)?;
                }
                Ok(Group { name, ..group })
            })
        })
        .await
    }

    /// Deletes the group; its members lose what it brought them.
    ///
    /// # Errors
    /// `NotFound`; `PermissionDenied`.
    pub async fn delete_group(self: &Arc<Self>, call: Arc<Call>, caller: Caller, id: i64) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                let (authority, group) = tx.lock_group_for(&caller, id).await?;
                group.require_changeable_by(authority)?;
                group::Entity::delete_by_id(id).exec(&tx.db).await?;
                tx.groups_changed().await?;
                tx.audit_at_large(Event::GroupDeleted(group.name), &call)?;
                Ok(())
            })
        })
        .await
    }

    /// Adds a permission to the group. One that is there already is fine.
    ///
    /// # Errors
    /// `NotFound`; `PermissionDenied`; `Conflict` if there are too many.
    pub async fn add_group_permission(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        permission: Permission,
    ) -> Result<Group> {
        self.change(move |tx| {
            Box::pin(async move {
                let (authority, mut group) = tx.lock_group_for(&caller, id).await?;
                permission.require_grantable_by(authority)?;
                if !group.permissions.contains(&permission) {
                    if group.permissions.len() as u64 >= MAX_PERMISSIONS {
                        return Err(Error::Conflict(Conflict::TooManyPermissions));
                    }
                    let permission_id = rules::id_of(&tx.db, &permission).await?;
                    let row = group_permission::Model { group_id: id, permission_id };
                    group_permission::Entity::insert(group_permission::ActiveModel::from(row))
                        .exec_without_returning(&tx.db)
                        .await?;
                    tx.groups_changed().await?;
                    let event =
                        Event::GroupPermissionAdded { group: group.name.clone(), permission: permission.to_string() };
                    tx.audit_at_large(event, &call)?;
                    group.permissions.push(permission);
                    group.permissions.sort();
                }
                Ok(group)
            })
        })
        .await
    }

    /// Takes a permission out of the group.
    ///
    /// # Errors
    /// `NotFound`, also if it is not in there; `PermissionDenied`.
    pub async fn remove_group_permission(
        self: &Arc<Self>,
        call: Arc<Call>,
        caller: Caller,
        id: i64,
        permission: Permission,
    ) -> Result<()> {
        self.change(move |tx| {
            Box::pin(async move {
                let (authority, group) = tx.lock_group_for(&caller, id).await?;
                permission.require_grantable_by(authority)?;
                if !group.permissions.contains(&permission) {
                    return Err(Error::NotFound(Resource::Permission));
                }
                group_permission::Entity::delete_many()
                    .filter(group_permission::Column::GroupId.eq(id))
                    .filter(group_permission::Column::PermissionId.in_subquery(rules::id_query(&permission)))
                    .exec(&tx.db)
                    .await?;
                tx.groups_changed().await?;
                let event = Event::GroupPermissionRemoved { group: group.name, permission: permission.to_string() };
                tx.audit_at_large(event, &call)?;
                Ok(())
            })
        })
        .await
    }
}

impl Transaction {
    /// The group, which is ours until the commit.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn lock_group(&self, id: i64) -> Result<Group> {
        find(&self.db, group::Entity::find_by_id(id).lock_exclusive()).await
    }

    /// The same, for an admin.
    async fn lock_group_for(&self, caller: &Caller, id: i64) -> Result<(Authority, Group)> {
        let authority = self.authority(caller).await?;
        authority.require_admin()?;
        Ok((authority, self.lock_group(id).await?))
    }
}

/// The groups that the user is a member of, by name.
pub(super) async fn groups_of(db: &impl ConnectionTrait, user_id: i64) -> Result<Vec<Group>> {
    let memberships = user_group::Entity::find()
        .select_only()
        .column(user_group::Column::GroupId)
        .filter(user_group::Column::UserId.eq(user_id));
    let groups = group::Entity::find()
        .filter(group::Column::Id.in_subquery(memberships.into_query()))
        .order_by_asc(group::Column::Name);
    with_permissions(db, groups.all(db).await?).await
}

async fn find(db: &impl ConnectionTrait, query: sea_orm::Select<group::Entity>) -> Result<Group> {
    let found = query.one(db).await?.ok_or(Error::NotFound(Resource::Group))?;
    with_permissions(db, vec![found]).await?.pop().ok_or(Error::NotFound(Resource::Group))
}

async fn with_permissions(db: &impl ConnectionTrait, groups: Vec<group::Model>) -> Result<Vec<Group>> {
    let ids: Vec<i64> = groups.iter().map(|group| group.id).collect();
    let links = group_permission::Entity::find()
        .find_also_related(permission::Entity)
        .filter(group_permission::Column::GroupId.is_in(ids))
        .all(db)
        .await?;
    let mut by_group: HashMap<i64, Vec<Permission>> = HashMap::new();
    for (link, permission) in links {
        by_group.entry(link.group_id).or_default().extend(permission.map(rules::of_row));
    }
    let complete = |group: group::Model| {
        let mut permissions = by_group.remove(&group.id).unwrap_or_default();
        permissions.sort();
        Group { id: group.id, name: group.name, permissions }
    };
    Ok(groups.into_iter().map(complete).collect())
}

fn or_name_taken(error: sea_orm::DbErr) -> Error {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Error::GroupNameTaken,
        _ => error.into(),
    }
}
