//! What the storefront asks of whoever started everything: troubles, figures, books.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::ValueEnum as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};

use crate::Failure;
use crate::books::{self, Books, ControlBooks};
use crate::stage::Stage;
use crate::stage::figures::Figures;
use crate::stage::trouble::Trouble;

const BOOKS_EVERY: Duration = Duration::from_secs(2);
/// Books that are not read by then are not known.
const BOOKS_MAX: Duration = Duration::from_secs(5);
/// What takes longer than that to break is waited for by nobody: the state says when it is done.
const SWITCH_MAX: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Watched {
    stage: Arc<Stage>,
    figures: Figures,
    switches: Arc<Mutex<BTreeMap<String, Switch>>>,
    books: Arc<Mutex<Option<(Books, ControlBooks)>>>,
}

/// How a trouble stands.
#[derive(Clone, Copy, Default)]
struct Switch {
    on: bool,
    /// It is being switched: a broker takes seconds to stop.
    changing: bool,
    /// The last time it could not be.
    failed: bool,
}

/// Serves as long as the program runs.
pub(crate) async fn serve(stage: &Arc<Stage>, figures: &Figures) -> Result<(), Failure> {
    let watched = Watched {
        stage: Arc::clone(stage),
        figures: figures.clone(),
        switches: Arc::default(),
        books: Arc::default(),
    };
    tokio::spawn(keep_books(watched.clone()));
    let address = stage.address("stage")?;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("the stage cannot listen on {address}: {error}"))?;
    let routes = Router::new()
        .route("/stage", get(stand))
        .route("/troubles/{name}", post(trouble))
        .with_state(watched);
    Ok(axum::serve(listener, routes).await?)
}

async fn keep_books(watched: Watched) {
    let mut look = interval(BOOKS_EVERY);
    loop {
        look.tick().await;
        let read = async {
            Ok::<_, Failure>((
                books::check(&watched.stage).await?,
                books::check_control(&watched.stage).await?,
            ))
        };
        let books = timeout(BOOKS_MAX, read).await.ok().and_then(Result::ok);
        *watched.books.lock().unwrap_or_else(PoisonError::into_inner) = books;
    }
}

async fn stand(State(watched): State<Watched>) -> Json<Value> {
    let switches = watched.switches().clone();
    let troubles: Vec<Value> = Trouble::value_variants()
        .iter()
        .filter(|trouble| !trouble.is_of_orders())
        .map(|trouble| {
            let Switch { on, changing, failed } =
                switches.get(&trouble.name()).copied().unwrap_or_default();
            let at_once = trouble.is_over_at_once();
            json!({ "name": trouble.name(), "on": on, "changing": changing, "failed": failed, "at_once": at_once })
        })
        .collect();
    let restarts = watched.stage.restarts();
    let processes: Vec<Value> = restarts
        .iter()
        .map(|(name, restarts)| {
            let answers = watched.figures.answers(name);
            json!({ "name": name, "answers": answers, "restarts": restarts })
        })
        .collect();
    let books = watched.books.lock().unwrap_or_else(PoisonError::into_inner);
    let books = books.as_ref().map(|(books, control)| json!({ "shop": books, "control": control }));
    Json(json!({
        "troubles": troubles,
        "processes": processes,
        "books": books,
        "copies": watched.stage.repeater.copies(),
        "restarts": restarts,
        "figures": watched.figures.shown(),
    }))
}

#[derive(Deserialize)]
struct Wanted {
    on: bool,
}

async fn trouble(
    State(watched): State<Watched>,
    Path(name): Path<String>,
    Json(Wanted { on }): Json<Wanted>,
) -> StatusCode {
    let Ok(trouble) = Trouble::from_str(&name, true) else { return StatusCode::NOT_FOUND };
    {
        let mut switches = watched.switches();
        let switch = switches.entry(trouble.name()).or_default();
        if switch.changing {
            return StatusCode::CONFLICT;
        }
        if switch.on == on && !trouble.is_over_at_once() {
            return StatusCode::NO_CONTENT;
        }
        *switch = Switch { changing: true, ..*switch };
    }
    // It goes on whoever asked for it.
    let switching = tokio::spawn(async move { watched.switch(trouble, on).await });
    match timeout(SWITCH_MAX, switching).await {
        Ok(Ok(true)) => StatusCode::NO_CONTENT,
        Ok(_) => StatusCode::SERVICE_UNAVAILABLE,
        Err(_) => StatusCode::ACCEPTED,
    }
}

impl Watched {
    fn switches(&self) -> MutexGuard<'_, BTreeMap<String, Switch>> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a trouble or ends it; false when that is not possible.
    async fn switch(&self, trouble: Trouble, on: bool) -> bool {
        let made = self.stage.trouble(trouble, on).await;
        if let Err(error) = &made {
            tracing::warn!(%error, trouble = trouble.name(), "a trouble could not be made");
        }
        let mut switches = self.switches();
        let switch = switches.entry(trouble.name()).or_default();
        switch.changing = false;
        switch.failed = made.is_err();
        if made.is_ok() {
            switch.on = on && !trouble.is_over_at_once();
        }
        made.is_ok()
    }
}
