//! Traces: what a span of `tracing` continues, and what is handed on so that others continue it.
//!
//! A consumer opens a span for each message. With the feature `opentelemetry`, and a subscriber with the layer of
//! `tracing-opentelemetry`, that span belongs to the trace that the record names in `traceparent`
//! (<https://www.w3.org/TR/trace-context/>), and what [`Cx::cause`](crate::Cx::cause) says names the span in its turn:
//! writer, consumer and the next consumer are one trace. Spans are of the level debug; that of a transaction, which has
//! messages of many traces, is linked to by theirs.
//!
//! Without the feature, or without such a subscriber, `traceparent` goes from record to message as it is.
//!
//! The functions of this module are for the rest of a service: its HTTP requests, for instance.
//!
//! ```
//! # fn example(headers: &[(&str, &str)]) {
//! use tailrace_idempotency::trace;
//!
//! let span = tracing::info_span!(parent: None, "place order", otel.kind = "server");
//! trace::follow(&span, headers.iter().copied());
//! // The headers of a request, or the cause of a message.
//! let handed_on: Vec<(String, String)> = trace::attributes(&span);
//! # }
//! ```

use tracing::Span;

use crate::record::Record;

pub(crate) const PARENT: &str = "traceparent";
pub(crate) const STATE: &str = "tracestate";

/// Makes a span that nothing has happened in yet a part of the trace that these attributes name. Without a `traceparent`
/// that can be read, and without the feature `opentelemetry`, nothing changes.
pub fn follow<'a>(span: &Span, attributes: impl IntoIterator<Item = (&'a str, &'a str)>) {
    linked::follow(span, attributes);
}

/// What hands a span's trace on: `traceparent`, and `tracestate` where there is one. Empty where the span belongs to no
/// trace, and without the feature `opentelemetry`.
pub fn attributes(span: &Span) -> Vec<(String, String)> {
    linked::attributes(span)
}

/// These attributes of a cause for what happens within a span that [follows](follow) it: they name the span, where it belongs
/// to a trace.
pub fn hand_on(
    span: &Span,
    cause: impl IntoIterator<Item = (String, String)>,
) -> Vec<(String, String)> {
    let here = attributes(span);
    let is_replaced = |name: &str| !here.is_empty() && [PARENT, STATE].contains(&name);
    let kept = cause.into_iter().filter(|(name, _)| !is_replaced(name)).collect::<Vec<_>>();
    kept.into_iter().chain(here).collect()
}

/// The trace of what a record causes, if a span knows better than the record: that of its own trace, or any where it names
/// none.
pub(crate) fn instead_of(named: Option<&str>, span: &Span) -> Option<Vec<(String, String)>> {
    let attributes = attributes(span);
    let (_, parent) = attributes.first()?;
    let is_of = |named: &str| trace_of(named) == trace_of(parent);
    named.is_none_or(is_of).then_some(attributes)
}

fn trace_of(parent: &str) -> Option<&str> {
    parent.split('-').nth(1)
}

/// A span for each message, in the trace of its record and linked to that of its batch, which is the current one. None
/// where nobody looks.
pub(crate) fn of_messages(records: &[&Record]) -> Vec<Span> {
    let batch = Span::current();
    let spans = records.iter().map(|record| {
        let span = of_message(record);
        span.follows_from(&batch);
        span
    });
    // Of one place in the code all are looked at, or none. It is the span itself that is asked: `tracing::enabled!` would
    // leave behind what a filter of one layer has answered, and the next span would be lost to that layer.
    spans.take_while(|span| !span.is_disabled()).collect()
}

fn of_message(record: &Record) -> Span {
    let (meta, position) = (&record.meta, record.meta.position());
    let span = tracing::debug_span!(
        parent: None, "message",
        otel.name = %format_args!("process {}", meta.message_type()), otel.kind = "consumer",
        otel.status_code = tracing::field::Empty,
        messaging.system = "kafka",
        message_id = %meta.message_id(), message_type = meta.message_type(),
        topic = %position.topic, partition = position.partition, offset = position.offset.get(),
    );
    if !span.is_disabled() {
        follow(&span, meta.trace());
    }
    span
}

/// The span of a call that a message makes, outside of transactions.
pub(crate) fn of_call(record: &Record) -> Span {
    let meta = &record.meta;
    let span = tracing::debug_span!(
        parent: None, "call",
        otel.name = %format_args!("call {}", meta.message_type()),
        otel.status_code = tracing::field::Empty,
        message_id = %meta.message_id(), message_type = meta.message_type(),
    );
    if !span.is_disabled() {
        follow(&span, meta.trace());
    }
    span
}

/// Marks a span as that of something that has failed.
pub(crate) fn failed(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

#[cfg(not(feature = "opentelemetry"))]
mod linked {
    use tracing::Span;

    pub(super) fn follow<'a>(_: &Span, _: impl IntoIterator<Item = (&'a str, &'a str)>) {}

    pub(super) fn attributes(_: &Span) -> Vec<(String, String)> {
        Vec::new()
    }
}

#[cfg(feature = "opentelemetry")]
mod linked {
    use std::str::FromStr as _;

    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use super::{PARENT, STATE};

    pub(super) fn follow<'a>(
        span: &Span,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let (mut parent, mut state) = (None, None);
        for (name, value) in attributes {
            match name {
                PARENT => parent = Some(value),
                STATE => state = Some(value),
                _ => {}
            }
        }
        if let Some(context) = parent.and_then(|parent| context(parent, state.unwrap_or_default()))
        {
            // It fails where nobody makes spans of it, or where it has begun: then it stays what it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(context));
        }
    }

    pub(super) fn attributes(span: &Span) -> Vec<(String, String)> {
        let context = span.context();
        let span = context.span();
        let of = span.span_context();
        if !of.is_valid() {
            return Vec::new();
        }
        let parent =
            format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8());
        let state = of.trace_state().header();
        let state = (!state.is_empty()).then(|| (STATE.to_owned(), state));
        [(PARENT.to_owned(), parent)].into_iter().chain(state).collect()
    }

    /// What version 00 says; later versions begin in the same way (section 3.2.4 of the recommendation).
    fn context(parent: &str, state: &str) -> Option<SpanContext> {
        let mut parts = parent.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_readable = match version {
            "00" => parts.next().is_none(),
            later => later.len() == 2 && later != "ff",
        };
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
            true,
            TraceState::from_str(state).unwrap_or_default(),
        );
        (is_readable && context.is_valid()).then_some(context)
    }
}

#[cfg(test)]
#[cfg(feature = "opentelemetry")]
mod tests;
