//! The shop without its page: places orders while things go wrong, and says what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use sqlx::Row as _;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use uuid::Uuid;

use crate::Failure;
use crate::books::{self, Books, ControlBooks};
use crate::dice::Dice;
use crate::order::{DECLINED_CARD, SOLD_OUT, Style, UNREACHABLE};
use crate::report::{self, Outcome};
use crate::services::stock::ARTICLES;
use crate::settings::{Settings, Troubles};
use crate::stage::Stage;
use crate::stage::figures::Figures;
use crate::stage::trouble::Trouble;
use crate::unended;

/// Orders placed in a second, at most.
const ORDERS_PER_SECOND: f64 = 25.0;
/// From one trouble to the next, beside what it lasts.
const BETWEEN: Duration = Duration::from_secs(2);
/// An order is taken by then, whatever goes wrong meanwhile.
const TAKEN_MAX: Duration = Duration::from_secs(180);
/// A trouble is made, or is over, by then.
const SWITCH_MAX: Duration = Duration::from_secs(60);
/// All orders have ended by then after the last was placed: longer than a saga may take.
const END_MAX: Duration = Duration::from_secs(240);
/// A question about the books is answered by then.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The books are right by then after the last order has ended: what a choreography undoes may still be on its way.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// The control lane has come to rest when its books are the same for so long.
const CONTROL_STANDS_FOR: Duration = Duration::from_secs(3);
/// An order that was not taken is placed again after this time, by the same key.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Of so many orders one is refused for each reason.
const REFUSED_EVERY: u64 = 10;

/// An order, and where it is to go wrong.
struct Wish {
    id: Uuid,
    body: serde_json::Value,
}

/// Runs it all; true when the books add up.
pub(crate) async fn run(settings: &Settings) -> Result<bool, Failure> {
    report::line("starting Postgres, Kafka and the shop's processes");
    let stage = Box::pin(Stage::start(settings, &|line| tracing::info!("{line}"))).await?;
    let outcome = Box::pin(story(settings, &stage)).await;
    stage.stop().await;
    let outcome = outcome?;
    report::print(&outcome);
    Ok(outcome.is_right())
}

async fn story(settings: &Settings, stage: &Arc<Stage>) -> Result<Outcome, Failure> {
    let figures = Figures::default();
    figures.watch(stage);
    let Troubles(troubles) = settings.trouble.clone();
    let bar = bar(u64::from(settings.orders));
    let began = Instant::now();

    let placing_is_over = Arc::new(AtomicBool::new(false));
    let placed = Arc::new(AtomicU64::new(0));
    let placing = async {
        place_all(settings, stage, &troubles, &placed).await?;
        placing_is_over.store(true, Ordering::Relaxed);
        Ok::<_, Failure>(())
    };
    let making = make_trouble(stage, &troubles, &placing_is_over, &bar);
    let counting = count_ended(stage, &bar);
    let placed_and_made = tokio::select! {
        both = async { tokio::try_join!(placing, making) } => both,
        never = counting => match never {},
    };
    placed_and_made?;

    bar.set_message("until all have ended");
    let ended = all_ended(stage, u64::from(settings.orders), &bar).await;
    let unended = match ended {
        true => Vec::new(),
        false => in_time("why orders have not ended", unended::tell(stage)).await?,
    };
    bar.set_message("until the books are right");
    let mut retried = 0;
    let (books, control) = settled(stage, &mut retried).await?;
    bar.finish_and_clear();
    figures.look(stage).await;
    Ok(Outcome {
        orders: u64::from(settings.orders),
        all_ended: ended,
        unended,
        retried,
        books,
        control,
        duplicates: figures.total(tailrace_idempotency::metrics::DUPLICATES) as u64,
        dead_letters: figures.total(tailrace_idempotency::metrics::DEAD_LETTERED) as u64,
        copies: stage.repeater.copies(),
        restarts: stage.restarts().values().sum(),
        took: began.elapsed(),
    })
}

fn bar(orders: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("orders {bar:40} {pos}/{len} {elapsed} {msg}")
        .expect("the template is right");
    ProgressBar::new(orders).with_style(style)
}

/// Places all orders, spread over the time that the troubles take.
async fn place_all(
    settings: &Settings,
    stage: &Arc<Stage>,
    troubles: &[Trouble],
    placed: &Arc<AtomicU64>,
) -> Result<(), Failure> {
    let of_machinery = troubles.iter().filter(|trouble| !trouble.is_of_orders());
    let in_trouble: Duration = of_machinery.map(|trouble| trouble.lasts() + BETWEEN).sum();
    let orders = f64::from(settings.orders);
    let in_all = in_trouble.as_secs_f64().max(orders / ORDERS_PER_SECOND);
    let mut tick = interval(Duration::from_secs_f64(in_all / orders));
    let mut dice = Dice::new(settings.seed);
    let mut placing = JoinSet::new();
    for number in 0..settings.orders {
        tick.tick().await;
        let wish = Wish::of(number, &mut dice, troubles);
        let (stage, placed) = (Arc::clone(stage), Arc::clone(placed));
        placing.spawn(async move {
            let placed_in_time = timeout(TAKEN_MAX, wish.place(&stage)).await.is_ok();
            placed.fetch_add(u64::from(placed_in_time), Ordering::Relaxed);
        });
    }
    placing.join_all().await;
    match u64::from(settings.orders) - placed.load(Ordering::Relaxed) {
        0 => Ok(()),
        refused => Err(format!("{refused} orders were not taken within {TAKEN_MAX:?}").into()),
    }
}

impl Wish {
    fn of(number: u32, dice: &mut Dice, troubles: &[Trouble]) -> Self {
        let style =
            if number.is_multiple_of(2) { Style::Choreography } else { Style::Orchestration };
        let cents = i64::try_from(500 + dice.below(5_000)).unwrap_or(500);
        let quantity = 1 + dice.below(3);
        let article = ARTICLES.get(dice.below(5) as usize).copied().unwrap_or("tea");
        let refused = dice.below(REFUSED_EVERY);
        let is = |trouble, at| troubles.contains(&trouble) && refused == at;
        let card = if is(Trouble::CardDeclined, 0) { DECLINED_CARD } else { "card-4711" };
        let sku = if is(Trouble::OutOfStock, 1) { SOLD_OUT } else { article };
        let address = if is(Trouble::CarrierRefuses, 2) { UNREACHABLE } else { "Kiel" };
        let body = json!({
            "style": style, "sku": sku, "quantity": quantity, "cents": cents, "card": card, "address": address,
        });
        Wish { id: Uuid::now_v7(), body }
    }

    /// Places it until it is taken: the key makes sure that it is taken once.
    async fn place(&self, stage: &Stage) {
        let Ok(front) = stage.address("storefront") else { return };
        let url = format!("http://{front}/api/orders");
        loop {
            let request = stage.client.post(&url).header("idempotency-key", self.id.to_string());
            match request.json(&self.body).send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => tracing::info!(status = %answer.status(), "not taken yet"),
                Err(error) => tracing::info!(%error, "not taken yet"),
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

/// One trouble after the other, for as long as orders are placed, and each of them once at least.
async fn make_trouble(
    stage: &Stage,
    troubles: &[Trouble],
    placing_is_over: &AtomicBool,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let has_duplicates = troubles.contains(&Trouble::Duplicates);
    stage.trouble(Trouble::Duplicates, has_duplicates).await?;
    let one_by_one: Vec<Trouble> = troubles
        .iter()
        .copied()
        .filter(|trouble| !trouble.is_of_orders() && *trouble != Trouble::Duplicates)
        .collect();
    let mut rounds = 0;
    while !one_by_one.is_empty() && (rounds == 0 || !placing_is_over.load(Ordering::Relaxed)) {
        for trouble in &one_by_one {
            bar.set_message("");
            sleep(BETWEEN).await;
            bar.set_message(trouble.name());
            switch(stage, *trouble, true).await?;
            sleep(trouble.lasts()).await;
            switch(stage, *trouble, false).await?;
        }
        rounds += 1;
    }
    Ok(())
}

/// Makes a trouble, also where the process that has to be asked for it is just coming back from another one.
async fn switch(stage: &Stage, trouble: Trouble, on: bool) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let named = || format!("the trouble {} is not {on} within {SWITCH_MAX:?}", trouble.name());
        match timeout(SWITCH_MAX, stage.trouble(trouble, on)).await {
            Err(_) => return Err(named().into()),
            Ok(Err(error)) if since.elapsed() < SWITCH_MAX => {
                tracing::info!(%error, trouble = trouble.name(), "not yet");
            }
            Ok(made) => return made.map_err(|error| format!("{}: {error}", named()).into()),
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Waits until all orders have ended; false when some have not in time.
async fn all_ended(stage: &Stage, orders: u64, bar: &ProgressBar) -> bool {
    let since = Instant::now();
    let mut look = interval(Duration::from_millis(200));
    while since.elapsed() < END_MAX {
        look.tick().await;
        if look_at_ended(stage, bar).await.is_some_and(|ended| ended >= orders) {
            return true;
        }
    }
    false
}

/// Shows how many orders have ended, while others are placed.
async fn count_ended(stage: &Stage, bar: &ProgressBar) -> std::convert::Infallible {
    let mut look = interval(Duration::from_millis(200));
    loop {
        look.tick().await;
        look_at_ended(stage, bar).await;
    }
}

/// None while Postgres does not answer.
async fn look_at_ended(stage: &Stage, bar: &ProgressBar) -> Option<u64> {
    let counting = sqlx::query("SELECT count(ended_at) FROM orders");
    let pool = &stage.home("orders").ok()?.pool;
    let row = timeout(ANSWER_MAX, counting.fetch_one(pool)).await.ok()?.ok()?;
    let ended = row.try_get::<i64, _>(0).unwrap_or_default().unsigned_abs();
    bar.set_position(ended);
    Some(ended)
}

/// What is asked of the databases, or what has not been answered.
async fn in_time<T>(
    what: &str,
    asking: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let answered = timeout(ANSWER_MAX, asking).await;
    answered.map_err(|_| format!("{what} could not be found out within {ANSWER_MAX:?}"))?
}

/// The books when they are right, or when it is no use to wait any longer. What was given up is tried again meanwhile: the
/// handler's fault is gone by now.
async fn settled(stage: &Stage, retried: &mut u64) -> Result<(Books, ControlBooks), Failure> {
    let since = Instant::now();
    let mut look = interval(Duration::from_millis(500));
    loop {
        look.tick().await;
        match in_time("what was set aside", retry_dead_letters(stage)).await {
            Ok(again) => *retried += again,
            // What comes of it is in the books.
            Err(error) => tracing::info!(%error, "dead letters are not tried again"),
        }
        match in_time("what the books say", books::check(stage)).await {
            // Whoever is asked may be just coming back from a trouble.
            Err(error) if since.elapsed() < SETTLE_MAX => tracing::info!(%error, "not yet"),
            Err(error) => return Err(error),
            Ok(books) if books.wrong + books.settling > 0 && since.elapsed() < SETTLE_MAX => {}
            Ok(books) => return Ok((books, settled_control(stage).await?)),
        }
    }
}

/// Has all dead letters tried again, as a person does on the page, and says how many.
async fn retry_dead_letters(stage: &Stage) -> Result<u64, Failure> {
    let url = format!("http://{}/api/dead-letters", stage.address("storefront")?);
    let listed: Vec<Letter> = stage.client.get(&url).send().await?.json().await?;
    let mut retried = 0;
    for letter in listed.iter().filter(|letter| letter.state == "dead") {
        let one = format!("{url}/{}/{}/retry", letter.service, letter.id);
        let answer = stage.client.post(one).send().await?;
        retried += u64::from(answer.status().is_success());
    }
    Ok(retried)
}

/// What of a dead letter is needed to have it tried again.
#[derive(Deserialize)]
struct Letter {
    service: String,
    id: String,
    state: String,
}

/// The books of the control lane, once nothing has changed in them for a while: what is late is not lost.
async fn settled_control(stage: &Stage) -> Result<ControlBooks, Failure> {
    let since = Instant::now();
    let mut look = interval(CONTROL_STANDS_FOR);
    let check = || in_time("what the control lane's books say", books::check_control(stage));
    let mut before = check().await?;
    look.tick().await;
    loop {
        look.tick().await;
        let now = check().await?;
        if now == before || since.elapsed() > SETTLE_MAX {
            return Ok(now);
        }
        before = now;
    }
}
