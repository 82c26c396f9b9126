//! The page of the shop, in a real browser: what people do on it, what they break, and what they are told.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tests::browser::{Browser, View};
use tests::shop::Shop;

/// On a busy machine, without optimisation, everything has happened by then.
const SEEN_MAX: Duration = Duration::from_secs(180);

const STYLES: [&str; 2] = ["choreography", "orchestration"];
const NO_FAULTS: [&str; 0] = [];

/// Each scheme and each width once.
const SOME: [View; 2] =
    [View { scheme: "light", size: (360, 740) }, View { scheme: "dark", size: (1280, 900) }];

/// What the button that places a hundred orders places here.
const MANY: u32 = 20;

/// What the README shows.
const PICTURE: (u32, u32) = (1440, 1300);

/// An expression for the text of what a selector finds.
fn text_of(selector: &str) -> String {
    format!("document.querySelector({selector:?})?.innerText")
}

/// Waits until the page says this somewhere.
async fn says(browser: &Browser, selector: &str, text: &str) {
    browser.until(&format!("{}?.includes({text:?})", text_of(selector)), SEEN_MAX).await;
}

/// Waits until a lane has exactly so many orders in this state.
async fn lane_has(browser: &Browser, style: &str, state: &str, orders: u32) {
    let shown = text_of(&format!("#lane-{style} [data-of={state}]"));
    browser.until(&format!("{shown} === '{orders}'"), SEEN_MAX).await;
}

async fn lanes_have(browser: &Browser, state: &str, orders: u32) {
    for style in STYLES {
        lane_has(browser, style, state, orders).await;
    }
}

/// Waits until exactly so many orders are completed by choreography and by orchestration, and none runs.
async fn completed(browser: &Browser, orders: [u32; 2]) {
    for (style, orders) in STYLES.into_iter().zip(orders) {
        lane_has(browser, style, "completed", orders).await;
        lane_has(browser, style, "running", 0).await;
    }
}

async fn order_in(browser: &Browser, style: &str) {
    let said = format!("#lane-{style} .said");
    let before = browser.text(&said).await;
    browser.click(&format!("#lane-{style} .one-order"), 1).await;
    let shown = text_of(&said);
    browser
        .until(&format!("{shown} !== {before:?} && {shown}.includes('is taken')"), SEEN_MAX)
        .await;
}

async fn order_in_both(browser: &Browser) {
    for style in STYLES {
        order_in(browser, style).await;
    }
}

async fn flip(browser: &Browser, trouble: &str, on: bool) {
    browser.click(&format!("#trouble-{trouble}"), 1).await;
    let pressed = format!("document.querySelector('#trouble-{trouble}').ariaPressed === '{on}'");
    browser.until(&pressed, SEEN_MAX).await;
}

/// Looks at the page in these views; answers with what is wrong in each.
async fn faults(browser: &Browser, name: &str, views: &[View]) -> Vec<String> {
    let mut faults = Vec::new();
    for view in views.iter().copied() {
        browser.view(view).await;
        let View { scheme, size: (width, _) } = view;
        // What is drawn fits the new width a moment later.
        let fits = "[...document.querySelectorAll('svg.sequence[viewBox]')].every(
            (it) => it.clientWidth === 0 || Math.abs(it.viewBox.baseVal.width - it.clientWidth) <= 1)";
        browser.until(fits, SEEN_MAX).await;
        let found = browser.faults().await;
        faults.extend(found.into_iter().map(|fault| format!("{scheme}, {width} px: {fault}")));
        let picture = format!("shop_page_{name}_{scheme}_{width}.png");
        browser.picture(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(picture)).await;
    }
    browser.view(View { scheme: "light", size: (1440, 900) }).await;
    faults
}

fn kill(shop: &Shop, name: &str) {
    kill_process(shop.pid(name), Signal::KILL).expect("it runs");
}

/// The page, open in a browser.
pub(crate) struct Page {
    browser: Browser,
    /// Its address.
    own: String,
}

impl Page {
    /// None where there is no browser, which is told.
    pub(crate) async fn open(shop: &Shop) -> Option<Self> {
        let browser = Browser::start().await?;
        let own = format!("http://{}/", shop.front().address());
        files_are_guarded(shop).await;
        browser.view(View { scheme: "light", size: (1440, 900) }).await;
        browser.open(&format!("{own}?many={MANY}")).await;
        Some(Page { browser, own })
    }

    /// Of a shop in which nobody has ordered yet.
    pub(crate) async fn shows_orders_and_what_becomes_of_them_in_trouble(&self, shop: &Shop) {
        let browser = &self.browser;
        says(browser, "#notices", "nobody has ordered yet").await;
        assert_eq!(faults(browser, "empty", &SOME).await, NO_FAULTS);
        orders_end(browser).await;
        a_double_click_is_one_order(browser).await;
        keys_do_what_clicks_do(browser).await;
        assert_eq!(browser.complaints().await, NO_FAULTS);

        duplicates_are_suppressed(browser).await;
        the_breaker_opens_and_closes(browser).await;
        who_is_killed_comes_back(browser, shop).await;
        a_postgres_that_is_away_is_named(browser).await;
        the_storefront_comes_back(browser, shop).await;
        what_is_set_aside_is_retried(browser).await;

        // For the picture: one story of an order that was undone, beside one that went through.
        browser.click("#fates input[value='card is declined']", 1).await;
        order_in(browser, "choreography").await;
        lane_has(browser, "choreography", "rejected", 4).await;
        browser.click("#fates input[value='goes through']", 1).await;
        let undone = "document.querySelectorAll('#lane-choreography .undo .label').length === 2";
        browser.until(undone, SEEN_MAX).await;
        assert_eq!(faults(browser, "used", &View::ALL).await, NO_FAULTS);
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shop.webp");
        // As everybody sees the page.
        let said = "for (const it of document.querySelectorAll('.many')) it.textContent = 'Place a hundred'";
        browser.run(said).await;
        browser.small_picture(&picture, PICTURE).await;
    }

    /// By its switch.
    pub(crate) async fn stops_kafka(&self) {
        flip(&self.browser, "kafka-stopped", true).await;
    }

    /// What is seen while Kafka is stopped by its switch; answers with how many orders were placed.
    pub(crate) async fn takes_orders_and_says_that_kafka_is_stopped(&self) -> u64 {
        self.says("Kafka is stopped").await;
        order_in_both(&self.browser).await;
        says(&self.browser, "#lane-orchestration .latest", "not heard of yet").await;
        2
    }

    /// Waits until it is told at the top.
    pub(crate) async fn says(&self, text: &str) {
        says(&self.browser, "#notices", text).await;
    }

    /// But of the outages which were made on purpose.
    pub(crate) async fn has_asked_nobody_else_and_complained_of_nothing_else(&self) {
        let mut complaints = self.browser.complaints().await;
        complaints.retain(|text| {
            !text.contains("/api/") || !(text.contains("503") || text.contains("net::ERR_"))
        });
        assert_eq!(complaints, NO_FAULTS);
        for url in self.browser.requests().await {
            assert!(url.starts_with(&self.own), "the page asks for {url}");
        }
    }
}

async fn files_are_guarded(shop: &Shop) {
    for path in ["/", "/page/page.js", "/page/style.css", "/api/state"] {
        let answer = shop.front().get(path).await;
        assert_eq!(answer.code, 200, "{path}");
        for header in
            ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff"]
        {
            assert!(answer.head.contains(header), "{path}: {}", answer.head);
        }
        let cache = if path.starts_with("/api") { "no-store" } else { "no-cache" };
        assert!(answer.head.contains(&format!("cache-control: {cache}")), "{}", answer.head);
    }
    assert_eq!(shop.front().get("/page/../Cargo.toml").await.code, 404);
}

/// One that goes through and one for each refusal, in each lane; their stories are told.
async fn orders_end(browser: &Browser) {
    order_in_both(browser).await;
    lanes_have(browser, "completed", 1).await;
    for (style, arrows) in [("choreography", ".event .arrow"), ("orchestration", ".command .tip")] {
        let lane = format!("#lane-{style}");
        browser
            .until(&format!("document.querySelectorAll('{lane} {arrows}').length >= 5"), SEEN_MAX)
            .await;
        browser.until(&format!("document.querySelector('{lane} .end.good')"), SEEN_MAX).await;
        let told = format!("document.querySelectorAll('{lane} .told li').length >= 9");
        browser.until(&told, SEEN_MAX).await;
    }
    for (fate, reason) in [
        ("card is declined", "card is declined"),
        ("is out of stock", "out of stock"),
        ("carrier refuses", "carrier refuses"),
    ] {
        browser.click(&format!("#fates input[value='{fate}']"), 1).await;
        order_in_both(browser).await;
        for style in STYLES {
            says(browser, &format!("#lane-{style} .story header"), reason).await;
        }
    }
    lanes_have(browser, "rejected", 3).await;
    for style in STYLES {
        // The carrier has refused: the goods go back.
        let undone = format!(
            "document.querySelector('#lane-{style} .refused') && document.querySelector('#lane-{style} .undo')"
        );
        browser.until(&undone, SEEN_MAX).await;
    }
    browser.click("#fates input[value='goes through']", 1).await;
    says(browser, "#tile-shop", "add up").await;
}

async fn a_double_click_is_one_order(browser: &Browser) {
    for style in STYLES {
        browser.click(&format!("#lane-{style} .one-order"), 2).await;
        says(browser, &format!("#lane-{style} .said"), "2 clicks, one order").await;
    }
    completed(browser, [2, 2]).await;
    let orders = "(await (await fetch('/api/state')).json()).shop.counts.reduce((sum, it) => sum + it.orders, 0)";
    let counted = browser.run(&format!("return (async () => {orders})()")).await;
    assert_eq!(counted, 2 * (2 + 3));
}

/// Every control is reached by Tab in the order of the page, and does by a key what it does by a click.
async fn keys_do_what_clicks_do(browser: &Browser) {
    browser.run("document.activeElement.blur(); scrollTo(0, 0)").await;
    let place = "document.activeElement.matches('#lane-choreography .one-order')";
    browser.run("document.querySelector('#fates input').focus()").await;
    browser.press("Tab").await;
    assert_eq!(browser.run(&format!("return {place}")).await, true);
    let seen = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
    assert_eq!(browser.run(&format!("return {seen}")).await, true, "where the focus is, is seen");
    browser.press("Enter").await;
    lane_has(browser, "choreography", "completed", 3).await;
    order_in(browser, "orchestration").await;
    completed(browser, [3, 3]).await;
}

async fn duplicates_are_suppressed(browser: &Browser) {
    flip(browser, "duplicates", true).await;
    says(browser, "#notices", "Every record is delivered twice").await;
    browser.click("#lane-choreography .many", 1).await;
    says(browser, "#lane-choreography .said", &format!("All {MANY}")).await;
    order_in(browser, "orchestration").await;
    says(browser, "#tile-control", "paid twice").await;
    let suppressed = "[...document.querySelectorAll('#counters div')].some(
        (it) => it.innerText.includes('suppressed') && !/\\b0$/.test(it.innerText))";
    browser.until(suppressed, SEEN_MAX).await;
    flip(browser, "duplicates", false).await;
    // They are on their way through what comes next.
}

async fn the_breaker_opens_and_closes(browser: &Browser) {
    let current = "#breaker li[aria-current]";
    says(browser, current, "closed").await;
    flip(browser, "provider-slow", true).await;
    // Each is asked for twice by the time that the first few have failed.
    for _ in 0..2 {
        order_in_both(browser).await;
    }
    browser.until(&format!("{}?.trim() === 'open'", text_of(current)), SEEN_MAX).await;
    says(browser, current, "half open").await;
    says(browser, "#log", "The breaker opens").await;
    flip(browser, "provider-slow", false).await;
    says(browser, current, "closed").await;
}

async fn who_is_killed_comes_back(browser: &Browser, shop: &Shop) {
    let process = |name: &str, text: &str| {
        format!(
            "[...document.querySelectorAll('#processes li')].some(
                (it) => it.children[1].textContent === '{name}' && it.textContent.includes('{text}'))"
        )
    };
    order_in_both(browser).await;
    kill(shop, "stock");
    browser.until(&process("stock", "1 restart"), SEEN_MAX).await;
    says(browser, "#notices", "stock").await;
    says(browser, "#log", "stock died and was started again").await;

    browser.click("#trouble-relay-crash", 1).await;
    says(browser, "#trouble-said", "relays were killed").await;
    for name in ["orders", "payments", "stock", "shipping"] {
        browser.until(&process(&format!("{name} relay"), "1 restart"), SEEN_MAX).await;
    }

    browser.until("document.querySelectorAll('#processes .bad').length === 0", SEEN_MAX).await;
    browser.click("#trouble-payments-crash", 1).await;
    says(browser, "#trouble-said", "will not survive").await;
    order_in_both(browser).await;
    browser.until(&process("payments", "1 restart"), SEEN_MAX).await;
    completed(browser, [7 + MANY, 8]).await;
    says(browser, "#books-shop", "green").await;
}

async fn a_postgres_that_is_away_is_named(browser: &Browser) {
    flip(browser, "postgres-paused", true).await;
    says(browser, "#notices", "Postgres is paused").await;
    browser.click("#lane-choreography .one-order", 1).await;
    says(browser, "#notices", "1 order waits in this page").await;
    says(browser, "#tile-shop", "cannot be read now").await;
    // What the page waits for it waits for also when it is loaded again.
    let address = browser.run("return location.href").await;
    browser.open(address.as_str().expect("it is a text")).await;
    says(browser, "#notices", "Postgres is paused").await;
    says(browser, "#notices", "1 order waits in this page").await;
    flip(browser, "postgres-paused", false).await;
    completed(browser, [8 + MANY, 8]).await;
    says(browser, "#tile-shop", "add up").await;
}

async fn the_storefront_comes_back(browser: &Browser, shop: &Shop) {
    kill(shop, "storefront");
    says(browser, "#log", "The storefront does not answer").await;
    says(browser, "#log", "The storefront answers again").await;
    says(browser, "#link", "live").await;
    order_in_both(browser).await;
    completed(browser, [9 + MANY, 9]).await;
    says(browser, "#notices", "All is well").await;
}

async fn what_is_set_aside_is_retried(browser: &Browser) {
    flip(browser, "poison", true).await;
    order_in_both(browser).await;
    let dead = "[...document.querySelectorAll('#letters-list li')].filter(
        (it) => it.textContent.includes('dead letter')).length";
    browser.until(&format!("{dead} === 2"), SEEN_MAX).await;
    says(browser, "#notices", "2 messages are set aside: retry them below").await;
    order_in_both(browser).await;
    browser.until(&format!("{dead} === 4"), SEEN_MAX).await;
    flip(browser, "poison", false).await;
    browser.click("#letters-list li button", 1).await;
    browser.until(&format!("{dead} === 3"), SEEN_MAX).await;
    browser.click("#letters-all", 1).await;
    browser.until(&format!("{dead} === 0"), SEEN_MAX).await;
    says(browser, "#letters-said", "3 messages of storefront are tried again").await;
    completed(browser, [11 + MANY, 11]).await;
    says(browser, "#tile-shop", "add up").await;
}
