use opentelemetry::trace::{SpanKind, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::record::tests::delivery;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The spans that have ended when `doing` has.
fn spans(doing: impl FnOnce()) -> Vec<SpanData> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::with_default(Registry::default().with(layer), doing);
    exporter.get_finished_spans().unwrap()
}

fn record(offset: i64, attributes: &[(&str, &str)]) -> Record {
    let mut delivery = delivery(offset);
    let id = uuid::Uuid::now_v7().to_string();
    delivery.headers.push("ce_id", Some(id.as_bytes()));
    delivery.headers.push("ce_type", Some(b"order.v1"));
    for (name, value) in attributes {
        delivery.headers.push(name, Some(value.as_bytes()));
    }
    Record::read(delivery, None).unwrap()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn parent_of(cause: &[(String, String)]) -> Option<&str> {
    cause.iter().find(|(name, _)| name == super::PARENT).map(|(_, value)| value.as_str())
}

#[test]
fn a_message_is_a_span_of_the_trace_that_its_record_names_and_is_linked_to_its_batch() {
    let of_a_trace = record(1, &[("traceparent", PARENT), ("tracestate", "rojo=00f0")]);
    let of_none = record(2, &[]);

    let spans = spans(|| {
        tracing::debug_span!("batch").in_scope(|| drop(of_messages(&[&of_a_trace, &of_none])));
    });

    let batch = named(&spans, "batch")[0].span_context.clone();
    let [first, second] = named(&spans, "process order.v1")[..] else { panic!("{spans:?}") };
    assert_eq!(first.span_context.trace_id().to_string(), TRACE);
    assert_eq!(first.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(first.span_context.trace_state().header(), "rojo=00f0");
    assert_eq!(first.span_kind, SpanKind::Consumer);
    assert_ne!(second.span_context.trace_id(), first.span_context.trace_id());
    for message in [first, second] {
        assert_eq!(message.links.links[0].span_context.span_id(), batch.span_id());
    }
}

#[test]
fn what_a_message_causes_names_its_span() {
    let record = record(1, &[("traceparent", PARENT)]);
    let mut causes = Vec::new();

    let spans = spans(|| {
        let spans = of_messages(&[&record]);
        causes.push(record.meta.cause_in(&spans[0]));
        causes.push(spans[0].in_scope(|| record.meta.cause()));
        causes.push(
            spans[0].in_scope(|| tracing::info_span!("within").in_scope(|| record.meta.cause())),
        );
    });

    let [message, within] =
        ["process order.v1", "within"].map(|name| named(&spans, name)[0].span_context.span_id());
    for (cause, span) in causes.iter().zip([message, message, within]) {
        assert_eq!(parent_of(cause), Some(format!("00-{TRACE}-{span}-01").as_str()));
    }
}

#[test]
fn a_span_of_another_trace_does_not_take_the_place_of_what_the_record_names() {
    let (of_a_trace, of_none) = (record(1, &[("traceparent", PARENT)]), record(2, &[]));
    let mut causes = Vec::new();

    let spans = spans(|| {
        tracing::info_span!("another").in_scope(|| {
            causes.push(of_a_trace.meta.cause());
            causes.push(of_none.meta.cause());
        });
    });

    let another = spans[0].span_context.trace_id().to_string();
    assert_eq!(parent_of(&causes[0]), Some(PARENT));
    assert!(parent_of(&causes[1]).unwrap().contains(&another), "{causes:?}");
}

#[test]
fn without_a_subscriber_that_makes_spans_everything_is_handed_on_as_it_is() {
    let record = record(1, &[("traceparent", PARENT), ("tracestate", "rojo=00f0")]);

    let cause = record.meta.cause();

    assert_eq!(parent_of(&cause), Some(PARENT));
    assert!(cause.contains(&("tracestate".to_owned(), "rojo=00f0".to_owned())));
}

#[test]
fn a_cause_is_handed_on_from_within_a_span_that_follows_it() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let cause = [pair("ce_correlationid", "first"), pair("traceparent", PARENT)];
    let mut handed_on = Vec::new();

    let spans = spans(|| {
        let span = tracing::info_span!(parent: None, "local");
        follow(&span, cause.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        handed_on = hand_on(&span, cause.clone());
    });

    let span = spans[0].span_context.span_id();
    let named = format!("00-{TRACE}-{span}-01");
    assert_eq!(handed_on, [pair("ce_correlationid", "first"), pair("traceparent", &named)]);
    assert_eq!(hand_on(&Span::none(), cause.clone()), cause);
}

#[test]
fn what_is_no_trace_is_passed_over() {
    let readable = |parent: &str| {
        let spans = spans(|| follow(&tracing::info_span!("request"), [(super::PARENT, parent)]));
        spans[0].parent_span_id.to_string() == "00f067aa0ba902b7"
    };

    assert!(readable(PARENT));
    assert!(readable("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
    for wrong in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz",
    ] {
        assert!(!readable(wrong), "{wrong}");
    }
}
