//! What a source knows, without any I/O: the token it holds, how long that may be used, and which ids are revoked.
//!
//! Upholds the invariants of `token_source.rs`, which asks and listens.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use zeroize::Zeroizing;

use super::token_source::{Event, TokenSourceError};
use super::{random_part, since};
use crate::clock::{Stopwatch, UnixMillis};
use crate::grpc::proto;
use crate::id::{IssuerId, KeyId, PolicyName, Revision, TokenId};

/// A token counts as expired this long before it is, so that a request made with it arrives in time; a short-lived one a
/// tenth of its life before.
const SAFETY: Duration = Duration::from_secs(5);

/// The part of a token's life after which the next one is asked for lies between these: before half, from which on the
/// broker itself would sign anew, and not for all clients in the same moment.
const REFRESH: (f64, f64) = (0.40, 0.48);

/// How long the id of a revoked token is remembered: longer than any token lives, but for long-lived reads.
const REMEMBERED: Duration = Duration::from_secs(20 * 60);

/// How many of them.
const MOST_REMEMBERED: usize = 4096;

/// A token, and what the broker says of it.
pub struct Token {
    jwt: Zeroizing<String>,
    pub(super) id: TokenId,
    expires_at: UnixMillis,
    key_id: KeyId,
    issuer_id: IssuerId,
    policy: PolicyName,
    pub(super) revision: Revision,
    asked: Stopwatch,
    life: Duration,
}

/// The token, and what speaks against it.
#[derive(Default)]
pub(super) struct State {
    pub(super) held: Option<Held>,
    revoked: Revoked,
    /// How the last request for a token failed, if it did.
    pub(super) failure: Option<TokenSourceError>,
    /// The last token that Apple did not take.
    pub(super) reported: Option<TokenId>,
    /// Whether a new token is wanted before its time.
    pub(super) fresh: bool,
    /// How often all tokens came into doubt. One that was asked for before the last time is to be checked.
    pub(super) doubts: u64,
}

/// A token in its place.
pub(super) struct Held {
    pub(super) token: Arc<Token>,
    /// The age at which the next one is asked for.
    refresh: Duration,
    /// The doubts that it is beyond.
    checked: u64,
}

impl Token {
    pub(super) fn take(mut answer: proto::IssueTokenResponse, asked: Stopwatch) -> Result<Self, Status> {
        let jwt = Zeroizing::new(std::mem::take(&mut answer.token));
        let wrong = |what: &dyn fmt::Display| Status::internal(format!("the broker's answer can't be used: {what}"));
        if jwt.is_empty() {
            return Err(wrong(&"it has no token"));
        }
        let life = answer.expires_in.and_then(|life| Duration::try_from(life).ok());
        Ok(Self {
            jwt,
            id: TokenId::parse(&answer.token_id).map_err(|error| wrong(&error))?,
            expires_at: answer.expires_at.map_or_else(UnixMillis::default, |at| UnixMillis::from_seconds(at.seconds)),
            key_id: KeyId::parse(&answer.key_id).map_err(|error| wrong(&error))?,
            issuer_id: IssuerId::parse(&answer.issuer_id).map_err(|error| wrong(&error))?,
            policy: PolicyName::parse(&answer.policy).map_err(|error| wrong(&error))?,
            revision: Revision(answer.revision),
            asked,
            life: life.ok_or_else(|| wrong(&"it has no `expires_in`"))?,
        })
    }

    /// Lends the JWT to the expression that sends it, as `Authorization: Bearer`. Never log it.
    pub fn expose_jwt(&self) -> &str {
        &self.jwt
    }

    /// Its id: safe to log.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// When Apple stops taking it, by the broker's clock. [`Token::valid_for`] does not depend on this machine's.
    pub fn expires_at(&self) -> UnixMillis {
        self.expires_at
    }

    /// How long it may still be used: its life, less what is over and a margin for the way to Apple.
    pub fn valid_for(&self) -> Duration {
        let margin = SAFETY.min(self.life / 10);
        self.life.saturating_sub(margin).saturating_sub(since(self.asked))
    }

    /// The key that signed it.
    pub fn key_id(&self) -> &KeyId {
        &self.key_id
    }

    /// The Issuer ID of the key's account.
    pub fn issuer_id(&self) -> &IssuerId {
        &self.issuer_id
    }

    /// The policy that granted it.
    pub fn policy(&self) -> &PolicyName {
        &self.policy
    }

    /// The revision that it was decided at.
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

/// Shows the id and nothing else.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id.as_str()).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn valid(&self) -> Option<&Arc<Token>> {
        self.held.as_ref().map(|held| &held.token).filter(|token| !token.valid_for().is_zero())
    }

    /// How long it takes until the next token is to be asked for.
    pub(super) fn due(&self) -> Duration {
        match &self.held {
            Some(held) if !self.fresh => held.refresh.saturating_sub(since(held.token.asked)),
            _ => Duration::ZERO,
        }
    }

    /// The token that the broker is to be asked about.
    pub(super) fn doubted(&self) -> Option<TokenId> {
        let held = self.held.as_ref().filter(|held| held.checked != self.doubts);
        held.map(|held| held.token.id.clone())
    }

    /// Holds a token that was asked for when there were so many doubts.
    pub(super) fn accept(&mut self, token: Token, doubts: u64) -> Result<Event, Status> {
        // INVARIANT (INV-SOURCE-1): looked up and held under one lock, which the listener takes as well.
        if self.revoked.ids.contains(&token.id) {
            self.fresh = true;
            return Err(Status::aborted("the token was revoked while it was on its way"));
        }
        if token.valid_for().is_zero() {
            return Err(Status::unavailable("the token had expired when it arrived"));
        }
        let event = Event::Refreshed {
            token_id: token.id.clone(),
            expires_at: token.expires_at,
            key_id: token.key_id.clone(),
            policy: token.policy.clone(),
            revision: token.revision,
        };
        let refresh = refresh_at(token.life);
        self.held = Some(Held { token: Arc::new(token), refresh, checked: doubts });
        (self.failure, self.fresh) = (None, false);
        Ok(event)
    }

    pub(super) fn revoke(&mut self, ids: &[TokenId]) {
        if !self.revoked.remember(ids) {
            self.doubt();
        }
        self.held.take_if(|held| ids.contains(&held.token.id));
    }

    /// Forgets the token that is held: its client is revoked.
    pub(super) fn drop_held(&mut self) {
        if let Some(held) = self.held.take() {
            self.revoked.remember(std::slice::from_ref(&held.token.id));
        }
    }

    pub(super) fn doubt(&mut self) {
        self.doubts = self.doubts.wrapping_add(1);
    }

    /// The broker says that the token is good, asked when there were so many doubts.
    pub(super) fn clear(&mut self, id: &TokenId, doubts: u64) {
        if let Some(held) = self.held.as_mut().filter(|held| held.token.id == *id) {
            held.checked = doubts;
        }
    }
}

/// Ids of revoked tokens, oldest first.
#[derive(Default)]
struct Revoked {
    ids: HashSet<TokenId>,
    told: VecDeque<(TokenId, Stopwatch)>,
}

impl Revoked {
    /// Answers whether nothing had to be forgotten before its time.
    fn remember(&mut self, ids: &[TokenId]) -> bool {
        for id in ids {
            if self.ids.insert(id.clone()) {
                self.told.push_back((id.clone(), Stopwatch::start()));
            }
        }
        let mut whole = true;
        while let Some((id, told)) = self.told.front() {
            let old = since(*told) > REMEMBERED;
            if !old && self.told.len() <= MOST_REMEMBERED {
                break;
            }
            whole &= old;
            self.ids.remove(id);
            self.told.pop_front();
        }
        whole
    }
}

/// The age at which a token with this life is replaced.
fn refresh_at(life: Duration) -> Duration {
    let (from, to) = REFRESH;
    life.mul_f64(from + (to - from) * random_part())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(life: Duration) -> proto::IssueTokenResponse {
        proto::IssueTokenResponse {
            token: "header.payload.signature".to_owned(),
            token_id: "0".repeat(64),
            expires_in: Some(life.try_into().unwrap()),
            key_id: "2X9R4HXF34".to_owned(),
            issuer_id: "57246542-96fe-1a63-e053-0824d011072a".to_owned(),
            policy: "games".to_owned(),
            ..proto::IssueTokenResponse::default()
        }
    }

    #[test]
    fn a_token_counts_as_expired_a_margin_before_it_is() {
        for (life, longest) in [(600, 595), (50, 45), (20, 18), (0, 0)] {
            let token = Token::take(answer(Duration::from_secs(life)), Stopwatch::start()).unwrap();
            let (valid, longest) = (token.valid_for(), Duration::from_secs(longest));
            assert!(valid <= longest && valid + Duration::from_secs(1) >= longest, "{life}: {valid:?}");
        }
    }

    #[test]
    fn p1_no_debug_print_shows_the_jwt() {
        let token = Token::take(answer(Duration::from_secs(600)), Stopwatch::start()).unwrap();
        assert_eq!(token.expose_jwt(), "header.payload.signature");
        assert!(!format!("{token:#?}").contains("payload"));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_no_token() {
        let good = || answer(Duration::from_secs(600));
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        for bad in [
            proto::IssueTokenResponse { token: String::new(), ..good() },
            proto::IssueTokenResponse { token_id: "1".to_owned(), ..good() },
            proto::IssueTokenResponse { expires_in: None, ..good() },
            proto::IssueTokenResponse { expires_in: negative, ..good() },
        ] {
            let error = Token::take(bad, Stopwatch::start()).unwrap_err();
            assert!(error.message().starts_with("the broker's answer can't be used"), "{error}");
        }
    }

    fn id(nth: usize) -> TokenId {
        TokenId::parse(&format!("{nth:064x}")).unwrap()
    }

    #[test]
    fn every_token_is_replaced_before_half_of_its_life_and_not_all_in_one_moment() {
        let life = Duration::from_secs(1000);
        let ages: Vec<_> = (0..1000).map(|_| refresh_at(life)).collect();
        assert!(ages.iter().all(|age| (400..=480).contains(&age.as_secs())), "{ages:?}");
        assert!(ages.iter().any(|age| age.as_secs() < 410) && ages.iter().any(|age| age.as_secs() > 470), "{ages:?}");
    }

    /// INV-SOURCE-1.
    #[test]
    fn more_revoked_ids_than_can_be_remembered_put_every_token_in_doubt() {
        let mut state = State::default();
        let all: Vec<_> = (0..=MOST_REMEMBERED).map(id).collect();
        let (last, most) = all.split_last().unwrap();
        state.revoke(most);
        state.revoke(most);
        assert_eq!((state.doubts, state.revoked.ids.len()), (0, MOST_REMEMBERED));
        state.revoke(std::slice::from_ref(last));
        assert_eq!(
            (state.doubts, state.revoked.ids.len(), state.revoked.told.len()),
            (1, MOST_REMEMBERED, MOST_REMEMBERED)
        );
        assert!(state.revoked.ids.contains(last) && !state.revoked.ids.contains(&id(0)), "the oldest one goes");
    }
}
