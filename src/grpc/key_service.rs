//! `KeyService`: Apple's keys.

use std::collections::BTreeSet;

use tonic::{Request, Response, Status};

use super::convert::{Fields, key_out, page_of};
use super::proto::key_service_server::KeyService;
use super::proto::{
    ConfirmRevokedAtAppleRequest, ConfirmRevokedAtAppleResponse, GetKeyRequest, GetKeyResponse, ImportKeyRequest,
    ImportKeyResponse, KeyKind, ListKeysRequest, ListKeysResponse, ResumeKeyRequest, ResumeKeyResponse,
    RevokeKeyRequest, RevokeKeyResponse, SuspendKeyRequest, SuspendKeyResponse,
};
use super::revocation_service::revocation_out;
use super::{Service, caller};
use crate::broker::{BrokerError, KeyImport};
use crate::domain::target::Target;
use crate::id::{AccountName, AppGroupName, AppleUser, KeyId};
use crate::secret::P8Text;

#[tonic::async_trait]
impl KeyService for Service {
    async fn import_key(&self, request: Request<ImportKeyRequest>) -> Result<Response<ImportKeyResponse>, Status> {
        let caller = caller(&request)?;
        let key = self.0.import_key(&caller, import(request.into_inner())?).await?;
        Ok(Response::new(ImportKeyResponse { key: Some(key_out(&key.key)), revision: key.revision.0 }))
    }

    async fn get_key(&self, request: Request<GetKeyRequest>) -> Result<Response<GetKeyResponse>, Status> {
        let id = key_id(&request.get_ref().key_id)?;
        let state = self.0.open()?.state();
        let key = state.keys().get(&id).ok_or(BrokerError::NotFound { kind: "key", name: id.to_string() })?;
        Ok(Response::new(GetKeyResponse { key: Some(key_out(key)), revision: state.head().revision.0 }))
    }

    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Result<Response<ListKeysResponse>, Status> {
        let request = request.get_ref();
        let mut fields = Fields::default();
        let size = fields.page(request.page_size);
        let size = fields.finish(size)?;
        let state = self.0.open()?.state();
        let all = state.keys().iter().map(|(id, key)| (id.as_str(), key));
        let (page, next_page_token) = page_of(all, size, &request.page_token)?;
        Ok(Response::new(ListKeysResponse {
            keys: page.into_iter().map(|key| key_out(key)).collect(),
            next_page_token,
            revision: state.head().revision.0,
        }))
    }

    async fn suspend_key(&self, request: Request<SuspendKeyRequest>) -> Result<Response<SuspendKeyResponse>, Status> {
        let caller = caller(&request)?;
        let (id, reason) = id_and_reason(&request.get_ref().key_id, &request.get_ref().reason)?;
        let key = self.0.suspend_key(&caller, &id, reason).await?;
        Ok(Response::new(SuspendKeyResponse { key: Some(key_out(&key.key)), revision: key.revision.0 }))
    }

    async fn resume_key(&self, request: Request<ResumeKeyRequest>) -> Result<Response<ResumeKeyResponse>, Status> {
        let caller = caller(&request)?;
        let (id, reason) = id_and_reason(&request.get_ref().key_id, &request.get_ref().reason)?;
        let key = self.0.resume_key(&caller, &id, reason).await?;
        Ok(Response::new(ResumeKeyResponse { key: Some(key_out(&key.key)), revision: key.revision.0 }))
    }

    async fn revoke_key(&self, request: Request<RevokeKeyRequest>) -> Result<Response<RevokeKeyResponse>, Status> {
        let caller = caller(&request)?;
        let (id, reason) = id_and_reason(&request.get_ref().key_id, &request.get_ref().reason)?;
        let revoked = self.0.revoke(&caller, Target::Key(id), reason).await?;
        Ok(Response::new(RevokeKeyResponse { revocation: Some(revocation_out(revoked)) }))
    }

    async fn confirm_revoked_at_apple(
        &self,
        request: Request<ConfirmRevokedAtAppleRequest>,
    ) -> Result<Response<ConfirmRevokedAtAppleResponse>, Status> {
        let caller = caller(&request)?;
        let id = key_id(&request.get_ref().key_id)?;
        let key = self.0.confirm_revoked_at_apple(&caller, &id).await?;
        Ok(Response::new(ConfirmRevokedAtAppleResponse { key: Some(key_out(&key.key)), revision: key.revision.0 }))
    }
}

fn key_id(text: &str) -> Result<KeyId, Status> {
    let mut fields = Fields::default();
    let id = fields.id("key_id", KeyId::parse(text));
    fields.finish(id)
}

fn id_and_reason(id: &str, reason: &str) -> Result<(KeyId, String), Status> {
    let mut fields = Fields::default();
    let parts = fields.id("key_id", KeyId::parse(id)).zip(fields.reason(reason));
    fields.finish(parts)
}

fn import(request: ImportKeyRequest) -> Result<KeyImport, Status> {
    let mut fields = Fields::default();
    // Taken over first, so that the bytes are wiped whatever happens.
    let p8 = P8Text::new(request.p8);
    let id = fields.id("key_id", KeyId::parse(&request.key_id));
    let account = fields.id("account", AccountName::parse(&request.account));
    let roles = fields.roles("roles", &request.roles);
    let individual = match KeyKind::try_from(request.kind) {
        Ok(KeyKind::Team) if request.user.is_empty() && request.app_access.is_none() => Some(None),
        Ok(KeyKind::Team) => {
            fields.refuse("kind", "a team key has no user and no app access: it reaches every app of the account")
        }
        Ok(KeyKind::Individual) => {
            let user = fields.id("user", AppleUser::parse(&request.user));
            let access = fields.app_access(request.app_access.as_ref());
            user.zip(access).map(Some)
        }
        Ok(KeyKind::Unspecified) | Err(_) => {
            fields.refuse("kind", format!("{} is neither team nor individual", request.kind))
        }
    };
    if request.app_groups.is_empty() || request.app_groups.len() > 1000 {
        fields.refuse::<()>("app_groups", "must name 1 to 1000 app groups that the key may be used for");
    }
    let mut app_groups = BTreeSet::new();
    for (at, name) in request.app_groups.iter().take(1000).enumerate() {
        app_groups.extend(fields.id(&format!("app_groups[{at}]"), AppGroupName::parse(name)));
    }
    let parts = id.zip(account).zip(roles).zip(individual);
    fields.finish(parts.map(|(((id, account), roles), individual)| KeyImport {
        id,
        account,
        individual,
        roles,
        app_groups,
        p8,
    }))
}
