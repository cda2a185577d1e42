//! Why a request is refused, as a constant and as what the caller may be told.

/// Why a request was refused; in the order in which a request is looked at, so that a larger reason is a nearer miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DenyReason {
    /// The vault is sealed.
    Sealed,
    /// The client is revoked.
    ClientRevoked,
    /// The issuer that vouches for the client is revoked.
    IssuerRevoked,
    /// The issuer that vouches for the client is not trusted any more, or trusted otherwise.
    IssuerNotTrusted,
    /// No policy names this client for this app group, or there is no such group: one answer.
    NoPolicy,
    /// The account of the app group is revoked.
    AccountRevoked,
    /// The app group is revoked.
    AppGroupRevoked,
    /// The policy is revoked.
    PolicyRevoked,
    /// The policy grants nothing yet, or nothing any more.
    OutsideValidity,
    /// The policy grants nothing at this hour.
    OutsideHours,
    /// The policy is for emergencies, and nobody has opened it.
    BreakGlassClosed,
    /// The policy asks for a certificate beside the bearer token.
    CertificateRequired,
    /// A ceiling allows only other callers.
    CallerOverCeiling,
    /// The policy does not grant the role.
    RoleNotGranted,
    /// A ceiling allows nobody the role.
    RoleOverCeiling,
    /// The policy, or a ceiling, asks for a scope.
    ScopeRequired,
    /// The policy does not grant an entry of the scope.
    ScopeNotGranted,
    /// The app group has no active key with the role.
    NoActiveKey,
    /// The only keys with the role have others that the policy does not grant.
    KeyExceedsPolicy,
    /// The only keys that would do are team keys, which a ceiling does not allow here.
    TeamKeyOverCeiling,
}

impl DenyReason {
    /// Every reason, in order.
    pub const ALL: &[Self] = &[
        Self::Sealed,
        Self::ClientRevoked,
        Self::IssuerRevoked,
        Self::IssuerNotTrusted,
        Self::NoPolicy,
        Self::AccountRevoked,
        Self::AppGroupRevoked,
        Self::PolicyRevoked,
        Self::OutsideValidity,
        Self::OutsideHours,
        Self::BreakGlassClosed,
        Self::CertificateRequired,
        Self::CallerOverCeiling,
        Self::RoleNotGranted,
        Self::RoleOverCeiling,
        Self::ScopeRequired,
        Self::ScopeNotGranted,
        Self::NoActiveKey,
        Self::KeyExceedsPolicy,
        Self::TeamKeyOverCeiling,
    ];

    /// The stable constant: `ErrorInfo.reason`, metrics label and audit column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "SEALED",
            Self::ClientRevoked => "CLIENT_REVOKED",
            Self::IssuerRevoked => "ISSUER_REVOKED",
            Self::IssuerNotTrusted => "ISSUER_NOT_TRUSTED",
            Self::NoPolicy => "NO_POLICY",
            Self::AccountRevoked => "ACCOUNT_REVOKED",
            Self::AppGroupRevoked => "APP_GROUP_REVOKED",
            Self::PolicyRevoked => "POLICY_REVOKED",
            Self::OutsideValidity => "OUTSIDE_VALIDITY",
            Self::OutsideHours => "OUTSIDE_HOURS",
            Self::BreakGlassClosed => "BREAK_GLASS_CLOSED",
            Self::CertificateRequired => "CERTIFICATE_REQUIRED",
            Self::CallerOverCeiling => "CALLER_OVER_CEILING",
            Self::RoleNotGranted => "ROLE_NOT_GRANTED",
            Self::RoleOverCeiling => "ROLE_OVER_CEILING",
            Self::ScopeRequired => "SCOPE_REQUIRED",
            Self::ScopeNotGranted => "SCOPE_NOT_GRANTED",
            Self::NoActiveKey => "NO_ACTIVE_KEY",
            Self::KeyExceedsPolicy => "KEY_EXCEEDS_POLICY",
            Self::TeamKeyOverCeiling => "TEAM_KEY_OVER_CEILING",
        }
    }

    /// Takes the stable constant.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }

    /// What the caller is told. Which policy, key, ceiling or pattern it was stays between the broker and its operators.
    pub fn safe_message(self) -> &'static str {
        match self {
            Self::Sealed => "the vault is sealed; an operator must unseal it",
            Self::ClientRevoked => "this client is revoked; an administrator can reinstate it",
            Self::IssuerRevoked => {
                "the issuer that vouches for this client is revoked; an administrator can reinstate it"
            }
            Self::IssuerNotTrusted => {
                "the issuer that vouches for this client is not trusted, or its record has changed: ask again with the same token"
            }
            Self::NoPolicy => "no policy grants this client anything for this app group",
            Self::AccountRevoked => "the account of the app group is revoked; an administrator can reinstate it",
            Self::AppGroupRevoked => "the app group is revoked; an administrator can reinstate it",
            Self::PolicyRevoked => "the policy that granted this is revoked; an administrator can reinstate it",
            Self::OutsideValidity => "the policy for this client is not in force at this time",
            Self::OutsideHours => "the policy for this client grants nothing at this hour; ask again within its hours",
            Self::BreakGlassClosed => "the policy for this client is for emergencies; an operator must open it first",
            Self::CertificateRequired => {
                "the policy for this client asks for a certificate beside the bearer token; connect with one that it names"
            }
            Self::CallerOverCeiling => "an administrator's ceiling allows this client nothing for this app group",
            Self::RoleNotGranted => "the policy for this client does not grant this role; ask for one that it grants",
            Self::RoleOverCeiling => "an administrator's ceiling allows nobody this role for this app group",
            Self::ScopeRequired => "the policy for this client asks for a scope; name the reads the token is for",
            Self::ScopeNotGranted => {
                "the policy for this client does not grant an entry of the scope; entries match exactly, query included"
            }
            Self::NoActiveKey => {
                "the app group has no active key with this role; an operator must import or resume one"
            }
            Self::KeyExceedsPolicy => {
                "the only keys with this role can do more than is granted; an operator must import a weaker one"
            }
            Self::TeamKeyOverCeiling => {
                "an administrator's ceiling allows no team key here, and no individual key will do; an operator must import one"
            }
        }
    }
}
