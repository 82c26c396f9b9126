//! A span for each batch, and one for each of its messages in the trace that the message belongs
//! to.
//!
//! A message's own trace goes on at its consumer, by the `traceparent` that its record carries as
//! it was written. A batch belongs to many traces at once, so it is a trace of its own, which the
//! spans of its messages are linked to, and which is linked to them. Spans are made
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

    use opentelemetry::global::{BoxedSpan, BoxedTracer};
    use opentelemetry::trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId,
        TraceState, Tracer as _,
    };
    use opentelemetry::{Context, KeyValue, global};
    use tailrace_outbox::frame::Frame;
    use tailrace_outbox::header::TRACEPARENT;

    /// Messages whose traces are linked: the first of a batch.
    const LINKS_MAX: usize = 16;

    /// Messages that have a span of their own: the first of a batch whose traces are sampled. So
    /// many are exported in one request, by default (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`).
    const MESSAGES_MAX: usize = 512;

    /// What is known of the batch that is being filled, or of the one sealed before it. A batch
    /// that is given up ends without its counts.
    #[derive(Debug, Default)]
    pub(crate) struct BatchSpan {
        /// From the first message on.
        span: Option<BoxedSpan>,
        links: usize,
        messages: Vec<Carried>,
    }

    /// A message of the batch whose trace is sampled.
    #[derive(Debug)]
    struct Carried {
        parent: SpanContext,
        since: SystemTime,
        topic: String,
        message_type: String,
    }

    impl BatchSpan {
        /// The batch has this message in it.
        pub(crate) fn carries(&mut self, frame: &Frame<'_>) {
            let span = self.span.get_or_insert_with(begin);
            // Where nobody collects spans there is nothing to remember.
            if !span.span_context().is_valid() || self.messages.len() >= MESSAGES_MAX {
                return;
            }
            let Some(parent) = frame.attributes().get(TRACEPARENT).and_then(context) else {
                return;
            };
            if self.links < LINKS_MAX {
                self.links += 1;
                span.add_link(parent.clone(), Vec::new());
            }
            if parent.is_sampled() {
                let (topic, message_type) = (frame.topic().to_owned(), frame.r#type().to_owned());
                self.messages.push(Carried {
                    parent,
                    since: SystemTime::now(),
                    topic,
                    message_type,
                });
            }
        }

        /// The batch is durable with so much in it.
        pub(crate) fn ends(self, messages: usize, bytes: usize) {
            let Some(mut batch) = self.span else { return };
            for message in self.messages {
                message.ends(batch.span_context());
            }
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            batch.set_attribute(KeyValue::new("messaging.batch.message_count", count(messages)));
            batch.set_attribute(KeyValue::new("tailrace.batch.bytes", count(bytes)));
            batch.end();
        }
    }

    fn tracer() -> BoxedTracer {
        global::tracer("cdc-relay")
    }

    fn begin() -> BoxedSpan {
        let tracer = tracer();
        let builder =
            tracer.span_builder("publish batch").with_kind(SpanKind::Producer).with_attributes([
                KeyValue::new("messaging.system", "kafka"),
                KeyValue::new("messaging.operation.type", "send"),
            ]);
        // It has no parent, whatever the loop around it is part of.
        tracer.build_with_context(builder, &Context::new())
    }

    impl Carried {
        /// It is durable with its batch.
        fn ends(self, batch: &SpanContext) {
            let tracer = tracer();
            let Carried { parent, since, topic, message_type } = self;
            let builder = tracer
                .span_builder(format!("publish {message_type}"))
                .with_kind(SpanKind::Producer)
                .with_start_time(since)
                .with_links(vec![Link::with_context(batch.clone())])
                .with_attributes([
                    KeyValue::new("messaging.system", "kafka"),
                    KeyValue::new("messaging.operation.type", "send"),
                    KeyValue::new("messaging.destination.name", topic),
                    KeyValue::new("message_type", message_type),
                ]);
            let parent = Context::new().with_remote_span_context(parent);
            tracer.build_with_context(builder, &parent).end();
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
        use opentelemetry::trace::SpanContext;
        use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
        use tailrace_outbox::Message;
        use tailrace_outbox::frame::{self, Frame};

        use super::{BatchSpan, LINKS_MAX};

        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
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
        fn a_batch_is_a_span_with_links_and_its_messages_are_spans_of_their_own_traces() {
            let exporter = InMemorySpanExporter::default();
            let provider =
                SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
            global::set_tracer_provider(provider);

            let mut batch = BatchSpan::default();
            batch.carries(&Frame::decode(&message("no trace at all")).unwrap());
            for _ in 0..LINKS_MAX + 5 {
                batch.carries(&Frame::decode(&message(PARENT)).unwrap());
            }
            let unsampled = PARENT.replace("-01", "-00");
            batch.carries(&Frame::decode(&message(&unsampled)).unwrap());
            batch.ends(LINKS_MAX + 7, 700);
            BatchSpan::default().ends(0, 0);

            let spans = exporter.get_finished_spans().unwrap();
            // Other tests of this process have spans too.
            let of_trace = |context: &SpanContext| context.trace_id().to_string() == TRACE;
            let is_batch =
                |span: &&SpanData| span.links.iter().any(|link| of_trace(&link.span_context));
            let batches: Vec<_> = spans.iter().filter(is_batch).collect();
            let messages: Vec<_> =
                spans.iter().filter(|span| of_trace(&span.span_context)).collect();
            assert_eq!(batches.len(), 1, "{batches:?}");
            assert_eq!(batches[0].name, "publish batch");
            assert_eq!(batches[0].links.len(), LINKS_MAX);
            let said = format!("{:?}", batches[0].attributes);
            assert!(said.contains(r#"message_count"), value: I64(23)"#), "{said}");
            // What is not sampled has none.
            assert_eq!(messages.len(), LINKS_MAX + 5);
            for message in messages {
                assert_eq!(message.name, "publish order.placed");
                assert_eq!(message.span_context.trace_id().to_string(), TRACE);
                assert_eq!(message.parent_span_id.to_string(), "00f067aa0ba902b7");
                let batch = &message.links.links[0].span_context;
                assert_eq!(batch.span_id(), batches[0].span_context.span_id());
            }
        }
    }
}
