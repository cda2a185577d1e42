//! What each feature covers, what none covers, and that the manual says the same as the tables.

use std::collections::BTreeSet;

use super::*;

fn read(text: &str) -> Operation {
    Operation::parse(&format!("GET {text}")).unwrap()
}

fn grants(texts: &[&str]) -> Vec<FeatureGrant> {
    texts.iter().map(|text| FeatureGrant::parse(text).unwrap()).collect()
}

/// Whether these grants cover this read.
fn covers(texts: &[&str], path: &str) -> bool {
    is_granted(&grants(texts), &read(path))
}

#[test]
fn each_feature_covers_its_own_reads_and_no_other_feature_does() {
    let examples: &[(Feature, &[&str])] = &[
        (
            Feature::Metadata,
            &["/v1/apps", "/v1/apps/1/appInfos", "/v2/appStoreVersionExperiments/1", "/v1/builds/1/app"],
        ),
        (Feature::Pricing, &["/v1/territories", "/v2/inAppPurchases/1", "/v1/apps/1/appPriceSchedule"]),
        (Feature::Reviews, &["/v1/customerReviews/1/response", "/v1/apps/1/customerReviews"]),
        (Feature::Analytics, &["/v1/analyticsReports/1/instances", "/v1/apps/1/perfPowerMetrics"]),
        (Feature::SalesAndFinance, &["/v1/salesReports", "/v1/financeReports"]),
        (
            Feature::TestFlight,
            &["/v1/betaTesters", "/v1/builds/1/individualTesters", "/v1/apps/1/metrics/betaTesterUsages"],
        ),
        (Feature::Builds, &["/v1/builds", "/v1/apps/1/builds", "/v1/appStoreVersions/1/relationships/build"]),
        (Feature::Provisioning, &["/v1/certificates", "/v1/bundleIds/1/profiles", "/v1/devices/1"]),
        (Feature::XcodeCloud, &["/v1/ciProducts", "/v1/scmRepositories/1/pullRequests", "/v1/apps/1/ciProduct"]),
        (Feature::GameCenter, &["/v1/gameCenterGroups", "/v1/gameCenterAchievements/1/localizations"]),
        (Feature::Users, &["/v1/users", "/v1/actors/1", "/v2/sandboxTesters"]),
    ];
    assert_eq!(examples.iter().map(|(feature, _)| *feature).collect::<Vec<_>>(), Feature::ALL);
    for (feature, paths) in examples {
        for path in *paths {
            assert_eq!(feature_of(&read(path)), Some(*feature), "{path}");
            for other in Feature::ALL {
                for access in [Access::Read, Access::Write] {
                    let grant = FeatureGrant { feature: *other, access };
                    assert_eq!(is_granted(&[grant], &read(path)), other == feature, "{grant} {path}");
                }
            }
            assert!(!is_granted(&[], &read(path)), "{path}");
        }
    }
}

#[test]
fn what_tells_of_two_features_needs_both() {
    for (answer, owner, path) in [
        ("metadata:read", "users:read", "/v1/users/1/visibleApps"),
        ("metadata:read", "users:read", "/v1/users/1/relationships/visibleApps"),
        ("metadata:read", "testflight:read", "/v1/betaTesters/1/apps"),
        ("builds:read", "testflight:write", "/v1/betaGroups/1/relationships/builds"),
        ("metadata:write", "provisioning:read", "/v1/bundleIds/1/app"),
        ("metadata:read", "xcode-cloud:read", "/v1/ciProducts/1/app"),
    ] {
        assert!(!covers(&[answer], path) && !covers(&[owner], path), "{path}");
        assert!(covers(&[answer, owner], path), "{path}");
    }
}

#[test]
fn a_query_that_widens_the_answer_is_never_covered() {
    let everything: Vec<_> =
        Feature::ALL.iter().map(|feature| FeatureGrant { feature: *feature, access: Access::Write }).collect();
    for narrower in [
        "/v1/apps?filter[bundleId]=a.b&exists[gameCenterEnabledVersions]=true&fields[apps]=name&limit[builds]=3&limit=9",
        "/v1/apps?sort=name&cursor=x",
        "/v1/apps/1/metrics/betaTesterUsages?period=P7D&groupBy=betaTesters",
    ] {
        assert!(is_granted(&everything, &read(narrower)), "{narrower}");
    }
    for wider in [
        "/v1/apps?include=builds",
        "/v1/apps?include=appInfos",
        "/v1/apps?filter[bundleId]=a.b&include=builds&limit[builds]=3",
        "/v1/apps?include[]=builds",
        "/v1/apps?Include=builds",
        "/v1/apps?expand=builds",
        "/v1/apps?filter=a",
        "/v1/apps?filter[]=a",
        "/v1/apps?limit[a]include=builds",
        "/v1/apps?limit[a][include]=builds",
    ] {
        assert!(!is_granted(&everything, &read(wider)), "{wider}");
    }
}

#[test]
fn what_is_not_known_belongs_to_nothing() {
    for path in [
        "/v1/unheardOf",
        "/v1/app",
        "/v1/App",
        "/v4/apps",
        "/v1/apps/1/unheardOf",
        "/v1/apps/1/localizations",
        "/v1/apps/1/metrics",
        "/v1/apps/1/metrics/builds",
        "/v1/apps/1/relationships",
        "/v1/apps/1/builds/2",
        "/v1/apps/1/builds/relationships/app",
        "/v1/unheardOf/1/builds",
        // Placed, and in no feature.
        "/v1/appStoreReviewDetails/1",
        "/v1/appStoreVersions/1/appStoreReviewDetail",
        "/v1/apps/1/betaAppReviewDetail",
        "/v1/apps/1/alternativeDistributionKey",
        "/v1/marketplaceWebhooks",
        "/v1/subscriptionOfferCodeOneTimeUseCodes/1/values",
    ] {
        assert_eq!(feature_of(&read(path)), None, "{path}");
    }
}

#[test]
fn a_policys_placeholder_is_an_id_like_any_other() {
    let template = super::super::operation::OperationTemplate::parse("GET /v1/apps/{app}/customerReviews").unwrap();
    assert_eq!(feature_of(template.as_operation()), Some(Feature::Reviews));
}

#[test]
fn a_grant_is_a_feature_and_an_access() {
    for feature in Feature::ALL {
        assert_eq!(Feature::parse(feature.as_str()), Some(*feature));
        for access in [Access::Read, Access::Write] {
            let grant = FeatureGrant { feature: *feature, access };
            assert_eq!(FeatureGrant::parse(&grant.to_string()), Ok(grant));
        }
    }
    let text = r#""sales-and-finance:read""#;
    let grant: FeatureGrant = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&grant).unwrap(), text);
    for bad in ["", ":", "review:read", "Reviews:read", " reviews:read", ":read", "*:read"] {
        assert!(matches!(FeatureGrant::parse(bad), Err(FeatureError::Feature(_))), "{bad}");
    }
    for bad in ["reviews", "reviews:", "reviews:Read", "reviews:admin", "reviews:read:write", "reviews:read "] {
        assert!(matches!(FeatureGrant::parse(bad), Err(FeatureError::Access(_))), "{bad}");
    }
    let message = FeatureGrant::parse("review:read").unwrap_err().to_string();
    assert!(message.contains("`review:read`") && message.contains("metadata, pricing, reviews"), "{message}");
}

#[test]
fn the_tables_name_nothing_twice_and_owners_that_exist() {
    let known: BTreeSet<_> = families().map(|(family, _)| family).collect();
    assert_eq!(known.len(), families().count(), "a family stands twice");
    let features: BTreeSet<_> = families().filter_map(|(_, feature)| feature.ok()).collect();
    assert_eq!(features.len(), Feature::ALL.len(), "a feature has no family");
    let related: BTreeSet<_> = words(table::RELATED).map(|(pair, _)| pair).collect();
    assert_eq!(related.len(), words(table::RELATED).count(), "something related stands twice");
    for pair in related {
        let (owner, name) = pair.split_once('/').unwrap();
        assert!(INDEX.contains_key(&(owner, "")), "{pair}: no such owner");
        assert!(!INDEX.contains_key(&("", name)), "{pair}: the name of a family says it already");
        assert!(!table::NONE.iter().any(|(none, _)| *none == pair), "{pair} belongs to none");
    }
    // A singular must not be read as another family.
    for (family, feature) in words(table::FAMILIES) {
        let singular = family.strip_suffix('s').unwrap_or(family);
        assert_eq!((INDEX[&("", family)], INDEX[&("", singular)]), (feature, feature), "{family}");
    }
    assert!(table::COMMON_OWNERS.iter().all(|owner| INDEX.contains_key(&(*owner, ""))));
}

#[test]
fn the_manual_names_each_family_once_under_its_feature() {
    let manual = include_str!("../../../docs/features.md");
    let sections: Vec<_> = manual.split("\n## ").skip(1).map(|text| text.split_once('\n').unwrap()).collect();
    let titles: Vec<_> = sections.iter().map(|(title, _)| *title).collect();
    let mut wanted: Vec<_> = Feature::ALL.iter().map(|feature| feature.as_str()).collect();
    wanted.push("Belongs to no feature");
    assert_eq!(titles, wanted);
    for (family, feature) in families() {
        let quoted = format!("`{family}`");
        assert_eq!(manual.matches(&quoted).count(), 1, "{family}");
        let title = feature.map_or("Belongs to no feature", Feature::as_str);
        let text = sections.iter().find(|(known, _)| *known == title).unwrap().1;
        let line = text.lines().find(|line| line.contains(&quoted));
        assert!(line.is_some_and(|line| feature.err().is_none_or(|reason| line.contains(reason))), "{family}");
    }
    // Nor does it name what is in no table.
    let placed = sections.iter().flat_map(|(_, text)| text.split('`').skip(1).step_by(2));
    let known: BTreeSet<_> = families().map(|(family, _)| family).chain(["operations"]).collect();
    assert_eq!(placed.filter(|name| !known.contains(name)).collect::<Vec<_>>(), Vec::<&str>::new());
    for feature in Feature::ALL {
        assert!(manual.contains(feature.about()), "{feature}");
    }
}
