//! A span for each batch, linked to the traces that its messages belong to.
//!
//! A message's own trace goes on at its consumer, by the `traceparent` that its record carries.
//! A batch belongs to many traces at once, so it is a trace of its own with links. Spans are made
//! in builds with the feature `otlp` alone, by the process' global tracer provider. They do not go
//! through `tracing`: of a subscriber with filters for each layer, one of which the log has, the
//! span of the first batch was seen to be lost (tracing-subscriber 0.3.23).

#[cfg(feature = "otlp")]
pub(crate) use linked::BatchSpan;

/// No span at all.
#[cfg(not(feature = "otlp"))]
#[derive(Debug, Default)]
pub(crate) struct BatchSpan;

#[cfg(not(feature = "otlp"))]
impl BatchSpan {
    pub(crate) fn carries(&mut self, _: &tailrace_outbox::frame::Frame<'_>) {}

    #[expect(clippy::unused_self, reason = "the build with spans ends one here")]
    pub(crate) fn ends(self, _messages: usize, _bytes: usize) {}
}

#[cfg(feature = "otlp")]
mod linked {
    use std::time::SystemTime;

    use opentelemetry::trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState,
        Tracer as _,
    };
    use opentelemetry::{KeyValue, global};
    use tailrace_outbox::frame::Frame;
    use tailrace_outbox::header::TRACEPARENT;

    /// Messages whose traces are linked: the first of a batch.
    const LINKS_MAX: usize = 16;

    /// What is known of the batch that is being filled, or of the one sealed before it.
    #[derive(Debug, Default)]
    pub(crate) struct BatchSpan {
        began: Option<SystemTime>,
        links: Vec<Link>,
    }

    impl BatchSpan {
        /// The batch has this message in it.
        pub(crate) fn carries(&mut self, frame: &Frame<'_>) {
            self.began.get_or_insert_with(SystemTime::now);
            if self.links.len() >= LINKS_MAX {
                return;
            }
            if let Some(context) = frame.attributes().get(TRACEPARENT).and_then(context) {
                self.links.push(Link::with_context(context));
            }
        }

        /// The batch is durable with so much in it.
        pub(crate) fn ends(self, messages: usize, bytes: usize) {
            let Some(began) = self.began else { return };
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let tracer = global::tracer("cdc-relay");
            let builder = tracer
                .span_builder("publish batch")
                .with_kind(SpanKind::Producer)
                .with_start_time(began)
                .with_links(self.links)
                .with_attributes([
                    KeyValue::new("messaging.system", "kafka"),
                    KeyValue::new("messaging.operation.type", "send"),
                    KeyValue::new("messaging.batch.message_count", count(messages)),
                    KeyValue::new("tailrace.batch.bytes", count(bytes)),
                ]);
            tracer.build(builder).end();
        }
    }

    /// What a `traceparent` of version 00 says (<https://www.w3.org/TR/trace-context/>).
    fn context(traceparent: &str) -> Option<SpanContext> {
        let mut parts = traceparent.split('-');
        let ("00", trace, span, flags, None) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
            true,
            TraceState::default(),
        );
        context.is_valid().then_some(context)
    }

    #[cfg(test)]
    mod tests {
        use opentelemetry::global;
        use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
        use tailrace_outbox::Message;
        use tailrace_outbox::frame::{self, Frame};

        use super::{BatchSpan, LINKS_MAX};

        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

        fn message(traceparent: &str) -> Vec<u8> {
            let message = Message::builder("orders", "order.placed")
                .source("shop")
                .key("k")
                .tombstone()
                .caused_by([("traceparent", traceparent)])
                .build()
                .unwrap();
            frame::encode(&message)
        }

        #[test]
        fn a_batch_is_one_span_with_links_to_the_traces_of_its_first_messages() {
            let exporter = InMemorySpanExporter::default();
            let provider =
                SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
            global::set_tracer_provider(provider);

            let mut batch = BatchSpan::default();
            batch.carries(&Frame::decode(&message("no trace at all")).unwrap());
            for _ in 0..LINKS_MAX + 5 {
                batch.carries(&Frame::decode(&message(PARENT)).unwrap());
            }
            batch.ends(LINKS_MAX + 6, 700);
            BatchSpan::default().ends(0, 0);

            let spans = exporter.get_finished_spans().unwrap();
            assert_eq!(spans.len(), 1, "{spans:?}");
            assert_eq!(spans[0].name, "publish batch");
            assert_eq!(spans[0].links.len(), LINKS_MAX);
            let linked = &spans[0].links.links[0].span_context;
            assert_eq!(linked.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            let said = format!("{:?}", spans[0].attributes);
            assert!(said.contains(r#"message_count"), value: I64(22)"#), "{said}");
        }
    }
}
