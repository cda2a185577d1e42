//! Why a backup is not restored.

use crate::broker::BrokerError;
use crate::id::{Revision, VaultId};
use crate::store::StoreError;
use crate::vault::backup::FileError;

/// Why a backup is not restored. Nothing was touched, but where it says so.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file can't be read or written.
    #[error("{0}")]
    Path(String),
    /// The file is not what was written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is what was written, and yet no whole vault.
    #[error("this is no whole vault: {0}")]
    Wrong(String),
    /// The unseal key is missing or another one.
    #[error("{0}")]
    Unseal(String),
    /// The database is not empty.
    #[error("the database is not empty: it holds {0}; a backup is restored into an empty one")]
    NotEmpty(String),
    /// It is about another vault.
    #[error("the backup is of vault {ours}, but {whose} is of vault {theirs}")]
    OtherVault {
        /// The backup's.
        ours: VaultId,
        /// The other.
        theirs: VaultId,
        /// Whose that is.
        whose: &'static str,
    },
    /// There was something newer.
    #[error(
        "the backup ends at revision {backup}, and revision {seen} was seen since: restoring goes back in time. Where what came \
         after is lost for good, say so with --accept-older {seen}"
    )]
    Older {
        /// What the backup has.
        backup: Revision,
        /// What was seen.
        seen: Revision,
    },
    /// The database says no.
    #[error(transparent)]
    Store(StoreError),
    /// The database can't be backed up.
    #[error(transparent)]
    Broker(BrokerError),
}

impl RestoreError {
    /// The stable constant.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Path(_) => "USAGE",
            Self::File(FileError::NotABackup(_)) => "NO_BACKUP",
            Self::File(FileError::Newer(_) | FileError::Unknown(_)) => "NEWER_RELEASE",
            Self::File(FileError::CutOff(_)) => "BACKUP_CUT_OFF",
            Self::File(FileError::Changed { .. } | FileError::Vault(_)) => "BACKUP_CHANGED",
            Self::File(FileError::Io(_)) => "BACKUP_UNREADABLE",
            Self::Wrong(_) => "BACKUP_NOT_WHOLE",
            Self::Unseal(_) => "WRONG_UNSEAL_KEY",
            Self::NotEmpty(_) => "STORE_NOT_EMPTY",
            Self::OtherVault { .. } => "OTHER_VAULT",
            Self::Older { .. } => "OLDER_THAN_SEEN",
            Self::Store(StoreError::Unfit(_)) => "DATABASE_UNFIT",
            Self::Store(StoreError::Corrupt(_)) => "DATABASE_DAMAGED",
            Self::Store(_) => "DATABASE_UNAVAILABLE",
            Self::Broker(error) => error.reason(),
        }
    }
}

impl From<BrokerError> for RestoreError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Unavailable(error) => Self::Store(error),
            other => Self::Broker(other),
        }
    }
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyInitialised => Self::NotEmpty("a vault".to_owned()),
            other => Self::Store(other),
        }
    }
}
