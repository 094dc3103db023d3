//! What `/metrics` says, read as strictly as the format's specification allows.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;

use super::Service;

/// The samples, by name and labels as they stand: `identity_calls_total{rpc="…",face="rest",code="200"}`.
#[derive(Debug)]
pub struct Metrics {
    pub text: String,
    samples: BTreeMap<String, f64>,
    /// The type of each family.
    pub families: BTreeMap<String, String>,
}

impl Metrics {
    /// What the service says now.
    pub async fn of(service: &Service) -> Self {
        let answer = service.anonymous().request(Method::GET, "/metrics").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
        Self::read(answer.text().await.unwrap())
    }

    /// Reads `OpenMetrics` 1.0; panics where a scraper would give up.
    pub fn read(text: String) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::<String, String>::new());
        let mut family = String::new();
        let mut helped = BTreeSet::new();
        assert!(text.ends_with("\n# EOF\n"), "it doesn't end: {text}");
        for line in text.lines().take_while(|line| *line != "# EOF") {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, meaning) = help.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(!meaning.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(helped.contains(name), "no help: {line}");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                name.clone_into(&mut family);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                let name = series.split('{').next().unwrap();
                assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
                let suffixes: &[&str] = match families.get(&family).map(String::as_str) {
                    Some("counter") => &["_total"],
                    Some("gauge") => &[""],
                    Some("histogram") => &["_bucket", "_sum", "_count"],
                    other => panic!("{other:?}: {line}"),
                };
                let of_family = name.strip_prefix(family.as_str()).is_some_and(|suffix| suffixes.contains(&suffix));
                assert!(of_family, "not of {family}: {line}");
                assert_labels(series.strip_prefix(name).unwrap());
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(value.is_finite(), "{line}");
                assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        let metrics = Self { text, samples, families };
        metrics.assert_buckets();
        metrics
    }

    /// The sum of the samples of this name whose labels have all of these; 0 if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let matching = self.series(name).filter(|(series, _)| wanted.iter().all(|label| series.contains(label)));
        matching.map(|(_, value)| value).sum()
    }

    /// The samples of this name.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let of_name =
            move |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.samples.iter().filter(move |(series, _)| of_name(series)).map(|(series, value)| (series.as_str(), *value))
    }

    /// Buckets grow, and the last holds all.
    fn assert_buckets(&self) {
        for (family, _) in self.families.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut of_labels = BTreeMap::<String, Vec<(f64, f64)>>::new();
            for (series, count) in self.series(&format!("{family}_bucket")) {
                let (before, rest) = series.split_once("le=\"").unwrap_or_else(|| panic!("{series}"));
                let (bound, after) = rest.split_once('"').unwrap();
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
                let labels = format!("{before}{after}").replace("_bucket", "_count");
                of_labels.entry(labels).or_default().push((bound, count));
            }
            for (labels, mut buckets) in of_labels {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{labels}: {buckets:?}");
                let (bound, all) = *buckets.last().unwrap();
                assert!(bound.is_infinite(), "{labels}");
                let wanted: BTreeSet<_> = label_pairs(&labels);
                let count = self.series(&format!("{family}_count")).find(|(series, _)| label_pairs(series) == wanted);
                assert_eq!(count.map(|(_, count)| count), Some(all), "{labels}");
            }
        }
    }
}

fn label_pairs(series: &str) -> BTreeSet<String> {
    let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
    labels.split(',').filter(|pair| !pair.is_empty()).map(str::to_owned).collect()
}

/// `{name="value",…}`, or nothing.
fn assert_labels(labels: &str) {
    if labels.is_empty() {
        return;
    }
    let pairs = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_else(|| panic!("{labels}"));
    for pair in pairs.split(',').filter(|_| !pairs.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("{labels}"));
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !name.is_empty(), "{labels}");
        let value =
            value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_else(|| panic!("{labels}"));
        assert!(!value.contains(['"', '\\', '\n']), "{labels}");
    }
}
