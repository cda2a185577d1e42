//! `SystemService`: the vault as a whole.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::convert::{Fields, millis_out};
use super::proto::system_service_server::SystemService;
use super::proto::{
    AcceptHistoryRequest, AcceptHistoryResponse, BackupRequest, BackupResponse, ConfirmRekeyRequest,
    ConfirmRekeyResponse, InitRequest, InitResponse, LostHistory, Phase, RekeyRequest, RekeyResponse, Replica,
    RotateRequest, RotateResponse, SealRequest, SealResponse, StatusRequest, StatusResponse, UnsealRequest,
    UnsealResponse,
};
use super::standing::Standing;
use super::{Service, backup, caller};
use crate::broker::{self, RekeyStep, Shares};
use crate::id::{ClientId, Revision};
use crate::secret::ShareText;
use crate::store;

/// Shares of an unseal key where a request does not say.
const SHARES: Shares = Shares { shares: 5, threshold: 3 };

#[tonic::async_trait]
impl SystemService for Service {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let asked = (request.shares, request.threshold) != (0, 0);
        let shares = asked.then(|| numbers(request.shares, request.threshold));
        let operators: Vec<ClientId> = self.0.bootstrap().to_vec();
        let broker = Arc::clone(&self.0);
        let init = async move { broker.init(Some(&caller), shares, &operators).await };
        let made = self.0.to_its_end(init).await?;
        Ok(Response::new(InitResponse {
            vault: made.vault.to_string(),
            shares: texts(&made.shares),
            threshold: made.threshold,
        }))
    }

    async fn unseal(&self, request: Request<UnsealRequest>) -> Result<Response<UnsealResponse>, Status> {
        let caller = caller(&request)?;
        let share = Some(ShareText::new(request.into_inner().share)).filter(|share| !share.expose_share().is_empty());
        let broker = Arc::clone(&self.0);
        let unsealed = self.0.to_its_end(async move { broker.unseal(&caller, share.as_ref()).await }).await?;
        Ok(Response::new(UnsealResponse {
            sealed: unsealed.sealed,
            given: unsealed.given,
            threshold: unsealed.threshold,
            why: unsealed.why,
        }))
    }

    async fn seal(&self, request: Request<SealRequest>) -> Result<Response<SealResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let reason = fields.reason(&request.get_ref().reason);
        let reason = fields.finish(reason)?;
        let revision = self.0.seal(&caller, reason).await?.0;
        Ok(Response::new(SealResponse { revision }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let (phase, why) = match &*self.0.phase() {
            broker::Phase::NotInitialised => (Phase::NotInitialised, "run `p8broker operator init`".to_owned()),
            broker::Phase::Sealed(why) => (Phase::Sealed, why.clone()),
            broker::Phase::Refusing(refusal) => (Phase::Refusing, refusal.why.clone()),
            broker::Phase::Open(_) => (Phase::Open, String::new()),
        };
        let mut status = StatusResponse {
            phase: phase.into(),
            why,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replica: self.0.replica().to_owned(),
            // What others said of themselves is worth an answer without it.
            replicas: self.0.replicas().await.unwrap_or_default().into_iter().map(replica_out).collect(),
            ..StatusResponse::default()
        };
        if let broker::Phase::Refusing(refusal) = &*self.0.phase() {
            status.lost_history = refusal.lost.as_ref().map(|lost| LostHistory {
                seen_revision: lost.seen.revision.0,
                database_revision: lost.database.revision.0,
            });
        }
        if let broker::Phase::Open(open) = &*self.0.phase() {
            let state = open.state();
            status.vault = open.id().to_string();
            status.revision = state.head().revision.0;
            status.unseal_generation = state.unseal_generation();
            status.root_key_version = state.root_version();
        }
        Ok(Response::new(status))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<RotateResponse>, Status> {
        let (root_key_version, revision) = self.0.rotate(&caller(&request)?).await?;
        Ok(Response::new(RotateResponse { root_key_version, revision: revision.0 }))
    }

    async fn rekey(&self, request: Request<RekeyRequest>) -> Result<Response<RekeyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let new = numbers(request.new_shares, request.new_threshold);
        let step = self.0.rekey(&caller, &shares(request.shares), new).await?;
        Ok(Response::new(match step {
            RekeyStep::Waiting { given, threshold } => RekeyResponse { given, threshold, ..RekeyResponse::default() },
            RekeyStep::Staged { shares, threshold } => {
                RekeyResponse { new_shares: texts(&shares), new_threshold: threshold, ..RekeyResponse::default() }
            }
            RekeyStep::Done(_) => RekeyResponse { done: true, ..RekeyResponse::default() },
        }))
    }

    async fn confirm_rekey(
        &self,
        request: Request<ConfirmRekeyRequest>,
    ) -> Result<Response<ConfirmRekeyResponse>, Status> {
        let caller = caller(&request)?;
        let rekeyed = self.0.confirm_rekey(&caller, &shares(request.into_inner().shares)).await?;
        Ok(Response::new(ConfirmRekeyResponse {
            done: rekeyed.done,
            given: rekeyed.given,
            threshold: rekeyed.threshold,
            generation: rekeyed.generation,
            revision: rekeyed.revision.0,
        }))
    }

    async fn accept_history(
        &self,
        request: Request<AcceptHistoryRequest>,
    ) -> Result<Response<AcceptHistoryResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        let reason = fields.reason(&request.reason);
        let reason = fields.finish(reason)?;
        let (database, seen) = (Revision(request.database_revision), Revision(request.seen_revision));
        let broker = Arc::clone(&self.0);
        let accept = async move { broker.accept_history(&caller, database, seen, reason).await };
        let revision = self.0.to_its_end(accept).await?.0;
        Ok(Response::new(AcceptHistoryResponse { revision }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupResponse, Status>> + Send>>;

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let standing = Standing::of(&request, &self.0)?;
        let (backup, ended) = self.0.back_up(standing.caller()?).await?;
        Ok(Response::new(backup::stream(&self.0, standing, backup, ended)))
    }
}

fn replica_out(replica: store::Replica) -> Replica {
    let phase = Phase::from_str_name(&format!("PHASE_{}", replica.phase)).unwrap_or_default();
    Replica {
        name: replica.name,
        phase: phase.into(),
        revision: replica.revision.0,
        version: replica.version,
        started_at: Some(millis_out(replica.started)),
        seen_at: Some(millis_out(replica.seen)),
    }
}

fn numbers(shares: u32, threshold: u32) -> Shares {
    let or = |asked, default| if asked == 0 { default } else { asked };
    Shares { shares: or(shares, SHARES.shares), threshold: or(threshold, SHARES.threshold) }
}

fn shares(texts: Vec<String>) -> Vec<ShareText> {
    texts.into_iter().map(ShareText::new).collect()
}

fn texts(shares: &[ShareText]) -> Vec<String> {
    shares.iter().map(|share| share.expose_share().to_owned()).collect()
}
