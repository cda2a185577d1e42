//! What stands in the way of every policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Step, Work, World};
use crate::domain::account::Account;
use crate::domain::app_group::AppGroup;
use crate::domain::change::{Change, Object};
use crate::domain::decide::{DenyReason, TokenRequest};
use crate::domain::principal::{Principal, Vouched};
use crate::domain::target::Target;
use crate::id::{AccountName, ClientId, IssuerId};

/// What mends the first thing that stands in the way of every policy; `None` where nothing does, or nothing mends it.
pub(in crate::domain::explain) fn common(world: &World<'_>) -> Option<Step> {
    let (state, request) = (world.state.as_ref(), &world.request);
    if state.sealed().is_some() {
        let sentence = "lift the seal: an operator with the power `unseal` runs `p8broker operator unseal`";
        return Some(Step::beyond(sentence.to_owned(), Change::VaultUnsealed));
    }
    if let Some(reason) = state.refuses(&request.principal) {
        return refused(world, reason);
    }
    let Some(group) = state.app_groups().get(&request.app_group) else { return app_group(world) };
    let targets = [Target::Account(group.account.clone()), Target::AppGroup(group.name.clone())];
    targets.into_iter().find(|target| state.is_revoked(target)).map(Step::reinstate)
}

fn refused(world: &World<'_>, reason: DenyReason) -> Option<Step> {
    let (state, principal) = (world.state.as_ref(), &world.request.principal);
    let issuer = || principal.client.issuer().map(Target::Issuer);
    let client = |client: &ClientId| Target::Client(client.clone());
    let names = [Some(client(&principal.client)), principal.certificate.as_ref().map(client)];
    match reason {
        DenyReason::ClientRevoked => {
            names.into_iter().flatten().find(|target| state.is_revoked(target)).map(Step::reinstate)
        }
        DenyReason::IssuerRevoked => issuer().map(Step::reinstate),
        _ => trust(world),
    }
}

fn trust(world: &World<'_>) -> Option<Step> {
    let principal = &world.request.principal;
    let vouched = principal.vouched.as_ref()?;
    let name = &vouched.issuer.name;
    let Some(known) = world.state.issuers().get(name) else {
        let sentence = format!("trust issuer {name}: an administrator applies it under `issuers`");
        return Some(Step::put(sentence, vec![Object::Issuer(Arc::clone(&vouched.issuer))]));
    };
    let sentence = format!("ask again with the same token: issuer {name} has changed since it was looked at");
    let vouched = Vouched { issuer: Arc::clone(known), ..Vouched::clone(vouched) };
    let principal = Principal { vouched: Some(Arc::new(vouched)), ..principal.clone() };
    let request = Box::new(TokenRequest { principal, ..world.request.clone() });
    Some(Step { sentence, changes: 1, beyond_policies: true, work: Work::Request(request) })
}

fn app_group(world: &World<'_>) -> Option<Step> {
    let name = world.request.app_group.clone();
    let sentence = format!("add the app group {name}: an administrator applies it under `app_groups`");
    let known = world.state.accounts().keys().next().cloned();
    let account = known.clone().or_else(|| AccountName::parse("new").ok())?;
    let group = Object::AppGroup(AppGroup { name, account: account.clone(), apps: BTreeSet::new() });
    if known.is_some() {
        return Some(Step::put(sentence, vec![group]));
    }
    let issuer_id = IssuerId::parse("00000000-0000-0000-0000-000000000000").ok()?;
    let sentence = format!("{sentence}, and its account under `accounts`");
    Some(Step::put(sentence, vec![Object::Account(Account { name: account, issuer_id }), group]))
}
