//! What is not as it was written is refused, wherever it was changed.

use super::*;

#[tokio::test]
async fn a_restore_into_a_database_that_is_not_empty_is_refused_and_changes_nothing() {
    let mut broker = Broker::start().await;
    let file = back_up(&broker, "vault.backup").await;
    let config = config_file(&broker, "p8broker.toml", &store_of(&broker));
    broker.stop().await;
    let before = std::fs::read(broker.database()).unwrap();
    let (code, error) = restore(&file, &config, &[]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("STORE_NOT_EMPTY")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("the same vault"), "{error}");
    assert_eq!(std::fs::read(broker.database()).unwrap(), before);
}
