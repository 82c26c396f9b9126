//! The status page of a running relay, in a real browser.

use std::path::Path;
use std::time::Duration;

use tests::browser::{Browser, View};
use tests::endpoint::Endpoint;
use tests::writers::Dice;

use crate::run::{LEAD_MAX, all_is_well, published, site, stop};

const TOKEN: &str = "a token that is long enough";
/// The page looks every second.
const SHOWN_MAX: Duration = Duration::from_secs(20);

/// The points of a plot's first line; each look adds one.
const POINTS: &str = "document.querySelector('#rate-plot polyline').getAttribute('points')";

/// Looks at the page in every view; answers with what is wrong in each.
async fn faults(browser: &Browser, name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for view in View::ALL {
        browser.view(view).await;
        let View { scheme, size: (width, _) } = view;
        let found = browser.faults().await;
        faults.extend(found.into_iter().map(|fault| format!("{scheme}, {width} px: {fault}")));
        let picture = format!("status_page_{name}_{scheme}_{width}.png");
        browser.picture(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(picture)).await;
    }
    faults
}

#[tokio::test]
async fn the_status_page_shows_how_a_relay_is_to_everybody() {
    let Some(browser) = Browser::start().await else { return };
    let site = site("status_page").await;
    let mut dice = Dice::new("status_page");
    let arguments = [site.run_arguments(), vec![format!("--http-token={TOKEN}")]].concat();
    let mut relay = site.cdc_relay(&arguments);
    let endpoint = Endpoint::of(&mut relay).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    let mut standby = site.cdc_relay(&arguments);
    let beside = Endpoint::of(&mut standby).await;
    beside.readiness(200, "role=standby", LEAD_MAX).await;
    let bearer = format!("Bearer {TOKEN}");
    let no_faults: [String; 0] = [];

    // Live traffic: the plots move and the numbers are those of the relay.
    browser.open(&format!("http://{}/", endpoint.address())).await;
    let mut written = site.write(200, 4, &mut dice).await;
    browser.until(&format!("{POINTS}.split(' ').length >= 3"), SHOWN_MAX).await;
    let points = browser.run(&format!("return {POINTS}")).await.to_string();
    written.add(site.write(200, 4, &mut dice).await);
    browser.until(&format!("{POINTS} !== {points}"), SHOWN_MAX).await;
    published(&site).await;
    let count = site.expected().await.len();
    let shown = format!("{TEXT}'#messages').replaceAll(',', '') === '{count}'");
    browser.until(&shown, SHOWN_MAX).await;
    assert_eq!(browser.text("#role").await, "leading");
    assert!(browser.text("#slot").await.contains("reserved"), "{}", browser.text("#slot").await);
    assert_eq!(browser.text("#last-error").await, "No error since its start");
    assert_eq!(faults(&browser, "leading").await, no_faults);

    // A standby says that it is one.
    browser.open(&format!("http://{}/", beside.address())).await;
    browser.until(&format!("{TEXT}'#role') === 'standby'"), SHOWN_MAX).await;
    assert_eq!(faults(&browser, "standby").await, no_faults);

    // A pause, and the lag that grows in it.
    browser.open(&format!("http://{}/", endpoint.address())).await;
    assert_eq!(endpoint.post("/pause", Some(&bearer)).await.code, 200);
    written.add(site.write(20, 2, &mut dice).await);
    browser.until(&format!("{TEXT}'#role') === 'paused'"), SHOWN_MAX).await;
    browser.until(&format!("parseFloat({TEXT}'#lag')) > 2"), SHOWN_MAX).await;
    assert_eq!(faults(&browser, "paused").await, no_faults);
    assert_eq!(endpoint.post("/resume", Some(&bearer)).await.code, 200);
    browser.until(&format!("{TEXT}'#role') === 'leading'"), SHOWN_MAX).await;

    // The end of its connection is an error that is remembered.
    stop(&mut standby).await;
    site.on_slot(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1",
    )
    .await;
    browser
        .until(&format!("{TEXT}'#last-error-text').includes('terminating connection')"), SHOWN_MAX)
        .await;
    browser.until(&format!("{TEXT}'#errors').includes('57P01')"), SHOWN_MAX).await;
    endpoint.readiness(200, "role=leading", LEAD_MAX).await;
    browser.until(&format!("{TEXT}'#role') === 'leading'"), SHOWN_MAX).await;
    assert_eq!(faults(&browser, "error").await, no_faults);

    let own = [endpoint.address(), beside.address()].map(|at| format!("http://{at}/"));
    for url in browser.requests().await {
        let is_own = own.iter().any(|own| url.starts_with(own)) || url.starts_with("data:");
        assert!(is_own, "the page asks for {url}");
    }
    assert_eq!(browser.complaints().await, no_faults);

    // A relay that is gone is not shown as one that is well.
    published(&site).await;
    stop(&mut relay).await;
    browser.until(&format!("{TEXT}'#role') === 'no answer'"), SHOWN_MAX).await;
    assert_eq!(faults(&browser, "gone").await, no_faults);
    all_is_well(&site, &written).await;
}

/// Begins an expression for the text of an element.
const TEXT: &str = "((selector) => document.querySelector(selector).innerText)(";
