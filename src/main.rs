//! The `p8broker` binary: the command line, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    p8broker::cli::run()
}
