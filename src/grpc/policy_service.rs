//! `PolicyService`: desired state.

use tonic::{Request, Response, Status};

use super::convert::{Fields, enforcement_out, millis_out, page_of, stamp_out, step_out, time_out};
use super::proto::policy_service_server::PolicyService;
use super::proto::{
    ApplyRequest, ApplyResponse, ApproveProposalRequest, ApproveProposalResponse, CloseBreakGlassRequest,
    CloseBreakGlassResponse, CloseProposalRequest, CloseProposalResponse, Document, ExplainRequest, ExplainResponse,
    ExportRequest, ExportResponse, GetAccountRequest, GetAccountResponse, GetAppGroupRequest, GetAppGroupResponse,
    GetCeilingRequest, GetCeilingResponse, GetIssuerRequest, GetIssuerResponse, GetOperatorRequest,
    GetOperatorResponse, GetPolicyRequest, GetPolicyResponse, GetProposalRequest, GetProposalResponse,
    ListAccessRequest, ListAccessResponse, ListAccountsRequest, ListAccountsResponse, ListAppGroupsRequest,
    ListAppGroupsResponse, ListCeilingsRequest, ListCeilingsResponse, ListIssuersRequest, ListIssuersResponse,
    ListOperatorsRequest, ListOperatorsResponse, ListPoliciesRequest, ListPoliciesResponse, ListProposalsRequest,
    ListProposalsResponse, OpenBreakGlassRequest, OpenBreakGlassResponse, PlanRequest, PlanResponse, ProposeRequest,
    ProposeResponse, ReportShadowsRequest, ReportShadowsResponse,
};
use super::status::invalid;
use super::{Service, caller};
use crate::broker::{BrokerError, Proposed, Wanted};
use crate::domain::document::{
    self as written, AccountText, AppGroupText, CeilingText, IssuerText, OperatorText, PolicyText, Violation,
};
use crate::domain::enforcement;
use crate::domain::meaning;
use crate::domain::plan::Unnamed;
use crate::domain::target::Target;
use crate::id::{
    AccountName, AppGroupName, CeilingName, IdError, IssuerName, OperatorName, PolicyName, ProposalId, Revision,
};
use crate::identity::oidc::wrong_keys;
use crate::store::ShadowCount;

#[tonic::async_trait]
impl PolicyService for Service {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let caller = caller(&request)?;
        let PlanRequest { document, prune, refuse_advisory } = request.into_inner();
        let planned = self.0.plan(&caller, wanted(document, prune, refuse_advisory, 0)?).await?;
        let steps = planned.steps.into_iter().map(step_out).collect();
        Ok(Response::new(PlanResponse { steps, revision: planned.revision.0 }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let ApplyRequest { document, prune, refuse_advisory, planned_revision } = request.into_inner();
        let wanted = wanted(document, prune, refuse_advisory, planned_revision)?;
        let applied = self.0.apply(&caller, wanted).await?;
        let steps = applied.steps.into_iter().map(step_out).collect();
        Ok(Response::new(ApplyResponse { steps, revision: applied.revision.0 }))
    }

    async fn export(&self, _: Request<ExportRequest>) -> Result<Response<ExportResponse>, Status> {
        let (document, revision) = self.0.export()?;
        Ok(Response::new(ExportResponse { document: Some(document.into()), revision: revision.0 }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let caller = caller(&request)?;
        let ProposeRequest { document, prune, refuse_advisory, planned_revision, reason } = request.into_inner();
        let mut fields = Fields::default();
        let reason = fields.reason(&reason);
        let reason = fields.finish(reason)?;
        let wanted = wanted(document, prune, refuse_advisory, planned_revision)?;
        let proposed = self.0.propose(&caller, wanted, reason).await?;
        let revision = proposed.revision.0;
        Ok(Response::new(ProposeResponse { proposal: Some(proposal_out(proposed)), revision }))
    }

    async fn get_proposal(
        &self,
        request: Request<GetProposalRequest>,
    ) -> Result<Response<GetProposalResponse>, Status> {
        let proposed = self.0.proposal(&proposal_id(&request.get_ref().proposal_id)?).await?;
        let revision = proposed.revision.0;
        Ok(Response::new(GetProposalResponse { proposal: Some(proposal_out(proposed)), revision }))
    }

    async fn list_proposals(
        &self,
        _: Request<ListProposalsRequest>,
    ) -> Result<Response<ListProposalsResponse>, Status> {
        let (all, revision) = self.0.proposals().await?;
        let proposals = all.into_iter().map(proposal_out).collect();
        Ok(Response::new(ListProposalsResponse { proposals, revision: revision.0 }))
    }

    async fn approve_proposal(
        &self,
        request: Request<ApproveProposalRequest>,
    ) -> Result<Response<ApproveProposalResponse>, Status> {
        let caller = caller(&request)?;
        let approved = self.0.approve(&caller, &proposal_id(&request.get_ref().proposal_id)?).await?;
        let steps = approved.steps.into_iter().map(step_out).collect();
        Ok(Response::new(ApproveProposalResponse { steps, revision: approved.revision.0 }))
    }

    async fn close_proposal(
        &self,
        request: Request<CloseProposalRequest>,
    ) -> Result<Response<CloseProposalResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let id = fields.id("proposal_id", ProposalId::parse(&request.get_ref().proposal_id));
        let parts = id.zip(fields.reason(&request.get_ref().reason));
        let (id, reason) = fields.finish(parts)?;
        let revision = self.0.close_proposal(&caller, &id, reason).await?;
        Ok(Response::new(CloseProposalResponse { revision: revision.0 }))
    }

    async fn open_break_glass(
        &self,
        request: Request<OpenBreakGlassRequest>,
    ) -> Result<Response<OpenBreakGlassResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        let policy = fields.id("policy", PolicyName::parse(&request.policy));
        let for_s = match &request.duration {
            Some(duration) => fields.seconds("duration", duration),
            None => fields.refuse("duration", "is missing: say for how long, 1 minute to 1 day"),
        };
        let parts = policy.zip(for_s).zip(fields.reason(&request.reason));
        let ((policy, for_s), reason) = fields.finish(parts)?;
        let (until, revision) = self.0.open_break_glass(&caller, policy, for_s, reason).await?;
        Ok(Response::new(OpenBreakGlassResponse { until: Some(time_out(until)), revision: revision.0 }))
    }

    async fn close_break_glass(
        &self,
        request: Request<CloseBreakGlassRequest>,
    ) -> Result<Response<CloseBreakGlassResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let policy = fields.id("policy", PolicyName::parse(&request.get_ref().policy));
        let parts = policy.zip(fields.reason(&request.get_ref().reason));
        let (policy, reason) = fields.finish(parts)?;
        let revision = self.0.close_break_glass(&caller, policy, reason).await?;
        Ok(Response::new(CloseBreakGlassResponse { revision: revision.0 }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let caller = caller(&request)?;
        super::explain::explain(&self.0, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_access(&self, request: Request<ListAccessRequest>) -> Result<Response<ListAccessResponse>, Status> {
        super::access_list::list_access(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn report_shadows(
        &self,
        _: Request<ReportShadowsRequest>,
    ) -> Result<Response<ReportShadowsResponse>, Status> {
        let one = |it: ShadowCount| super::proto::ShadowCount {
            kind: it.key.kind,
            name: it.key.name,
            reason: it.key.reason,
            client: it.key.client,
            app_group: it.key.app_group,
            count: it.count,
            last: Some(millis_out(it.last)),
        };
        let (counts, has_more) = self.0.shadows().await?;
        Ok(Response::new(ReportShadowsResponse { counts: counts.into_iter().map(one).collect(), has_more }))
    }

    async fn get_issuer(&self, request: Request<GetIssuerRequest>) -> Result<Response<GetIssuerResponse>, Status> {
        let name = name(IssuerName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let issuer = state.issuers().get(&name).ok_or_else(|| absent("issuer", name.as_str()))?;
        Ok(Response::new(GetIssuerResponse {
            issuer: Some(IssuerText::of(issuer).into()),
            revision: state.head().revision.0,
            revoked: state.is_revoked(&Target::Issuer(name)),
        }))
    }

    async fn list_issuers(
        &self,
        request: Request<ListIssuersRequest>,
    ) -> Result<Response<ListIssuersResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.issuers().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        let issuers = page.into_iter().map(|issuer| IssuerText::of(issuer).into()).collect();
        Ok(Response::new(ListIssuersResponse { issuers, next_page_token, revision: state.head().revision.0 }))
    }

    async fn get_ceiling(&self, request: Request<GetCeilingRequest>) -> Result<Response<GetCeilingResponse>, Status> {
        let name = name(CeilingName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let ceiling = state.ceilings().get(&name).ok_or_else(|| absent("ceiling", name.as_str()))?;
        let ceiling = Some(CeilingText::of(ceiling).into());
        Ok(Response::new(GetCeilingResponse { ceiling, revision: state.head().revision.0 }))
    }

    async fn list_ceilings(
        &self,
        request: Request<ListCeilingsRequest>,
    ) -> Result<Response<ListCeilingsResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.ceilings().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        let ceilings = page.into_iter().map(|ceiling| CeilingText::of(ceiling).into()).collect();
        Ok(Response::new(ListCeilingsResponse { ceilings, next_page_token, revision: state.head().revision.0 }))
    }

    async fn get_account(&self, request: Request<GetAccountRequest>) -> Result<Response<GetAccountResponse>, Status> {
        let name = name(AccountName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let account = state.accounts().get(&name).ok_or_else(|| absent("account", name.as_str()))?;
        Ok(Response::new(GetAccountResponse {
            account: Some(AccountText::of(account).into()),
            revision: state.head().revision.0,
        }))
    }

    async fn list_accounts(
        &self,
        request: Request<ListAccountsRequest>,
    ) -> Result<Response<ListAccountsResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.accounts().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        Ok(Response::new(ListAccountsResponse {
            accounts: page.into_iter().map(|account| AccountText::of(account).into()).collect(),
            next_page_token,
            revision: state.head().revision.0,
        }))
    }

    async fn get_app_group(
        &self,
        request: Request<GetAppGroupRequest>,
    ) -> Result<Response<GetAppGroupResponse>, Status> {
        let name = name(AppGroupName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let group = state.app_groups().get(&name).ok_or_else(|| absent("app group", name.as_str()))?;
        let revoked = state.is_revoked(&Target::AppGroup(name));
        Ok(Response::new(GetAppGroupResponse {
            app_group: Some(AppGroupText::of(group).into()),
            revoked,
            revision: state.head().revision.0,
        }))
    }

    async fn list_app_groups(
        &self,
        request: Request<ListAppGroupsRequest>,
    ) -> Result<Response<ListAppGroupsResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.app_groups().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        let app_groups = page.into_iter().map(|group| AppGroupText::of(group).into()).collect();
        Ok(Response::new(ListAppGroupsResponse { app_groups, next_page_token, revision: state.head().revision.0 }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let name = name(PolicyName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let policy = state.policies().get(&name).ok_or_else(|| absent("policy", name.as_str()))?;
        let now_s = self.0.clock().now().seconds();
        Ok(Response::new(GetPolicyResponse {
            policy: Some(PolicyText::of(policy).into()),
            revoked: state.is_policy_revoked(&name),
            revision: state.head().revision.0,
            enforced_by: enforcement::of_policy(policy, &state).into_iter().map(enforcement_out).collect(),
            narrowed: meaning::narrowed(policy, &state),
            open_until: state.opened(&name).filter(|it| it.until > now_s).map(|it| time_out(it.until)),
        }))
    }

    async fn list_policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.policies().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        let policies = page.into_iter().map(|policy| PolicyText::of(policy).into()).collect();
        Ok(Response::new(ListPoliciesResponse { policies, next_page_token, revision: state.head().revision.0 }))
    }

    async fn get_operator(
        &self,
        request: Request<GetOperatorRequest>,
    ) -> Result<Response<GetOperatorResponse>, Status> {
        let name = name(OperatorName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let operator = state.operators().get(&name).ok_or_else(|| absent("operator", name.as_str()))?;
        Ok(Response::new(GetOperatorResponse {
            operator: Some(OperatorText::of(operator).into()),
            revision: state.head().revision.0,
        }))
    }

    async fn list_operators(
        &self,
        request: Request<ListOperatorsRequest>,
    ) -> Result<Response<ListOperatorsResponse>, Status> {
        let size = size(request.get_ref().page_size)?;
        let state = self.0.open()?.state();
        let all = state.operators().iter().map(|(name, it)| (name.as_str(), it));
        let (page, next_page_token) = page_of(all, size, &request.get_ref().page_token)?;
        let operators = page.into_iter().map(|operator| OperatorText::of(operator).into()).collect();
        Ok(Response::new(ListOperatorsResponse { operators, next_page_token, revision: state.head().revision.0 }))
    }
}

fn wanted(
    document: Option<Document>,
    prune: bool,
    refuse_advisory: bool,
    planned_revision: u64,
) -> Result<Wanted, Status> {
    let desired = written::Document::from(document.unwrap_or_default()).check();
    let desired = desired.map_err(|violations| invalid(&violations))?;
    // Whoever trusts an issuer is told where its keys can't be had, and not its callers.
    let keys = desired.issuers.iter().enumerate().filter_map(|(at, issuer)| {
        wrong_keys(issuer).map(|message| Violation { path: format!("issuers[{at}]"), message })
    });
    let wrong: Vec<Violation> = keys.collect();
    if !wrong.is_empty() {
        return Err(invalid(&wrong));
    }
    Ok(Wanted {
        desired,
        unnamed: if prune { Unnamed::Remove } else { Unnamed::Keep },
        refuse_advisory,
        planned_on: Revision(planned_revision),
    })
}

fn proposal_id(text: &str) -> Result<ProposalId, Status> {
    let mut fields = Fields::default();
    let id = fields.id("proposal_id", ProposalId::parse(text));
    fields.finish(id)
}

fn proposal_out(proposed: Proposed) -> super::proto::Proposal {
    super::proto::Proposal {
        proposal_id: proposed.proposal.id.to_string(),
        steps: proposed.steps.into_iter().map(step_out).collect(),
        proposed: Some(stamp_out(&proposed.proposal.stamp)),
        reason: proposed.proposal.reason.clone(),
        expires_at: Some(time_out(proposed.proposal.expires_at())),
        moved: proposed.moved,
    }
}

fn name<T>(parsed: Result<T, IdError>) -> Result<T, Status> {
    let mut fields = Fields::default();
    let parsed = fields.id("name", parsed);
    fields.finish(parsed)
}

fn size(page_size: i32) -> Result<u32, Status> {
    let mut fields = Fields::default();
    let size = fields.page(page_size);
    fields.finish(size)
}

fn absent(kind: &'static str, name: &str) -> BrokerError {
    BrokerError::NotFound { kind, name: name.to_owned() }
}
