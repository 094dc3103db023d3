//! Spans: one for each call, which the log knows as well, and for traces one for each thing that it waits for. Where there are
//! no traces, nobody listens to those, and they cost a comparison. `telemetry.rs` sends them.
//!
//! A trace goes from service to service in the header `traceparent` (<https://www.w3.org/TR/trace-context/>).

use std::{fmt::Display, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracer};
use tracing::{
    Event, Span, Subscriber,
    field::{self, Visit},
};
use tracing_opentelemetry::{OpenTelemetrySpanExt, get_otel_context};
use tracing_subscriber::{Layer, layer, registry::LookupSpan};

/// The name of a call's span. It is in the log as well, where each line within the call bears its fields.
pub const CALL: &str = "call";
/// The name of the span of a call that machines make all the time, and that begins no trace.
const PROBE: &str = "probe";
/// The name of the span of a message that is sent on.
const DELIVERY: &str = "delivery";
/// What the other spans go by, and nothing else does: the log leaves them out.
pub const TARGET: &str = "identity_trace";
/// What sqlx says of each statement goes by this.
pub const SQL_TARGET: &str = "sqlx::query";

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The span of a call, in the trace of its caller if there is one.
#[derive(Clone)]
pub struct CallSpan {
    pub span: Span,
    is_traced: bool,
}

impl CallSpan {
    /// A span with the id of its trace: that of the caller, also where there are no traces here.
    pub fn begin(rpc: &'static str, request_id: &str, headers: &HeaderMap, is_probe: bool) -> Self {
        let span = if is_probe {
            tracing::info_span!(PROBE, rpc, request_id, trace_id = field::Empty, certificate = field::Empty)
        } else {
            tracing::info_span!(CALL, rpc, request_id, trace_id = field::Empty, certificate = field::Empty)
        };
        let caller = caller(headers);
        if let Some(caller) = caller.as_ref().filter(|_| !is_probe) {
            // It has only just been made, so it takes a parent, if there are traces.
            let _ = span.set_parent(Context::new().with_remote_span_context(caller.clone()));
        }
        let own = Some(of_span(&span)).filter(SpanContext::is_sampled);
        if let Some(context) = caller.as_ref().or(own.as_ref()) {
            span.record("trace_id", field::display(context.trace_id()));
        }
        Self { span, is_traced: own.is_some() }
    }

    /// The call ended so: an HTTP status or the name of a gRPC status. A fault is marked as one.
    pub fn end(&self, code: &impl Display, is_fault: bool) {
        if self.is_traced {
            self.span.set_attribute("rpc.response.status_code", code.to_string());
            if is_fault {
                self.span.set_status(Status::error(code.to_string()));
            }
        }
    }
}

/// Whether a trace may begin with a span of this name: with a call or a delivery, and with nothing that happens beside them.
pub fn is_beginning(name: &str) -> bool {
    [CALL, DELIVERY].contains(&name)
}

/// The span of something within a call, such as a hash.
pub fn of_part(name: &'static str) -> Span {
    tracing::info_span!(target: TARGET, "part", otel.name = name)
}

/// The span of a request to a store, within a call.
pub fn of_request(name: &'static str) -> Span {
    tracing::info_span!(target: TARGET, "request", otel.name = name, otel.kind = "client")
}

/// The span of a message that is sent on: it begins a trace, as its call is long over.
pub fn of_delivery(kind: &str) -> Span {
    tracing::info_span!(target: TARGET, DELIVERY, otel.kind = "producer", kind)
}

/// The header by which another service continues the trace; none where there is none.
pub fn traceparent(span: &Span) -> Option<HeaderValue> {
    let context = Some(of_span(span)).filter(SpanContext::is_valid)?;
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}")).ok()
}

fn of_span(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}

/// The span of the caller, if the header says so and is well formed.
fn caller(headers: &HeaderMap) -> Option<SpanContext> {
    struct Headers<'a>(&'a HeaderMap);
    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            // Not `tracestate`: kilobytes that a stranger may send along, for other systems to read.
            self.0.get(key).filter(|_| key.eq_ignore_ascii_case(TRACEPARENT.as_str()))?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(HeaderName::as_str).collect()
        }
    }
    // Several would contradict each other.
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(header), None) = (given.next(), given.next()) else { return None };
    if !is_well_formed(header) {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, and with a later version more behind it. The library takes ids that are too short.
fn is_well_formed(traceparent: &HeaderValue) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    traceparent.as_bytes().get(..55).is_some_and(|head| {
        let parts = head.split(|byte| *byte == b'-');
        parts.clone().map(<[u8]>::len).eq([2, 32, 16, 2]) && parts.flatten().all(is_digit)
    })
}

/// Makes a span of each statement of SQL within a call, from what sqlx says of it when it is done: its kind and table, never
/// a value, and no text that may hold one.
pub struct Statements {
    pub tracer: SdkTracer,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, S>) {
        let mut statement = Statement::default();
        event.record(&mut statement);
        let Some(within) = context.event_span(event) else { return };
        let parent = tracing::dispatcher::get_default(|dispatch| get_otel_context(&within.id(), dispatch));
        let Some(parent) = parent.filter(|parent| parent.span().span_context().is_sampled()) else { return };
        let ended_at = opentelemetry::time::now();
        let mut attributes = vec![KeyValue::new("db.operation.name", statement.operation.clone())];
        if let Some(table) = &statement.table {
            attributes.push(KeyValue::new("db.collection.name", table.clone()));
        }
        let name = match statement.table {
            Some(table) => format!("{} {table}", statement.operation),
            None => statement.operation,
        };
        let span = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Client)
            .with_start_time(ended_at.checked_sub(statement.took).unwrap_or(ended_at))
            .with_attributes(attributes);
        opentelemetry::trace::Span::end_with_timestamp(&mut self.tracer.build_with_context(span, &parent), ended_at);
    }
}

/// What is kept of a statement.
#[derive(Default)]
struct Statement {
    operation: String,
    table: Option<String>,
    took: Duration,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &field::Field, value: &str) {
        // The whole text is there where the summary, its first four words, is not all of it.
        match field.name() {
            "summary" if self.operation.is_empty() => self.take(value),
            "db.statement" if !value.is_empty() => self.take(value),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &field::Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.took = Duration::try_from_secs_f64(value).unwrap_or_default();
        }
    }

    fn record_debug(&mut self, _: &field::Field, _: &dyn std::fmt::Debug) {}
}

impl Statement {
    fn take(&mut self, sql: &str) {
        // Of several statements that are one, the first names it.
        let sql = sql.trim_start();
        let sql = sql.strip_prefix("BEGIN IMMEDIATE; ").unwrap_or(sql);
        let first = sql.strip_prefix("WITH ").and_then(|with| with.split_once(" AS ("));
        let mut words = first.map_or(sql, |(_, first)| first).split_whitespace();
        self.operation = words.next().unwrap_or_default().to_ascii_uppercase();
        let before = match self.operation.as_str() {
            "SELECT" | "DELETE" => "FROM",
            "INSERT" => "INTO",
            "UPDATE" => {
                self.table = words.next().and_then(table);
                return;
            }
            _ => return,
        };
        // A subquery has a table of its own.
        let mut depth = 0;
        let is_before = |word: &str| {
            let is_outside = depth == 0;
            depth += word.matches('(').count();
            depth = depth.saturating_sub(word.matches(')').count());
            is_outside && word.eq_ignore_ascii_case(before)
        };
        self.table = words.any(is_before).then(|| words.next().and_then(table)).flatten();
    }
}

/// The name, if it is that of one of our tables, and no subquery.
fn table(word: &str) -> Option<String> {
    let name = word.trim_end_matches([',', ';']).trim_matches('"');
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_name.then(|| name.to_owned())
}
