//! What a consumer tells those who watch it.

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_was_processed_how_long_it_took_and_what_waits() {
    let bed = bed("watching_metrics").await;
    let topic = bed.topic("watching_metrics", 1).await;
    let records = records(20, 4);
    produce(bed.brokers(), &topic, &records);
    produce(bed.brokers(), &topic, &records[..5]);
    // The only recorder of these tests.
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();

    let running = start(consumer(&bed, &topic, &topic));
    running.delivered(25).await;
    let has = |line: &str| {
        let (name, value) = line.split_once(' ').unwrap();
        let named = format!("{name}{{consumer=\"{topic}\"");
        let shown = recorder.render();
        let mut lines = shown.lines().filter(|line| line.starts_with(&named));
        lines.any(|line| line.rsplit_once(' ').is_some_and(|(_, found)| found == value))
    };
    for line in [
        "tailrace_consumer_processed_total 20",
        "tailrace_consumer_duplicates_total 5",
        "tailrace_consumer_handler_seconds_count 20",
        "tailrace_consumer_lag_records 0",
        "tailrace_consumer_lag_seconds 0",
        "tailrace_consumer_parked_keys 0",
        "tailrace_consumer_breaker_state 0",
        "tailrace_consumer_claim_days_ahead 2",
        "tailrace_consumer_kafka_silent_seconds 0",
        "tailrace_consumer_ready 1",
    ] {
        let told = tokio::time::timeout(DEADLINE / 2, until(async || has(line))).await;
        assert!(told.is_ok(), "{line} is not in:\n{}", recorder.render());
    }
    let shown = recorder.render();
    running.stop().await.unwrap();

    for name in ["batch_messages_sum", "age_seconds_count"] {
        let named = format!("tailrace_consumer_{name}{{consumer=\"{topic}\"}}");
        let line = shown.lines().find(|line| line.starts_with(&named)).unwrap_or_default();
        assert!(!line.is_empty() && !line.ends_with(" 0"), "{name}: {shown}");
    }
    assert!(shown.contains("# HELP tailrace_consumer_lag_records "), "{shown}");
    assert!(has("tailrace_consumer_ready 0"));
}
