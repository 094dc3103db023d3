//! Permissions: their names, and what somebody holds of them.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::{
    role::{PERMISSIONS, Roles},
    user::User,
};

/// The app of this service itself, as Django named it. Its permissions are named without it.
const OWN_APP: &str = "users";
const NAME_MAX_CHARS: usize = 100;

/// A permission, as Django names it: `app.codename`; one of this service's own by its codename alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Permission {
    pub(crate) app: String,
    pub(crate) codename: String,
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

    pub(crate) fn own(codename: &str) -> Self {
        Self { app: OWN_APP.to_owned(), codename: codename.to_owned() }
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
    pub fn of(user: &User, granted: Vec<Permission>) -> Self {
        if !user.is_active {
            return Self { held: BTreeSet::new(), everything: false };
        }
        Self { everything: user.is_superuser, ..Self::of_roles(user.roles(), granted) }
    }

    /// Those of the roles, and those granted besides.
    pub fn of_roles(roles: Roles, granted: Vec<Permission>) -> Self {
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
