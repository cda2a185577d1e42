//! The page about metrics says what is registered, and labels stay few.

use std::collections::BTreeSet;

use super::*;

const PAGE: &str = "docs/metrics.md";

fn metrics() -> Metrics {
    Metrics::new().unwrap()
}

/// Names and labels of the families in a text as Prometheus reads it.
fn families(text: &str) -> BTreeSet<String> {
    let name = |line: &str| line.strip_prefix("# TYPE ")?.split(' ').next().map(ToOwned::to_owned);
    text.lines().filter_map(name).collect()
}

#[test]
fn the_page_is_of_these_metrics() {
    crate::pages::agree(PAGE, &metrics().page());
}

#[test]
fn what_is_shown_is_in_the_page_and_what_is_in_the_page_can_be_shown() {
    let metrics = metrics();
    let described: BTreeSet<_> = metrics.described().iter().map(|it| it.name.clone()).collect();
    assert_eq!(described.len(), metrics.described().len(), "none twice");
    for shown in families(&metrics.text().unwrap()) {
        let of_process = metrics.page().contains(&format!("`{shown}`"));
        assert!(described.contains(&shown) || of_process, "{shown} is not in the page");
    }
    for it in metrics.described() {
        assert!(it.name.starts_with("p8broker_") && !it.help.is_empty() && !it.section.is_empty(), "{it:?}");
        assert_eq!(it.kind == "counter", it.name.ends_with("_total"), "{it:?}");
    }
}

#[test]
fn names_of_operators_beyond_the_most_are_one() {
    let metrics = metrics();
    for nth in 0..MOST_NAMES + 20 {
        metrics.tokens.inc("SIGNED", &format!("group-{nth}"), "ADMIN");
    }
    metrics.tokens.inc("SIGNED", "group-0", "ADMIN");
    let text = metrics.text().unwrap();
    let of = |group: &str| format!(r#"p8broker_tokens_total{{app_group="{group}",outcome="SIGNED",role="ADMIN"}}"#);
    assert!(text.contains(&format!("{} 20\n", of(OTHERS))) && text.contains(&format!("{} 2\n", of("group-0"))));
    assert_eq!(text.matches("p8broker_tokens_total{").count(), MOST_NAMES + 1);
}

#[test]
fn what_is_read_as_a_whole_is_shown_as_a_whole() {
    let metrics = metrics();
    let show = |values: &[(&str, f64)]| {
        let values = values.iter().map(|(name, value)| (vec![(*name).to_owned()], *value)).collect();
        metrics.exposure.show(values, |a, b| a + b);
        let text = metrics.text().unwrap();
        text.lines().filter(|line| line.starts_with("p8broker_exposure_tokens")).map(ToOwned::to_owned).collect()
    };
    let shown: Vec<String> = show(&[("games", 3.0), ("tools", 1.0)]);
    assert_eq!(shown.len(), 2);
    assert_eq!(show(&[("tools", 2.0)]), [r#"p8broker_exposure_tokens{app_group="tools"} 2"#]);
    let many: Vec<_> = (0..MOST_NAMES + 3).map(|nth| (format!("group-{nth:04}"), 1000.0 - nth as f64)).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let shown: Vec<String> = show(&many);
    assert_eq!(shown.len(), MOST_NAMES + 1);
    let rest: f64 = many[MOST_NAMES..].iter().map(|(_, value)| value).sum();
    assert!(shown.contains(&format!(r#"p8broker_exposure_tokens{{app_group="(others)"}} {rest}"#)));
    assert_eq!(show(&[]), Vec::<String>::new());
}
