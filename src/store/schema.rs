//! Which release may use a database: the oldest one is written in it, so that an older binary refuses and one that is
//! merely different works.

use super::StoreError;

/// This release, with numbers that order as releases do.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Refuses a database that only newer releases may use.
///
/// # Errors
/// With the release that is needed.
pub(super) fn check_release(oldest: &str) -> Result<(), StoreError> {
    match (numbers(oldest), numbers(OURS)) {
        (Some(oldest), Some(ours)) if oldest <= ours => Ok(()),
        (Some(_), Some(_)) => Err(StoreError::Unfit(format!(
            "this database needs p8broker {oldest} or later, and this is {OURS}: a newer release has changed it; upgrade \
             this broker"
        ))),
        _ => Err(StoreError::Corrupt(format!("`{oldest}` is no release"))),
    }
}

fn numbers(version: &str) -> Option<[u64; 3]> {
    // What comes after a `-` or `+` (Semantic Versioning 2.0.0, sections 9 and 10) does not change who may use a schema.
    let version = version.split(['-', '+']).next()?;
    let numbers: Vec<u64> = version.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_binary_is_refused_and_an_equal_one_works() {
        assert!(check_release(OURS).is_ok() && check_release("0.0.9").is_ok());
        assert!(matches!(check_release("99.0.0"), Err(StoreError::Unfit(why)) if why.contains("upgrade")));
        assert!(matches!(check_release("new"), Err(StoreError::Corrupt(_))));
        assert!(numbers("0.10.0") > numbers("0.9.12") && numbers("1.0.0-rc.1") == numbers("1.0.0"));
    }
}
