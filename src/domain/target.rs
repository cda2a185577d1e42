//! What a revocation is about.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AccountName, AppGroupName, ClientId, IdError, IssuerName, KeyId, PolicyName, TokenId};

/// What is revoked, or asked about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum Target {
    /// One of Apple's keys: revoked for good.
    Key(KeyId),
    /// One client, by its exact name.
    Client(ClientId),
    /// One policy, by its name, whatever it says.
    Policy(PolicyName),
    /// One app group.
    AppGroup(AppGroupName),
    /// One token, for as long as it lives.
    Token(TokenId),
    /// One account, with all its keys and app groups.
    Account(AccountName),
    /// One trusted issuer of identities, with every client that it vouches for.
    Issuer(IssuerName),
}

impl Target {
    /// The kinds, from narrow to wide, as the command line spells them.
    pub const KINDS: &[&str] = &["token", "client", "policy", "app-group", "key", "account", "issuer"];

    /// Takes a kind as the command line spells it, and a name.
    ///
    /// # Errors
    /// With the rule that the name breaks; `None` for an unknown kind.
    pub fn parse(kind: &str, name: &str) -> Option<Result<Self, IdError>> {
        Some(match kind {
            "key" => KeyId::parse(name).map(Self::Key),
            "client" => ClientId::parse(name).map(Self::Client),
            "policy" => PolicyName::parse(name).map(Self::Policy),
            "app-group" => AppGroupName::parse(name).map(Self::AppGroup),
            "token" => TokenId::parse(name).map(Self::Token),
            "account" => AccountName::parse(name).map(Self::Account),
            "issuer" => IssuerName::parse(name).map(Self::Issuer),
            _ => return None,
        })
    }

    /// The kind, as the command line spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Client(_) => "client",
            Self::Policy(_) => "policy",
            Self::AppGroup(_) => "app-group",
            Self::Token(_) => "token",
            Self::Account(_) => "account",
            Self::Issuer(_) => "issuer",
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Self::Key(id) => id.as_str(),
            Self::Client(id) => id.as_str(),
            Self::Policy(name) => name.as_str(),
            Self::AppGroup(name) => name.as_str(),
            Self::Token(id) => id.as_str(),
            Self::Account(name) => name.as_str(),
            Self::Issuer(name) => name.as_str(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}
