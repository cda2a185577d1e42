//! What the documentation lists, read from its pages.

use std::collections::BTreeMap;

const POLICIES: &str = include_str!("../../../docs/policies.md");
const FEATURES: &str = include_str!("../../../docs/features.md");

pub struct Book {
    /// Reasons, in the order in which a request is looked at.
    pub reasons: Vec<String>,
    /// Paths whose reads may live long; `*` is one identifier.
    pub long_lived: Vec<String>,
    /// The feature of each family.
    pub families: BTreeMap<String, String>,
}

impl Book {
    pub fn read() -> Self {
        let reasons = section(POLICIES, "## How a request is decided");
        let mut order: Vec<String> = Vec::new();
        for word in quoted(reasons).filter(|it| it.len() > 3 && it.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        {
            // Quotas are counted after the decision.
            if !order.iter().any(|known| known == word)
                && word != "QUOTA_EXCEEDED"
                && word != "ADMIN"
                && word != "ACCOUNT_HOLDER"
            {
                order.push(word.to_owned());
            }
        }
        let long = section(POLICIES, "## Long-lived reads");
        let long: Vec<_> = long.lines().filter(|line| line.starts_with("/v1/")).map(ToOwned::to_owned).collect();
        let mut families = BTreeMap::new();
        for part in FEATURES.split("\n## ").skip(1) {
            let (feature, text) = part.split_once('\n').unwrap();
            if !feature.contains(' ') {
                families.extend(quoted(text).map(|family| (family.to_owned(), feature.to_owned())));
            }
        }
        let found = (order.len(), long.len(), families.len());
        assert!(found.0 > 15 && found.1 > 30 && found.2 > 100, "the pages are not as they were: {found:?}");
        Self { reasons: order, long_lived: long, families }
    }

    /// How near a miss is: the later the reason, the nearer.
    pub fn rank(&self, reason: &str) -> usize {
        self.reasons.iter().position(|known| known == reason).unwrap_or_else(|| panic!("{reason} is not in the list"))
    }
}

fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let text = page.split_once(&format!("\n{title}\n")).unwrap_or_else(|| panic!("no section {title}")).1;
    text.split("\n## ").next().unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
