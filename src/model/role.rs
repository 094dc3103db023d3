//! Roles: flags of a user, how they are shown, and what each allows.

use crate::entity::user;

/// What somebody may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Freelancer,
    Seller,
    Moderator,
    Admin,
}

impl Role {
    /// In the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Freelancer, Self::Seller, Self::Moderator, Self::Admin];

    /// As it is shown to people.
    pub fn display(self) -> &'static str {
        match self {
            Self::Freelancer => "Freelancer",
            Self::Seller => "Seller",
            Self::Moderator => "Moderator",
            Self::Admin => "Admin",
        }
    }

    /// The role of this name, as requests name it: in lower case.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let found = Self::ALL.into_iter().find(|role| role.name() == raw);
        found.ok_or("Not a role. Choose freelancer, seller, moderator or admin.")
    }

    /// As requests name it.
    fn name(self) -> &'static str {
        match self {
            Self::Freelancer => "freelancer",
            Self::Seller => "seller",
            Self::Moderator => "moderator",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Every permission that a role brings, in the order in which they are listed.
pub const PERMISSIONS: [(&str, &[Role]); 8] = [
    ("create_gig", &[Role::Freelancer, Role::Admin]),
    ("create_product", &[Role::Seller, Role::Admin]),
    ("view_analytics", &[Role::Freelancer, Role::Seller, Role::Admin]),
    ("receive_orders", &[Role::Freelancer, Role::Seller, Role::Admin]),
    ("moderate_content", &[Role::Moderator, Role::Admin]),
    ("manage_disputes", &[Role::Moderator, Role::Admin]),
    ("manage_users", &[Role::Admin]),
    ("manage_roles", &[Role::Admin]),
];

/// What is shown for somebody without a role, and for everybody in the answers of the auth routes.
const USER: &str = "User";

/// The roles that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    pub fn of(user: &user::Model) -> Self {
        Self::from_flags([user.is_freelancer, user.is_seller, user.is_moderator, user.is_staff || user.is_superuser])
    }

    /// Whether each of [`Role::ALL`] is held, in their order.
    pub fn from_flags(held: [bool; 4]) -> Self {
        Role::ALL.into_iter().zip(held).filter(|(_, held)| *held).map(|(role, _)| role).collect()
    }

    /// The roles that a token names. Names that are no role of ours count for nothing.
    pub fn from_display<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().filter_map(|name| Role::ALL.into_iter().find(|role| role.display() == name)).collect()
    }

    pub fn has(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    pub fn is_admin(self) -> bool {
        self.has(Role::Admin)
    }

    pub fn is_moderator(self) -> bool {
        self.has(Role::Moderator)
    }

    /// The roles held, or `User` where there is none.
    pub fn display(self) -> Vec<&'static str> {
        if self == Self::default() { vec![USER] } else { self.held().collect() }
    }

    /// The roles held, or `User`, as one text: for people, and for the log.
    pub fn role_display(self) -> String {
        self.display().join(", ")
    }

    /// `User`, always, and then the roles held.
    pub fn display_with_user(self) -> Vec<&'static str> {
        std::iter::once(USER).chain(self.held()).collect()
    }

    /// What the roles allow.
    pub fn permissions(self) -> Vec<&'static str> {
        let allows = |roles: &[Role]| roles.iter().any(|role| self.has(*role));
        PERMISSIONS.into_iter().filter(|(_, roles)| allows(roles)).map(|(name, _)| name).collect()
    }

    fn held(self) -> impl Iterator<Item = &'static str> {
        Role::ALL.into_iter().filter(move |role| self.has(*role)).map(Role::display)
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }
}
