//! A collector of traces: it takes what comes by OTLP, and keeps it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, service::Routes};

use super::wait_for;

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    /// In hexadecimal digits.
    pub trace_id: String,
    pub id: String,
    /// Empty for the first of a trace.
    pub parent: String,
    pub kind: i32,
    pub is_error: bool,
    pub took: Duration,
    pub attributes: BTreeMap<String, String>,
    /// Of whoever sent it.
    pub service: String,
}

pub struct Collector {
    pub address: SocketAddr,
    spans: Spans,
    running: JoinHandle<()>,
}

type Spans = Arc<Mutex<Vec<Span>>>;

struct Taker(Spans);

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, spans) = (listener.local_addr().unwrap(), Spans::default());
        let router = Routes::new(TraceServiceServer::new(Taker(Arc::clone(&spans)))).prepare().into_axum_router();
        let running = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, spans, running }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The span of this name, as soon as there is one that fits.
    pub async fn span(&self, name: &str, fits: impl Fn(&Span) -> bool) -> Span {
        wait_for(Duration::from_secs(10), &format!("a span {name}"), async || {
            self.spans().into_iter().find(|span| span.name == name && fits(span))
        })
        .await
    }

    /// All that hangs on this span, directly or not.
    pub fn below(&self, span: &Span) -> Vec<Span> {
        let all = self.spans();
        let mut found: Vec<Span> = Vec::new();
        let mut ids = vec![span.id.clone()];
        while let Some(id) = ids.pop() {
            for child in all.iter().filter(|other| other.parent == id) {
                ids.push(child.id.clone());
                found.push(child.clone());
            }
        }
        found
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.running.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Taker {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for of_service in request.into_inner().resource_spans {
            let resource = of_service.resource.unwrap();
            let service = resource.attributes.iter().find(|attribute| attribute.key == "service.name");
            let service = service.and_then(|name| text(name.value.clone()?.value?)).unwrap();
            for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let value = |attribute: opentelemetry_proto::tonic::common::v1::KeyValue| {
                    Some((attribute.key, text(attribute.value?.value?)?))
                };
                spans.push(Span {
                    name: span.name,
                    trace_id: hex::encode(span.trace_id),
                    id: hex::encode(span.span_id),
                    parent: hex::encode(span.parent_span_id),
                    kind: span.kind,
                    is_error: span.status.is_some_and(|status| status.code == 2),
                    took: Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano),
                    attributes: span.attributes.into_iter().filter_map(value).collect(),
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::StringValue(text) => Some(text),
        Value::BoolValue(value) => Some(value.to_string()),
        Value::IntValue(value) => Some(value.to_string()),
        Value::DoubleValue(value) => Some(value.to_string()),
        _ => None,
    }
}
