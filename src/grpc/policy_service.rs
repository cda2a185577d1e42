//! `PolicyService`: desired state.

use tonic::{Request, Response, Status};

use super::convert::{
    Fields, account_out, app_group_out, document_in, enforcement_out, operator_out, page_of, policy_out, step_out,
};
use super::proto::policy_service_server::PolicyService;
use super::proto::{
    ApplyRequest, ApplyResponse, Document, GetAccountRequest, GetAccountResponse, GetAppGroupRequest,
    GetAppGroupResponse, GetOperatorRequest, GetOperatorResponse, GetPolicyRequest, GetPolicyResponse,
    ListAccountsRequest, ListAccountsResponse, ListAppGroupsRequest, ListAppGroupsResponse, ListOperatorsRequest,
    ListOperatorsResponse, ListPoliciesRequest, ListPoliciesResponse, PlanRequest, PlanResponse,
};
use super::status::invalid;
use super::{Service, caller};
use crate::broker::BrokerError;
use crate::domain::document::Desired;
use crate::domain::enforcement;
use crate::domain::plan::Unnamed;
use crate::domain::target::Target;
use crate::id::{AccountName, AppGroupName, IdError, OperatorName, PolicyName};

#[tonic::async_trait]
impl PolicyService for Service {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let caller = caller(&request)?;
        let PlanRequest { document, prune } = request.into_inner();
        let planned = self.0.plan(&caller, &desired(document)?, unnamed(prune))?;
        let steps = planned.steps.into_iter().map(step_out).collect();
        Ok(Response::new(PlanResponse { steps, revision: planned.revision.0 }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let caller = caller(&request)?;
        let ApplyRequest { document, prune } = request.into_inner();
        let applied = self.0.apply(&caller, desired(document)?, unnamed(prune)).await?;
        let steps = applied.steps.into_iter().map(step_out).collect();
        Ok(Response::new(ApplyResponse { steps, revision: applied.revision.0 }))
    }

    async fn get_account(&self, request: Request<GetAccountRequest>) -> Result<Response<GetAccountResponse>, Status> {
        let name = name(AccountName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let account = state.accounts().get(&name).ok_or_else(|| absent("account", name.as_str()))?;
        Ok(Response::new(GetAccountResponse { account: Some(account_out(account)), revision: state.head().revision.0 }))
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
            accounts: page.into_iter().map(account_out).collect(),
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
            app_group: Some(app_group_out(group)),
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
        let app_groups = page.into_iter().map(|group| app_group_out(group)).collect();
        Ok(Response::new(ListAppGroupsResponse { app_groups, next_page_token, revision: state.head().revision.0 }))
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let name = name(PolicyName::parse(&request.get_ref().name))?;
        let state = self.0.open()?.state();
        let policy = state.policies().get(&name).ok_or_else(|| absent("policy", name.as_str()))?;
        Ok(Response::new(GetPolicyResponse {
            policy: Some(policy_out(policy)),
            revoked: state.is_revoked(&Target::Policy(name)),
            revision: state.head().revision.0,
            enforced_by: enforcement::of_policy(policy).into_iter().map(enforcement_out).collect(),
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
        let policies = page.into_iter().map(|policy| policy_out(policy)).collect();
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
            operator: Some(operator_out(operator)),
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
        let operators = page.into_iter().map(|operator| operator_out(operator)).collect();
        Ok(Response::new(ListOperatorsResponse { operators, next_page_token, revision: state.head().revision.0 }))
    }
}

fn desired(document: Option<Document>) -> Result<Desired, Status> {
    document_in(document.unwrap_or_default()).check().map_err(|violations| invalid(&violations))
}

fn unnamed(prune: bool) -> Unnamed {
    if prune { Unnamed::Remove } else { Unnamed::Keep }
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
