//! Which family of Apple's API (App Store Connect API 3.7.0) belongs to which feature. This project's own choice.
//!
//! A family is what stands after the version in a path: `apps` in `/v1/apps`. What hangs off one of its resources,
//! `/v1/apps/{id}/RELATED` or `/v1/apps/{id}/relationships/RELATED`, is about what it answers with: another family
//! where RELATED is its name, in the plural or (less an `s`) the singular; else what [`RELATED`] says. What is in no
//! table belongs to nothing, so what Apple adds is granted to nobody before somebody has placed it here.

use super::Feature;

/// The families of each feature.
pub(super) const FAMILIES: &[(Feature, &str)] = &[
    (
        Feature::Metadata,
        "ageRatingDeclarations appCategories appClipAdvancedExperienceImages appClipAdvancedExperiences \
         appClipAppStoreReviewDetails appClipDefaultExperienceLocalizations appClipDefaultExperiences \
         appClipHeaderImages appClips appCustomProductPageLocalizations appCustomProductPageVersions \
         appCustomProductPages appEncryptionDeclarationDocuments appEncryptionDeclarations appEventLocalizations \
         appEventScreenshots appEventVideoClips appEvents appInfoLocalizations appInfos appPreviewSets appPreviews \
         appScreenshotSets appScreenshots appStoreReviewAttachments appStoreVersionExperimentTreatmentLocalizations \
         appStoreVersionExperimentTreatments appStoreVersionExperiments appStoreVersionLocalizations \
         appStoreVersionPhasedReleases appStoreVersionPromotions appStoreVersionReleaseRequests \
         appStoreVersionSubmissions appStoreVersions apps endUserLicenseAgreements reviewSubmissionItems \
         reviewSubmissions routingAppCoverages",
    ),
    (
        Feature::Pricing,
        "appAvailabilities appPricePoints appPriceSchedules endAppAvailabilityPreOrders \
         inAppPurchaseAppStoreReviewScreenshots inAppPurchaseAvailabilities inAppPurchaseContents \
         inAppPurchaseImages inAppPurchaseLocalizations inAppPurchasePricePoints inAppPurchasePriceSchedules \
         inAppPurchaseSubmissions inAppPurchases promotedPurchaseImages promotedPurchases \
         subscriptionAppStoreReviewScreenshots subscriptionAvailabilities subscriptionGracePeriods \
         subscriptionGroupLocalizations subscriptionGroupSubmissions subscriptionGroups subscriptionImages \
         subscriptionIntroductoryOffers subscriptionLocalizations subscriptionOfferCodeCustomCodes \
         subscriptionOfferCodeOneTimeUseCodes subscriptionOfferCodes subscriptionPricePoints subscriptionPrices \
         subscriptionPromotionalOffers subscriptionSubmissions subscriptions territories territoryAvailabilities \
         winBackOffers",
    ),
    (Feature::Reviews, "customerReviewResponses customerReviews"),
    (
        Feature::Analytics,
        "analyticsReportInstances analyticsReportRequests analyticsReportSegments analyticsReports \
         diagnosticSignatures",
    ),
    (Feature::SalesAndFinance, "financeReports salesReports"),
    (
        Feature::TestFlight,
        "betaAppClipInvocationLocalizations betaAppClipInvocations betaAppLocalizations betaAppReviewSubmissions \
         betaBuildLocalizations betaGroups betaLicenseAgreements betaTesterInvitations betaTesters buildBetaDetails \
         buildBetaNotifications",
    ),
    (Feature::Builds, "buildBundles builds preReleaseVersions"),
    (Feature::Provisioning, "bundleIdCapabilities bundleIds certificates devices profiles"),
    (
        Feature::XcodeCloud,
        "ciArtifacts ciBuildActions ciBuildRuns ciIssues ciMacOsVersions ciProducts ciTestResults ciWorkflows \
         ciXcodeVersions scmGitReferences scmProviders scmPullRequests scmRepositories",
    ),
    (
        Feature::GameCenter,
        "gameCenterAchievementImages gameCenterAchievementLocalizations gameCenterAchievementReleases \
         gameCenterAchievements gameCenterAppVersions gameCenterDetails gameCenterEnabledVersions gameCenterGroups \
         gameCenterLeaderboardEntrySubmissions gameCenterLeaderboardImages gameCenterLeaderboardLocalizations \
         gameCenterLeaderboardReleases gameCenterLeaderboardSetImages gameCenterLeaderboardSetLocalizations \
         gameCenterLeaderboardSetMemberLocalizations gameCenterLeaderboardSetReleases gameCenterLeaderboardSets \
         gameCenterLeaderboards gameCenterMatchmakingQueues gameCenterMatchmakingRuleSetTests \
         gameCenterMatchmakingRuleSets gameCenterMatchmakingRules gameCenterMatchmakingTeams \
         gameCenterPlayerAchievementSubmissions",
    ),
    (Feature::Users, "actors sandboxTesters sandboxTestersClearPurchaseHistoryRequest userInvitations users"),
];

/// What hangs off a resource under a name that is no family's, as `owner/related`, by the feature of what it answers.
pub(super) const RELATED: &[(Feature, &str)] = &[
    (
        Feature::Metadata,
        "appCategories/parent appCategories/subcategories appClipDefaultExperiences/releaseWithAppStoreVersion \
         appEvents/localizations appInfos/primaryCategory appInfos/primarySubcategoryOne \
         appInfos/primarySubcategoryTwo appInfos/secondaryCategory appInfos/secondarySubcategoryOne \
         appInfos/secondarySubcategoryTwo appStoreVersions/appStoreVersionExperimentsV2 \
         apps/appStoreVersionExperimentsV2 reviewSubmissions/items userInvitations/visibleApps users/visibleApps",
    ),
    (
        Feature::Pricing,
        "appPricePoints/equalizations appPriceSchedules/automaticPrices appPriceSchedules/baseTerritory \
         appPriceSchedules/manualPrices apps/appAvailabilityV2 apps/inAppPurchasesV2 \
         inAppPurchaseAvailabilities/availableTerritories inAppPurchasePricePoints/equalizations \
         inAppPurchasePriceSchedules/automaticPrices inAppPurchasePriceSchedules/baseTerritory \
         inAppPurchasePriceSchedules/manualPrices inAppPurchases/appStoreReviewScreenshot inAppPurchases/content \
         inAppPurchases/iapPriceSchedule inAppPurchases/images inAppPurchases/inAppPurchaseAvailability \
         inAppPurchases/pricePoints promotedPurchases/promotionImages \
         subscriptionAvailabilities/availableTerritories subscriptionOfferCodes/customCodes \
         subscriptionOfferCodes/oneTimeUseCodes subscriptionOfferCodes/prices subscriptionPricePoints/equalizations \
         subscriptionPromotionalOffers/prices subscriptions/appStoreReviewScreenshot subscriptions/images \
         subscriptions/introductoryOffers subscriptions/offerCodes subscriptions/pricePoints subscriptions/prices \
         subscriptions/promotionalOffers subscriptions/subscriptionAvailability winBackOffers/prices",
    ),
    (Feature::Reviews, "customerReviews/response"),
    (
        Feature::Analytics,
        "analyticsReportInstances/segments analyticsReportRequests/reports analyticsReports/instances \
         apps/perfPowerMetrics builds/perfPowerMetrics diagnosticSignatures/logs",
    ),
    (
        Feature::TestFlight,
        "apps/metrics/betaTesterUsages betaGroups/metrics/betaTesterUsages betaTesters/metrics/betaTesterUsages \
         builds/individualTesters builds/metrics/betaBuildUsages",
    ),
    (
        Feature::Builds,
        "buildBundles/appClipDomainCacheStatus buildBundles/appClipDomainDebugStatus \
         buildBundles/buildBundleFileSizes builds/icons",
    ),
    (
        Feature::XcodeCloud,
        "ciBuildActions/artifacts ciBuildActions/buildRun ciBuildActions/issues ciBuildActions/testResults \
         ciBuildRuns/actions ciMacOsVersions/xcodeVersions ciProducts/additionalRepositories ciProducts/buildRuns \
         ciProducts/primaryRepositories ciProducts/workflows ciWorkflows/buildRuns ciWorkflows/repository \
         ciXcodeVersions/macOsVersions scmProviders/repositories scmRepositories/gitReferences \
         scmRepositories/pullRequests",
    ),
    (
        Feature::GameCenter,
        "gameCenterAchievements/groupAchievement gameCenterAchievements/localizations \
         gameCenterAchievements/releases gameCenterAppVersions/compatibilityVersions \
         gameCenterDetails/achievementReleases gameCenterDetails/leaderboardReleases \
         gameCenterDetails/leaderboardSetReleases gameCenterDetails/metrics/classicMatchmakingRequests \
         gameCenterDetails/metrics/ruleBasedMatchmakingRequests gameCenterEnabledVersions/compatibleVersions \
         gameCenterLeaderboardSets/groupLeaderboardSet gameCenterLeaderboardSets/localizations \
         gameCenterLeaderboardSets/releases gameCenterLeaderboards/groupLeaderboard \
         gameCenterLeaderboards/localizations gameCenterLeaderboards/releases \
         gameCenterMatchmakingQueues/metrics/experimentMatchmakingQueueSizes \
         gameCenterMatchmakingQueues/metrics/experimentMatchmakingRequests \
         gameCenterMatchmakingQueues/metrics/matchmakingQueueSizes \
         gameCenterMatchmakingQueues/metrics/matchmakingRequests \
         gameCenterMatchmakingQueues/metrics/matchmakingSessions gameCenterMatchmakingRuleSets/matchmakingQueues \
         gameCenterMatchmakingRuleSets/rules gameCenterMatchmakingRuleSets/teams \
         gameCenterMatchmakingRules/metrics/matchmakingBooleanRuleResults \
         gameCenterMatchmakingRules/metrics/matchmakingNumberRuleResults \
         gameCenterMatchmakingRules/metrics/matchmakingRuleErrors",
    ),
];

/// Owners of nearly everything. That something hangs off one of these is told by the something alone; what hangs off
/// any other owner (the apps that a person may see) tells of its owner as well.
pub(super) const COMMON_OWNERS: &[&str] = &["appStoreVersions", "apps", "builds"];

const OUTSIDE_THE_STORE: &str = "distribution outside of the App Store, which no feature speaks of";
const MARKETPLACE: &str = "for those who run a marketplace of their own, which no feature speaks of";
const DEMO_ACCOUNT: &str = "holds the password of the account that Apple's reviewers sign in with";

/// What belongs to no feature, and why: a family, or one thing that hangs off a family's resources.
pub(super) const NONE: &[(&str, &str)] = &[
    ("alternativeDistributionDomains", OUTSIDE_THE_STORE),
    ("alternativeDistributionKeys", OUTSIDE_THE_STORE),
    ("alternativeDistributionPackageDeltas", OUTSIDE_THE_STORE),
    ("alternativeDistributionPackageVariants", OUTSIDE_THE_STORE),
    ("alternativeDistributionPackageVersions", OUTSIDE_THE_STORE),
    ("alternativeDistributionPackages", OUTSIDE_THE_STORE),
    ("appStoreReviewDetails", DEMO_ACCOUNT),
    ("betaAppReviewDetails", DEMO_ACCOUNT),
    ("marketplaceDomains", MARKETPLACE),
    ("marketplaceSearchDetails", MARKETPLACE),
    ("marketplaceWebhooks", MARKETPLACE),
    ("subscriptionOfferCodeOneTimeUseCodes/values", "the codes themselves, each worth what it gives away"),
];
