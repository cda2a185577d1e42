//! The path that a decision took, step by step, in words.

use super::listed;
use super::policies::{NOT_NAMED, Verdict, revoked, verdict};
use crate::clock::UnixMillis;
use crate::domain::apple;
use crate::domain::decide::{Denial, DenyReason, Permit, TokenRequest};
use crate::domain::policy::Policy;
use crate::domain::state::State;
use crate::domain::target::Target;

/// Each step, a sentence each; the last one says how it ended.
pub(super) fn path(
    request: &TokenRequest,
    decision: &Result<Permit, Denial>,
    state: &State,
    now: UnixMillis,
) -> Vec<String> {
    let mut out = vec![format!(
        "{} asks at {now} for {} on app group {}{}",
        request.principal.client,
        request.role,
        request.app_group,
        scope(request)
    )];
    if let Some(stamp) = state.sealed() {
        out.push(format!("the vault is sealed, by {} since {}: nobody is granted anything", stamp.by, stamp.at));
        return out;
    }
    if let Some(reason) = state.refuses(&request.principal) {
        out.push(format!("refused, whatever policies say ({}): {}", reason.as_str(), refused(reason, request, state)));
        return out;
    }
    out.push(format!("neither {} nor what vouches for it is revoked", request.principal.client));
    let Some(group) = state.app_groups().get(&request.app_group) else {
        out.push(format!("there is no app group {}: {}", request.app_group, DenyReason::NoPolicy.as_str()));
        return out;
    };
    let policies = state.policies_of(&group.name);
    let verdicts: Vec<_> = policies.iter().map(|it| (it, verdict(it, request, state, now))).collect();
    let named = || verdicts.iter().filter(|(_, verdict)| verdict.reason() != NOT_NAMED);
    out.push(match named().count() {
        0 => format!("of {} policies of the app group none names the client", policies.len()),
        _ => format!(
            "of {} policies of the app group these name the client: {}",
            policies.len(),
            listed(named().map(|(policy, _)| &policy.name))
        ),
    });
    for (policy, verdict) in named() {
        out.push(match verdict {
            Verdict::Grants(terms, _) => format!("policy {} grants it, with key {}", policy.name, terms.key.id),
            Verdict::Shadow(Ok(())) => format!("policy {} only counts, and would not refuse it", policy.name),
            Verdict::Shadow(Err(miss)) => {
                format!("policy {} only counts, and would refuse it: {}", policy.name, miss.reason.as_str())
            }
            Verdict::Misses(_) | Verdict::NotNamed => {
                format!("policy {} does not grant it: {}", policy.name, verdict.reason())
            }
        });
    }
    match decision {
        Ok(permit) => granted(permit, request, state, &mut out),
        Err(denial) => out.push(denied(denial)),
    }
    out
}

fn scope(request: &TokenRequest) -> String {
    let ttl = request.ttl_s.map(|ttl| format!(", for {ttl}s")).unwrap_or_default();
    if request.scope.is_empty() {
        return format!("{ttl}, without a scope");
    }
    let entries = request.scope.iter().map(|entry| format!("`{entry}`"));
    format!("{ttl}, with the scope {}", listed(entries))
}

fn refused(reason: DenyReason, request: &TokenRequest, state: &State) -> String {
    let principal = &request.principal;
    let issuer = principal.client.issuer();
    let clients = [Some(&principal.client), principal.certificate.as_ref()];
    let mut targets = clients.into_iter().flatten().cloned().map(Target::Client);
    let target = match reason {
        DenyReason::ClientRevoked => targets.find(|target| state.is_revoked(target)),
        DenyReason::IssuerRevoked => issuer.map(Target::Issuer),
        _ => {
            return match issuer {
                Some(name) if state.issuers().contains_key(&name) => {
                    format!("issuer {name} has changed since it vouched for the client")
                }
                Some(name) => format!("there is no trusted issuer {name}"),
                None => reason.safe_message().to_owned(),
            };
        }
    };
    target.map(|target| revoked(&target, state)).unwrap_or_default()
}

fn denied(denial: &Denial) -> String {
    let reason = denial.reason.as_str();
    match (&denial.policy, &denial.ceiling) {
        (Some(policy), Some(ceiling)) => {
            format!("denied: policy {policy} came nearest: {reason}, by ceiling {ceiling}")
        }
        (Some(policy), None) => format!("denied: policy {policy} came nearest: {reason}"),
        (None, _) => format!("denied: {reason}"),
    }
}

fn granted(permit: &Permit, request: &TokenRequest, state: &State, out: &mut Vec<String>) {
    let policy = permit.policy();
    out.push(format!(
        "granted under policy {}, signed with key {}: the weakest key comes first, then the longest life, then the first name",
        policy.name,
        permit.key().id
    ));
    out.push(life(permit, policy, request, state));
    // Policies that only count have a step of their own above.
    out.extend(permit.shadows().iter().filter(|shadow| shadow.kind == "ceiling").map(|shadow| {
        format!("ceiling {} only counts, and would have refused it: {}", shadow.name, shadow.reason.as_str())
    }));
}

/// How long the token lives, and each bound of that.
fn life(permit: &Permit, policy: &Policy, request: &TokenRequest, state: &State) -> String {
    let mut bounds = vec![match request.ttl_s {
        Some(ttl) => format!("asked for {ttl}s"),
        None => format!("the policy's default is {}s", policy.default_ttl_s),
    }];
    bounds.push(format!("its longest {}s", policy.max_ttl_s));
    let least = state.bounds_of(&request.app_group).filter_map(|bounds| bounds.max_ttl());
    bounds.extend(least.map(|(most, ceiling)| format!("ceiling {ceiling} allows {most}s")));
    bounds.push(format!("Apple's limit leaves {}s", apple::longest_ttl_s(&request.scope)));
    bounds.extend(policy.not_after.map(|end| format!("the policy ends at {end}")));
    bounds.extend(policy.hours.as_ref().map(|hours| format!("its hours are {hours}")));
    let opened = state.opened(&policy.name).filter(|_| policy.break_glass);
    bounds.extend(opened.map(|opened| format!("it is held open until {}", UnixMillis::from_seconds(opened.until))));
    let life = permit.expires_at().saturating_sub(permit.decided_at().seconds());
    let end = UnixMillis::from_seconds(permit.expires_at());
    format!("the token lives {life}s, until {end}: {}", bounds.join(", "))
}
