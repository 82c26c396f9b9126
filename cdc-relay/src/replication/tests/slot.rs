use super::server::Source;
use crate::error::{Error, Kind};
use crate::replication::{Client, Large, quote_literal};

async fn refusal(source: &Source) -> Error {
    source.try_stream().await.err().expect("the slot is refused")
}

#[tokio::test]
async fn a_slot_in_use_is_busy_and_free_as_soon_as_its_stream_is_closed() {
    let source = Source::new("a_slot_in_use").await;
    let stream = source.stream().await;

    let error = refusal(&source).await;
    stream.close().await.unwrap();

    assert_eq!((error.kind(), error.sqlstate()), (Kind::SlotBusy, Some("55006")));
    assert!(error.to_string().contains(&source.slot), "{error}");
    source.stream().await.close().await.unwrap();
}

#[tokio::test]
async fn a_dropped_stream_frees_its_slot() {
    let mut source = Source::new("a_dropped_stream").await;
    drop(source.stream().await);

    let slot = quote_literal(&source.slot);
    source
        .until(&format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = {slot}"))
        .await;
}

#[tokio::test]
async fn a_missing_slot_is_a_gap_whatever_its_name() {
    let mut source = Source::without_slot("a_missing_slot").await;

    for name in ["no_such_slot", r#"O'dd "slot", \ ä"#] {
        source.slot = name.to_owned();
        let error = refusal(&source).await;

        assert_eq!((error.kind(), error.sqlstate()), (Kind::Gap, Some("42704")));
        assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
    }
}

#[tokio::test]
async fn a_slot_of_another_database_is_a_gap() {
    let source = Source::new("slot_of_another_database").await;
    let mut other = Source::without_slot("another_database").await;
    other.slot.clone_from(&source.slot);

    let error = refusal(&other).await;

    assert_eq!((error.kind(), error.sqlstate()), (Kind::Gap, Some("55000")));
}

#[tokio::test]
async fn a_physical_slot_is_a_gap() {
    let mut source = Source::without_slot("a_physical_slot").await;
    let slot = quote_literal(&source.slot);
    source.run(&format!("SELECT pg_create_physical_replication_slot({slot})")).await;

    let error = refusal(&source).await;

    assert_eq!(error.kind(), Kind::Gap, "{error}");
    // The refused backend lets the slot go a moment after it has said no.
    let is_free = "SELECT NOT active FROM pg_replication_slots WHERE slot_name";
    source.until(&format!("{is_free} = {slot}")).await;
    source.run(&format!("SELECT pg_drop_replication_slot({slot})")).await;
}

#[tokio::test]
async fn making_a_slot_twice_and_with_an_odd_name_is_refused() {
    let mut source = Source::new("making_a_slot_twice").await;

    let twice = source.try_make_slot().await.unwrap_err();
    source.slot = "Odd".to_owned();
    let odd = source.try_make_slot().await.unwrap_err();

    assert_eq!(twice.sqlstate(), Some("42710"));
    assert_eq!(odd.sqlstate(), Some("42602"));
}

#[tokio::test]
async fn the_replication_command_makes_a_slot_too() {
    let mut source = Source::without_slot("replication_command").await;
    let command = format!("CREATE_REPLICATION_SLOT \"{}\" LOGICAL pgoutput", source.slot);

    let rows = source.sql.query(&command).await.unwrap();

    assert_eq!(rows[0].get(0), Some(source.slot.as_str()));
    let client = Client::connect(&source.endpoint).await.unwrap();
    let stream =
        client.start_replication(&source.slot, &source.publication, Large::AtCommit).await.unwrap();
    stream.close().await.unwrap();
}
