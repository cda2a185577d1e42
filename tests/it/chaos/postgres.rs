//! A PostgreSQL cluster of a test's own. How one is run is known to `tests/postgres.sh` alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One cluster, in a folder, on a port that stays the same over restarts.
pub struct Postgres {
    dir: PathBuf,
    pub port: u16,
}

/// How it stops.
#[derive(Clone, Copy)]
pub enum Stop {
    /// As a power cut would: nothing is finished, the next start recovers from the log.
    Immediate,
    Fast,
}

impl Postgres {
    /// A new cluster that runs.
    pub async fn create(dir: &Path, port: u16) -> Self {
        let it = Self { dir: dir.to_owned(), port };
        script(vec!["init".to_owned(), it.folder()]).await;
        it.start().await;
        it
    }

    /// A streaming standby with a name, which does not run yet.
    pub async fn standby(&self, dir: &Path, port: u16, name: &str) -> Self {
        let it = Self { dir: dir.to_owned(), port };
        script(vec!["standby".to_owned(), self.folder(), self.port.to_string(), it.folder(), name.to_owned()]).await;
        it
    }

    pub async fn start(&self) {
        script(vec!["start".to_owned(), self.folder(), self.port.to_string()]).await;
    }

    pub async fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Immediate => "immediate",
            Stop::Fast => "fast",
        };
        script(vec!["stop".to_owned(), self.folder(), mode.to_owned()]).await;
    }

    /// Makes commits wait for a standby, or for none.
    pub async fn wait_for(&self, standby: Option<&str>) {
        script(vec!["sync".to_owned(), self.folder(), standby.unwrap_or_default().to_owned()]).await;
    }

    pub async fn promote(&self) {
        script(vec!["promote".to_owned(), self.folder()]).await;
    }

    fn folder(&self) -> String {
        self.dir.display().to_string()
    }
}

impl Drop for Postgres {
    /// Also after a failed test; one that is stopped already is none of its business.
    fn drop(&mut self) {
        let _ = command(&["stop".to_owned(), self.folder(), "immediate".to_owned()]).status();
    }
}

fn command(arguments: &[String]) -> Command {
    let file = std::env::var_os("P8BROKER_TEST_POSTGRES_SCRIPT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres.sh"), PathBuf::from);
    let mut command = Command::new(file);
    command.args(arguments).stdin(Stdio::null());
    command
}

async fn script(arguments: Vec<String>) {
    let output = {
        let arguments = arguments.clone();
        tokio::task::spawn_blocking(move || command(&arguments).output().unwrap()).await.unwrap()
    };
    assert!(output.status.success(), "postgres.sh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
