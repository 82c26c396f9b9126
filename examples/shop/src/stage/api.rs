//! What the storefront asks of whoever started everything: troubles, figures, books.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
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

#[derive(Clone)]
struct Watched {
    stage: Arc<Stage>,
    figures: Figures,
    on: Arc<Mutex<BTreeSet<String>>>,
    books: Arc<Mutex<Option<(Books, ControlBooks)>>>,
}

/// Serves as long as the program runs.
pub(crate) async fn serve(stage: &Arc<Stage>, figures: &Figures) -> Result<(), Failure> {
    let watched = Watched {
        stage: Arc::clone(stage),
        figures: figures.clone(),
        on: Arc::default(),
        books: Arc::default(),
    };
    tokio::spawn(keep_books(watched.clone()));
    let listener = TcpListener::bind(stage.address("stage")?).await?;
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
    let on = watched.on.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let troubles: Vec<Value> = Trouble::value_variants()
        .iter()
        .filter(|trouble| !trouble.is_of_orders())
        .map(|trouble| json!({ "name": trouble.name(), "on": on.contains(&trouble.name()) }))
        .collect();
    let books = watched.books.lock().unwrap_or_else(PoisonError::into_inner);
    let books = books.as_ref().map(|(books, control)| json!({ "shop": books, "control": control }));
    Json(json!({
        "troubles": troubles,
        "books": books,
        "copies": watched.stage.repeater.copies(),
        "restarts": watched.stage.restarts(),
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
    if let Err(error) = watched.stage.trouble(trouble, on).await {
        tracing::warn!(%error, name, "a trouble could not be made");
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let mut troubles = watched.on.lock().unwrap_or_else(PoisonError::into_inner);
    let is_over_at_once = matches!(trouble, Trouble::RelayCrash | Trouble::PaymentsCrash);
    match on && !is_over_at_once {
        true => troubles.insert(trouble.name()),
        false => troubles.remove(&trouble.name()),
    };
    StatusCode::NO_CONTENT
}
