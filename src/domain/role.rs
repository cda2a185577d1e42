//! Apple's roles of a user or key (`UserRole` in Apple's OpenAPI description 3.7.0).

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! roles {
    ($($variant:ident = $name:literal: $doc:literal),* $(,)?) => {
        /// A role in App Store Connect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Role { $(#[doc = $doc] #[serde(rename = $name)] $variant),* }

        impl Role {
            /// Every role, in Apple's order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Apple's spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

roles! {
    Admin = "ADMIN": "Everything but what only the account holder may do.",
    Finance = "FINANCE": "Financial reports, tax and banking.",
    AccountHolder = "ACCOUNT_HOLDER": "The person who signed Apple's agreements.",
    Sales = "SALES": "Sales reports and analytics.",
    Marketing = "MARKETING": "Promotional artwork and marketing resources.",
    AppManager = "APP_MANAGER": "All aspects of an app.",
    Developer = "DEVELOPER": "Development and delivery of an app.",
    AccessToReports = "ACCESS_TO_REPORTS": "Reports, beside another role.",
    CustomerSupport = "CUSTOMER_SUPPORT": "Customer reviews.",
    CreateApps = "CREATE_APPS": "New app records, beside another role.",
    CloudManagedDeveloperId = "CLOUD_MANAGED_DEVELOPER_ID": "Cloud-managed Developer ID certificates.",
    CloudManagedAppDistribution = "CLOUD_MANAGED_APP_DISTRIBUTION": "Cloud-managed distribution certificates.",
    GenerateIndividualKeys = "GENERATE_INDIVIDUAL_KEYS": "Individual API keys of one's own.",
}

impl Role {
    /// Takes Apple's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of roles, in Apple's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Role>", into = "Vec<Role>")]
pub struct RoleSet(u16);

impl RoleSet {
    /// Whether the role is in the set.
    pub fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u16) != 0
    }

    /// Whether every role of this set is in the other.
    pub fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The roles of either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The roles of this set that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many roles there are.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set holds a role that can administer the whole account.
    pub fn is_administrative(self) -> bool {
        self.contains(Role::Admin) || self.contains(Role::AccountHolder)
    }

    /// The roles, in Apple's order.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.iter().copied().filter(move |role| self.contains(*role))
    }
}

impl FromIterator<Role> for RoleSet {
    fn from_iter<T: IntoIterator<Item = Role>>(roles: T) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | 1 << role as u16))
    }
}

impl From<Vec<Role>> for RoleSet {
    fn from(roles: Vec<Role>) -> Self {
        roles.into_iter().collect()
    }
}

impl From<RoleSet> for Vec<Role> {
    fn from(set: RoleSet) -> Self {
        set.iter().collect()
    }
}

impl fmt::Display for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, role) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{role}")?;
        }
        Ok(())
    }
}
