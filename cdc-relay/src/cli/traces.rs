//! Where the sidecar sends its traces.

/// The standard names by which a collector is given
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The sending of traces, which ends with it.
#[derive(Default)]
pub(super) struct Traces {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

fn is_wanted() -> bool {
    ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Begins to send traces if the environment names a collector.
#[cfg(not(feature = "otlp"))]
pub(super) fn begin() -> Traces {
    if is_wanted() {
        tracing::warn!(
            "no traces are sent: build cdc-relay with --features otlp, or unset \
             OTEL_EXPORTER_OTLP_ENDPOINT"
        );
    }
    Traces::default()
}

/// Begins to send traces if the environment names a collector: by HTTP with protobuf bodies, from
/// a thread of its own.
#[cfg(feature = "otlp")]
pub(super) fn begin() -> Traces {
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    if !is_wanted() {
        return Traces::default();
    }
    let exporter = match opentelemetry_otlp::SpanExporter::builder().with_http().build() {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::warn!(%error, "no traces are sent");
            return Traces::default();
        }
    };
    // The resource takes in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES by itself.
    let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => Resource::builder().build(),
        None => Resource::builder().with_service_name("cdc-relay").build(),
    };
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    Traces { provider: Some(provider) }
}

/// How long the last spans are waited for at the end.
#[cfg(feature = "otlp")]
const FAREWELL_MAX: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(feature = "otlp")]
impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown_with_timeout(FAREWELL_MAX)
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
