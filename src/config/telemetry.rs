//! What the service tells of itself: metrics.

use ipnet::IpNet;

use super::{parse, read::Reader, variables};

#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Peers that may read the metrics.
    pub metrics_from: Vec<IpNet>,
}

pub(super) fn telemetry(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Telemetry {
    Telemetry { metrics_from: r.value(&variables::METRICS_FROM, parse::networks_or_off) }
}
