//! The log: for people on a terminal, as JSON otherwise. And traces, where there is a collector to send them to.

mod batches;
mod lines;

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use batches::{Batches, Flush};
use lines::{JsonFields, JsonLine, TextFields};
use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceId, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingResult, SdkTracerProvider, ShouldSample, SpanData,
    },
};
use tokio::runtime::Handle;
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterFn, Targets},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    config::{Log, LogFormat, Traces},
    error::{Cause, Chain},
    trace,
};

/// How many spans wait for the collector at most; beyond, they are dropped.
const MAX_SPANS: usize = 4096;
/// How often they are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take at the end of the service.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The log and the traces of a service: what is left of them goes out by [`Telemetry::finish`], or of the log when it is dropped.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    _log: Flush,
}

/// Starts the log of a command, on standard error: standard output belongs to what it says.
///
/// # Errors
/// If a log was started before.
pub fn start(log: &Log) -> Result<(), Cause> {
    tracing_subscriber::registry().with(lines(log, std::io::stderr)).with(filter(log)?).try_init()?;
    Ok(())
}

/// Starts the log of a service, on standard error, and with `traces` these as well.
///
/// # Errors
/// If a log was started before, or the collector's URL can't be used.
pub fn serve(log: &Log, traces: Option<&Traces>) -> Result<Telemetry, Cause> {
    let (batches, flush) = Batches::start(std::io::stderr())?;
    let (lines, filter) = (lines(log, batches), filter(log)?);
    let Some(traces) = traces else {
        tracing_subscriber::registry().with(lines).with(filter).try_init()?;
        return Ok(Telemetry { traces: None, _log: flush });
    };
    let provider = provider(traces)?;
    let tracer = provider.tracer("identity");
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer.clone())
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_span_of_ours).with_max_level_hint(LevelFilter::INFO));
    let statements = FilterFn::new(|about| is_span_of_ours(about) || about.target() == trace::SQL_TARGET);
    let statements = trace::Statements { tracer }.with_filter(statements.with_max_level_hint(LevelFilter::DEBUG));
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).with(statements).try_init()?;
    Ok(Telemetry { traces: Some(provider), _log: flush })
}

/// What the log shows.
fn filter(log: &Log) -> Result<Targets, Cause> {
    // The client of Redis says at each attempt what `redis.rs` says once; LOG_LEVEL may name it to hear it nevertheless.
    Ok(format!("fred=off,{}=off,{}", trace::TARGET, log.level).parse()?)
}

/// Those that `trace.rs` makes.
fn is_span_of_ours(about: &Metadata<'_>) -> bool {
    about.is_span() && about.target().starts_with("identity")
}

/// The lines of the log.
fn lines<W>(log: &Log, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let on_terminal = std::io::stderr().is_terminal();
    let as_json = match log.format {
        LogFormat::Auto => !on_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // What can't be logged, where the disk is full, is lost: to say so on standard error would be a panic there.
    let lines = fmt::layer().with_writer(writer).with_target(false).log_internal_errors(false);
    if as_json {
        lines.fmt_fields(JsonFields).event_format(JsonLine).boxed()
    } else {
        lines.fmt_fields(TextFields).with_ansi(on_terminal).boxed()
    }
}

impl Telemetry {
    /// Sends what is left, for two seconds at most.
    pub async fn finish(self) {
        let Some(provider) = self.traces else { return };
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if !matches!(tokio::time::timeout(FLUSH_TIMEOUT, sent).await, Ok(Ok(Ok(())))) {
            tracing::warn!("the last spans were not sent");
        }
    }
}

fn provider(traces: &Traces) -> Result<SdkTracerProvider, Cause> {
    let collector = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(traces.endpoint.as_str())
        .with_timeout(SEND_TIMEOUT)
        .build()?;
    let exporter =
        Exporter { collector: Arc::new(collector), runtime: Handle::current(), is_away: AtomicBool::new(false) };
    let batches = BatchConfigBuilder::default().with_max_queue_size(MAX_SPANS).with_scheduled_delay(SEND_EVERY).build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_sampler(Sampler::ParentBased(Box::new(Beginnings(Sampler::TraceIdRatioBased(traces.ratio)))))
        .with_resource(Resource::builder().with_service_name(traces.service_name.clone()).build())
        .build())
}

/// Lets traces begin with a call or a delivery, and with nothing that happens beside them.
#[derive(Debug, Clone)]
struct Beginnings(Sampler);

impl ShouldSample for Beginnings {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampler = if trace::is_beginning(name) { &self.0 } else { &Sampler::AlwaysOff };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

/// Gives a call's span the name and the kind that viewers of traces look for: its fields are those of the log.
fn dress(span: &mut SpanData) {
    if span.name == trace::CALL {
        span.span_kind = SpanKind::Server;
        if let Some(rpc) = span.attributes.iter().find(|attribute| attribute.key.as_str() == "rpc") {
            span.name = rpc.value.to_string().into();
        }
    }
}

/// Sends spans to the collector; the log says when it goes and comes, once each.
#[derive(Debug)]
struct Exporter {
    collector: Arc<SpanExporter>,
    /// Who calls this is no thread of the runtime, which the connection needs.
    runtime: Handle,
    is_away: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Exporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(dress);
        let collector = Arc::clone(&self.collector);
        let sending = async move { tokio::time::timeout(SEND_TIMEOUT, collector.export(batch)).await };
        let sent = match self.runtime.spawn(sending).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(_)) => Err(OTelSdkError::Timeout(SEND_TIMEOUT)),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        };
        match &sent {
            Ok(()) if self.is_away.swap(false, Ordering::Relaxed) => tracing::info!("the collector of traces is there"),
            Err(error) if !self.is_away.swap(true, Ordering::Relaxed) => {
                tracing::warn!(error = %Chain(error), "the collector of traces is away: spans are dropped");
            }
            Ok(()) | Err(_) => {}
        }
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(collector) = Arc::get_mut(&mut self.collector) {
            collector.set_resource(resource);
        }
    }
}
