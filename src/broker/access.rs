//! Says who can get what, on the newest state: this replica first catches up with the log.

use super::Broker;
use super::error::BrokerError;
use crate::domain::access::{Access, of_client, of_group};
use crate::domain::principal::{Facts, Principal};
use crate::id::{AppGroupName, ClientId, Revision};

/// Whose access is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One client's, with what else is known of it.
    Client(ClientId, Facts),
    /// Everybody's to one app group.
    AppGroup(AppGroupName),
}

impl Broker {
    /// Who can get what, and the revision that this was computed on.
    ///
    /// # Errors
    /// Where there is no such app group, or no issuer that vouches for such a client.
    pub async fn access(&self, whose: Whose) -> Result<(Vec<Access>, Revision), BrokerError> {
        let open = self.open()?;
        let state = open.follow.catch_up().await?;
        let now = self.parts.clock.now();
        let absent = |kind: &'static str, name: &str| BrokerError::NotFound { kind, name: name.to_owned() };
        let access = match whose {
            Whose::Client(client, facts) => {
                let issuer = client.issuer().filter(|issuer| !state.issuers().contains_key(issuer));
                if let Some(issuer) = issuer {
                    return Err(absent("issuer", issuer.as_str()));
                }
                of_client(&Principal::imagined(client, facts, state.issuers()), &state, now)
            }
            Whose::AppGroup(group) if state.app_groups().contains_key(&group) => of_group(&group, &state, now),
            Whose::AppGroup(group) => return Err(absent("app group", group.as_str())),
        };
        Ok((access, state.head().revision))
    }
}
