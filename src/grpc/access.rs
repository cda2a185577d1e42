//! The access table: one row for each RPC, as data. An RPC without a row is not served.

use crate::domain::operator::Power;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Every caller with an accepted certificate or bearer token: policy decides.
    Client,
    /// Operators with the power.
    Power(Power),
    /// Operators with one of these powers; the use case checks which, for each thing it is about.
    OneOf(&'static [Power]),
    /// Operators with any power.
    AnyPower,
    /// Operators with the power `administer`. While the broker refuses to serve the gate has no state to ask: the use case
    /// does, on the one that is to be recovered.
    Recovery,
    /// Before init and while sealed, the operators that the configuration names; once open, operators with any power.
    Bootstrap,
}

/// How many requests a second one caller may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Tokens: `limits.tokens_per_second`.
    Tokens,
    /// Everything else: `limits.admin_per_second`.
    Admin,
    /// None.
    None,
}

/// What the audit keeps beside refusals, which it always keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audited {
    /// A row for each decision.
    EveryDecision,
    /// A row with each change, or with each look at what is somebody else's.
    Changes,
    /// Nothing else.
    RefusalsOnly,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The path: `/package.Service/Method`.
    pub path: &'static str,
    /// Who may call.
    pub who: Who,
    /// How often.
    pub limit: Limit,
    /// What the audit keeps.
    pub audited: Audited,
}

const fn row(path: &'static str, who: Who, limit: Limit, audited: Audited) -> Access {
    Access { path, who, limit, audited }
}

const fn read(path: &'static str, who: Who) -> Access {
    row(path, who, Limit::Admin, Audited::RefusalsOnly)
}

const fn change(path: &'static str, who: Who) -> Access {
    row(path, who, Limit::Admin, Audited::Changes)
}

const AUTHORS: Who = Who::OneOf(&[Power::Administer, Power::AuthorPolicies]);

/// Closing is easier than opening, as revoking is.
const CLOSERS: Who = Who::OneOf(&[Power::Administer, Power::AuthorPolicies, Power::Revoke]);

/// Every RPC, by path.
pub const TABLE: &[Access] = &[
    row("/grpc.health.v1.Health/Check", Who::Client, Limit::None, Audited::RefusalsOnly),
    row("/grpc.health.v1.Health/List", Who::Client, Limit::None, Audited::RefusalsOnly),
    row("/grpc.health.v1.Health/Watch", Who::Client, Limit::None, Audited::RefusalsOnly),
    read("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Who::Client),
    read("/p8broker.v1.AuditService/Follow", Who::Power(Power::Audit)),
    read("/p8broker.v1.AuditService/List", Who::Power(Power::Audit)),
    change("/p8broker.v1.AuditService/Prune", Who::Power(Power::Audit)),
    read("/p8broker.v1.AuditService/Verify", Who::Power(Power::Audit)),
    change("/p8broker.v1.AuditService/Whois", Who::OneOf(&[Power::Audit, Power::Revoke])),
    change("/p8broker.v1.KeyService/ConfirmRevokedAtApple", Who::Power(Power::Custody)),
    read("/p8broker.v1.KeyService/GetKey", Who::AnyPower),
    change("/p8broker.v1.KeyService/ImportKey", Who::Power(Power::Custody)),
    read("/p8broker.v1.KeyService/ListKeys", Who::AnyPower),
    change("/p8broker.v1.KeyService/ResumeKey", Who::Power(Power::Custody)),
    change("/p8broker.v1.KeyService/RevokeKey", Who::Power(Power::Revoke)),
    change("/p8broker.v1.KeyService/SuspendKey", Who::Power(Power::Custody)),
    change("/p8broker.v1.PolicyService/Apply", AUTHORS),
    change("/p8broker.v1.PolicyService/ApproveProposal", AUTHORS),
    change("/p8broker.v1.PolicyService/CloseBreakGlass", CLOSERS),
    change("/p8broker.v1.PolicyService/CloseProposal", AUTHORS),
    change("/p8broker.v1.PolicyService/Explain", Who::AnyPower),
    read("/p8broker.v1.PolicyService/Export", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetAccount", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetAppGroup", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetCeiling", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetIssuer", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetOperator", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetPolicy", Who::AnyPower),
    read("/p8broker.v1.PolicyService/GetProposal", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListAccess", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListAccounts", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListAppGroups", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListCeilings", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListIssuers", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListOperators", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListPolicies", Who::AnyPower),
    read("/p8broker.v1.PolicyService/ListProposals", Who::AnyPower),
    change("/p8broker.v1.PolicyService/OpenBreakGlass", AUTHORS),
    read("/p8broker.v1.PolicyService/Plan", AUTHORS),
    change("/p8broker.v1.PolicyService/Propose", AUTHORS),
    read("/p8broker.v1.PolicyService/ReportShadows", Who::AnyPower),
    read("/p8broker.v1.RevocationService/Exposure", Who::Power(Power::Revoke)),
    change("/p8broker.v1.RevocationService/Reinstate", Who::Power(Power::Administer)),
    change("/p8broker.v1.RevocationService/Revoke", Who::Power(Power::Revoke)),
    change("/p8broker.v1.SystemService/AcceptHistory", Who::Recovery),
    change("/p8broker.v1.SystemService/Backup", Who::OneOf(&[Power::Administer, Power::Custody])),
    change("/p8broker.v1.SystemService/ConfirmRekey", Who::Power(Power::Administer)),
    change("/p8broker.v1.SystemService/Init", Who::Bootstrap),
    change("/p8broker.v1.SystemService/Rekey", Who::Power(Power::Administer)),
    change("/p8broker.v1.SystemService/Rotate", Who::Power(Power::Administer)),
    change("/p8broker.v1.SystemService/Seal", Who::Power(Power::Unseal)),
    read("/p8broker.v1.SystemService/Status", Who::Bootstrap),
    change("/p8broker.v1.SystemService/Unseal", Who::Bootstrap),
    row("/p8broker.v1.TokenService/IntrospectToken", Who::Client, Limit::Tokens, Audited::RefusalsOnly),
    row("/p8broker.v1.TokenService/IssueToken", Who::Client, Limit::Tokens, Audited::EveryDecision),
    row("/p8broker.v1.TokenService/Watch", Who::Client, Limit::Admin, Audited::RefusalsOnly),
];

/// The row of a path.
pub fn find(path: &str) -> Option<&'static Access> {
    TABLE.binary_search_by(|row| row.path.cmp(path)).ok().and_then(|at| TABLE.get(at))
}
