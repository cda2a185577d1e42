//! The anchor: the newest revision and chain value, kept in a file outside the database.
//!
//! It is how a restarted broker recognises a database that went back in time as a whole, which no seal inside it shows
//! (P2). Keep it on another disk or volume than the database: whoever can take both back can take them back together.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::id::{DecisionId, Head, VaultId};

/// A file with the newest head.
#[derive(Debug, Clone)]
pub struct Anchor(PathBuf);

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchored {
    /// The vault it is about.
    pub vault: VaultId,
    /// The newest head it saw.
    pub head: Head,
    /// Acceptances of lost history that stand in that head's history.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<DecisionId>,
}

impl Anchor {
    /// An anchor in this file.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether somebody made an empty file, to start an anchor from the present history.
    pub fn is_empty(&self) -> bool {
        fs::metadata(&self.0).is_ok_and(|file| file.len() == 0)
    }

    /// Makes the empty file that starts an anchor, where there is none.
    ///
    /// # Errors
    /// Where it can't be made.
    pub fn begin(&self) -> io::Result<()> {
        File::options().create(true).append(true).open(&self.0).map(drop)
    }

    /// What the file says; `None` where there is none yet, or an empty one.
    ///
    /// # Errors
    /// Where it can't be read, or says something else.
    pub fn read(&self) -> io::Result<Option<Anchored>> {
        match fs::read(&self.0) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file, durably: a crash leaves the old content or the new.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn write(&self, anchored: &Anchored) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(anchored)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        match self.0.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    }
}
