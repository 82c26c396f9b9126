//! The trace context of the span that writes a message.

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;

use crate::{Builder, header};

impl Builder {
    /// Takes the trace context of the current span of OpenTelemetry.
    ///
    /// Sets `traceparent` and `tracestate` (<https://www.w3.org/TR/trace-context/>), in place of
    /// what [`Builder::caused_by`] may have given before, so that consumers see the span that
    /// wrote the message. Without a span of a valid context nothing changes. Spans of `tracing`
    /// count if their subscriber makes them current for OpenTelemetry, as `tracing-opentelemetry`
    /// does.
    pub fn in_current_span(self) -> Self {
        let context = Context::current();
        let span = context.span();
        let span = span.span_context();
        if !span.is_valid() {
            return self;
        }
        let parent =
            format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8());
        self.without(header::TRACESTATE).caused_by([
            (header::TRACEPARENT, parent),
            (header::TRACESTATE, span.trace_state().header()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
    };

    use crate::{Builder, Message};

    fn builder() -> Builder {
        Message::builder("orders", "order.placed.v1")
            .source("/orders")
            .json(&1)
            .caused_by([("traceparent", "00-cause"), ("tracestate", "of=cause")])
    }

    fn attributes(builder: Builder) -> Vec<(String, String)> {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        builder.build().unwrap().attributes().map(owned).collect()
    }

    fn context(state: TraceState) -> Context {
        Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from_bytes(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()),
            SpanId::from_bytes(0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()),
            TraceFlags::SAMPLED,
            true,
            state,
        ))
    }

    #[test]
    fn the_current_span_takes_the_place_of_the_cause() {
        let state = TraceState::from_key_value([("rojo", "00f0")]).unwrap();

        let _current = context(state).attach();
        let attributes = attributes(builder().in_current_span());

        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            attributes,
            [("traceparent", parent), ("tracestate", "rojo=00f0")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn a_span_without_state_leaves_none_of_the_cause() {
        let _current = context(TraceState::NONE).attach();

        let attributes = attributes(builder().in_current_span());

        assert_eq!(attributes.len(), 1);
        assert_eq!(attributes[0].0, "traceparent");
    }

    #[test]
    fn without_a_span_the_cause_stays() {
        assert_eq!(attributes(builder().in_current_span()), attributes(builder()));
    }
}
