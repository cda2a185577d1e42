//! What Apple accepts: the header and claims of an App Store Connect JWT, and how long it may live.
//!
//! Sources: "Generating Tokens for API Requests" and "Creating API Keys for App Store Connect API" on
//! `developer.apple.com/documentation/appstoreconnectapi`; claims as RFC 7519, section 4.1.
//!
//! # Invariants
//! - P8: `exp - iat` never exceeds [`LONGEST_LIFETIME_S`], but for scopes made only of [`LONG_LIVED_READS`].

use serde::{Deserialize, Serialize};

use super::operation::Operation;

/// Apple refuses a token whose `exp - iat` is larger, in seconds.
pub const LONGEST_LIFETIME_S: i64 = 1200;

/// `iat` lies this far in the past, so that a signer whose clock is ahead is still accepted, in seconds.
pub const BACKDATE_S: i64 = 60;

/// Kept free below Apple's limit, so that a signer whose clock is ahead does not put `exp` beyond it, in seconds.
pub const SPARE_S: i64 = 60;

/// The longest time to live the broker signs for an ordinary token: 18 minutes, in seconds.
pub const LONGEST_TTL_S: i64 = LONGEST_LIFETIME_S - BACKDATE_S - SPARE_S;

/// Apple's "up to six months" for a token whose scope holds only long-lived reads; taken as 180 days, in seconds.
pub const LONGEST_SCOPED_LIFETIME_S: i64 = 180 * 86_400;

/// The longest time to live the broker signs for such a token, in seconds.
pub const LONGEST_SCOPED_TTL_S: i64 = LONGEST_SCOPED_LIFETIME_S - BACKDATE_S - SPARE_S;

/// The shortest time to live that is of use to a caller, in seconds.
pub const SHORTEST_TTL_S: i64 = 30;

/// How many active keys Apple allows for one account.
pub const MOST_KEYS_PER_ACCOUNT: usize = 50;

/// Most entries in one scope.
pub const MOST_SCOPE_ENTRIES: usize = 50;

/// Most bytes in one scope: a token must fit the 8 KiB that HTTP servers commonly allow for headers.
pub const MOST_SCOPE_BYTES: usize = 4096;

/// The paths whose reads Apple lets live up to six months; `*` is one identifier. Paths that answer with a resource
/// outside Apple's list (the app of a product, the artifacts of a build action) are left out.
pub const LONG_LIVED_READS: &[&str] = &[
    "/v1/apps/*/ciProduct",
    "/v1/apps/*/perfPowerMetrics",
    "/v1/builds/*/diagnosticSignatures",
    "/v1/builds/*/perfPowerMetrics",
    "/v1/ciBuildActions/*",
    "/v1/ciBuildActions/*/buildRun",
    "/v1/ciBuildActions/*/issues",
    "/v1/ciBuildActions/*/testResults",
    "/v1/ciBuildRuns/*",
    "/v1/ciBuildRuns/*/actions",
    "/v1/ciIssues/*",
    "/v1/ciMacOsVersions",
    "/v1/ciMacOsVersions/*",
    "/v1/ciMacOsVersions/*/xcodeVersions",
    "/v1/ciProducts",
    "/v1/ciProducts/*",
    "/v1/ciProducts/*/additionalRepositories",
    "/v1/ciProducts/*/buildRuns",
    "/v1/ciProducts/*/primaryRepositories",
    "/v1/ciProducts/*/workflows",
    "/v1/ciTestResults/*",
    "/v1/ciWorkflows/*",
    "/v1/ciWorkflows/*/buildRuns",
    "/v1/ciWorkflows/*/repository",
    "/v1/ciXcodeVersions",
    "/v1/ciXcodeVersions/*",
    "/v1/ciXcodeVersions/*/macOsVersions",
    "/v1/diagnosticSignatures/*/logs",
    "/v1/scmGitReferences/*",
    "/v1/scmProviders",
    "/v1/scmProviders/*",
    "/v1/scmProviders/*/repositories",
    "/v1/scmPullRequests/*",
    "/v1/scmRepositories",
    "/v1/scmRepositories/*",
    "/v1/scmRepositories/*/gitReferences",
    "/v1/scmRepositories/*/pullRequests",
];

/// The header of a token (RFC 7515, section 4.1), in the order it is written.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Always `ES256` (RFC 7518, section 3.4).
    pub alg: String,
    /// The Key ID.
    pub kid: String,
    /// Always `JWT`.
    pub typ: String,
}

/// The claims of a token, in the order they are written. There are no others: nobody has shown that Apple accepts any.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The Issuer ID; only with a team key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// Always `user`; only with an individual key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// Backdated time of signing, in Unix seconds.
    pub iat: i64,
    /// Expiry, in Unix seconds.
    pub exp: i64,
    /// Always [`AUDIENCE`].
    pub aud: String,
    /// The reads Apple confines the token to; absent where there is no confinement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<String>>,
}

/// The audience of App Store Connect.
pub const AUDIENCE: &str = "appstoreconnect-v1";

/// The longest time to live for a token with this scope, in seconds.
pub fn longest_ttl_s(scope: &[Operation]) -> i64 {
    // INVARIANT (P8): one entry outside Apple's list, or no entry at all, means the ordinary limit.
    if !scope.is_empty() && scope.iter().all(may_live_long) { LONGEST_SCOPED_TTL_S } else { LONGEST_TTL_S }
}

/// Whether Apple lets a token that is confined to this read live up to six months.
pub fn may_live_long(operation: &Operation) -> bool {
    // `include` reads resources beside the path's own, which need not be on the list.
    !operation.has_parameter("include") && is_long_lived_path(operation)
}

fn is_long_lived_path(operation: &Operation) -> bool {
    LONG_LIVED_READS.iter().any(|template| {
        let mut path = operation.path().split('/');
        let mut wanted = template.split('/');
        loop {
            match (path.next(), wanted.next()) {
                (None, None) => return true,
                (Some(segment), Some(want)) if want == "*" || segment == want => {}
                _ => return false,
            }
        }
    })
}
