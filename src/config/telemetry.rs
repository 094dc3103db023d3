//! What the service tells of itself: metrics and traces.

use ipnet::IpNet;
use url::Url;

use super::{parse, read::Reader, variables};

#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Peers that may read the metrics.
    pub metrics_from: Vec<IpNet>,
    /// `None`: there are none.
    pub traces: Option<Traces>,
}

#[derive(Debug, Clone)]
pub struct Traces {
    /// The collector.
    pub endpoint: Url,
    pub service_name: String,
    /// Of the calls that come without a trace, this part begins one.
    pub ratio: f64,
}

pub(super) fn telemetry(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Telemetry {
    let metrics_from = r.value(&variables::METRICS_FROM, parse::networks_or_off);
    if metrics_from.iter().any(|net| net.prefix_len() == 0) {
        r.warn("METRICS_FROM holds the whole internet: anybody may read how much there is to do, and how well it goes");
    }
    let endpoint = r.optional(&variables::OTEL_EXPORTER_OTLP_ENDPOINT, |text| match parse::http_url(text)? {
        url if url.scheme() == "http" => Ok(url),
        _ => Err("is not plain http: a collector runs beside the service, and goes on from there over TLS".into()),
    });
    let service_name = r.value(&variables::OTEL_SERVICE_NAME, parse::text);
    let ratio = r.value(&variables::OTEL_TRACES_SAMPLER_ARG, parse::ratio);
    let idle = r.set_among(&[&variables::OTEL_SERVICE_NAME, &variables::OTEL_TRACES_SAMPLER_ARG]);
    if let (None, Some(idle)) = (&endpoint, idle) {
        r.warn(format!("OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing comes of {idle}"));
    }
    Telemetry { metrics_from, traces: endpoint.map(|endpoint| Traces { endpoint, service_name, ratio }) }
}
