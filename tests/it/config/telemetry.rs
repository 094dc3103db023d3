//! Who may read the metrics, and where traces go.

use super::{loaded, mistakes};

#[test]
fn the_metrics_are_for_private_networks_unless_others_are_named() {
    let may_read = |variables: &[(&str, &str)], peer: &str| {
        let networks = loaded(variables).telemetry.metrics_from;
        networks.iter().any(|network| network.contains(&peer.parse::<std::net::IpAddr>().unwrap()))
    };
    for peer in ["127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "192.168.7.7", "fd00::1", "fe80::1"] {
        assert!(may_read(&[], peer), "{peer}");
        assert!(!may_read(&[("METRICS_FROM", "off")], peer), "{peer}");
    }
    for peer in ["8.8.8.8", "172.32.0.1", "100.64.0.1", "2001:db8::1"] {
        assert!(!may_read(&[], peer), "{peer}");
    }
    assert!(may_read(&[("METRICS_FROM", "8.8.8.8, 2001:db8::/32")], "8.8.8.8"));
    assert!(!may_read(&[("METRICS_FROM", "8.8.8.8, 2001:db8::/32")], "127.0.0.1"));
    assert!(loaded(&[("METRICS_FROM", "0.0.0.0/0")]).warnings[0].starts_with("METRICS_FROM"));
}

#[test]
fn traces_go_where_they_are_told_to_and_nowhere_else() {
    assert!(loaded(&[]).telemetry.traces.is_none());
    let traces = loaded(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")]).telemetry.traces.unwrap();
    assert_eq!(traces.endpoint.as_str(), "http://collector:4317/");
    assert_eq!((traces.service_name.as_str(), traces.ratio.to_string().as_str()), ("identity", "1"));
    let idle = loaded(&[("OTEL_SERVICE_NAME", "users"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")]);
    assert_eq!(
        idle.warnings,
        ["OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing comes of OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER_ARG"]
    );
}

#[test]
fn what_can_not_be_is_refused() {
    for (name, value) in [
        ("METRICS_FROM", "prometheus"),
        ("METRICS_FROM", "10.0.0.0/33"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.1"),
        ("OTEL_TRACES_SAMPLER_ARG", "-0.1"),
        ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
        ("OTEL_TRACES_SAMPLER_ARG", "half"),
    ] {
        let mistakes = mistakes(&[(name, value)]);
        assert_eq!(mistakes.len(), 1, "{name}={value}: {mistakes:?}");
        assert_eq!(mistakes[0].name, name, "{value}");
    }
}
