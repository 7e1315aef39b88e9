//! The metrics as data points of OpenTelemetry, with the same names, labels and values.

use std::time::{Duration, SystemTime};

use super::{Kind, Label, Output};
use crate::stage::Durations;
use crate::telemetry::messages::{
    Gauge, Histogram, HistogramDataPoint, KeyValue, Metric, NumberDataPoint, Sum, Temporality, metric, text,
};
use crate::telemetry::nanoseconds;

/// Data points under construction.
pub(super) struct Points {
    metrics: Vec<Metric>,
    /// When the process was started: counters began at 0 then.
    started: u64,
    now: u64,
}

impl Points {
    /// Data points of now, of a process that was started this long ago.
    pub(super) fn since(uptime: Duration) -> Self {
        let now = SystemTime::now();
        let started = now.checked_sub(uptime).map_or(0, nanoseconds);
        Self { metrics: Vec::new(), started, now: nanoseconds(now) }
    }

    /// The metrics that have data points.
    pub(super) fn finish(self) -> Vec<Metric> {
        let has_points = |metric: &Metric| match &metric.data {
            Some(metric::Data::Gauge(gauge)) => !gauge.data_points.is_empty(),
            Some(metric::Data::Sum(sum)) => !sum.data_points.is_empty(),
            Some(metric::Data::Histogram(histogram)) => !histogram.data_points.is_empty(),
            None => false,
        };
        self.metrics.into_iter().filter(has_points).collect()
    }
}

impl Output for Points {
    fn metric(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        let cumulative = Temporality::Cumulative as i32;
        let data = match kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            Kind::Gauge => metric::Data::Gauge(Gauge::default()),
            Kind::Histogram => {
                metric::Data::Histogram(Histogram { data_points: Vec::new(), aggregation_temporality: cumulative })
            }
        };
        self.metrics.push(Metric {
            name: name.to_owned(),
            description: help.to_owned(),
            unit: unit(name).to_owned(),
            data: Some(data),
        });
    }

    fn sample(&mut self, labels: &[Label<'_>], value: f64) {
        let mut point = NumberDataPoint {
            start_time_unix_nano: 0,
            time_unix_nano: self.now,
            as_double: Some(value),
            attributes: attributes(labels),
        };
        match self.metrics.last_mut().and_then(|metric| metric.data.as_mut()) {
            Some(metric::Data::Gauge(gauge)) => gauge.data_points.push(point),
            Some(metric::Data::Sum(sum)) => {
                point.start_time_unix_nano = self.started;
                sum.data_points.push(point);
            }
            Some(metric::Data::Histogram(_)) | None => debug_assert!(false, "a sample without a counter or gauge"),
        }
    }

    fn durations(&mut self, labels: &[Label<'_>], durations: &Durations) {
        let Some(metric::Data::Histogram(histogram)) = self.metrics.last_mut().and_then(|metric| metric.data.as_mut())
        else {
            return debug_assert!(false, "durations without a histogram");
        };
        let within: u64 = durations.counts.iter().sum();
        histogram.data_points.push(HistogramDataPoint {
            start_time_unix_nano: self.started,
            time_unix_nano: self.now,
            count: durations.count,
            sum: Some(durations.sum.as_secs_f64()),
            bucket_counts: durations.counts.iter().copied().chain([durations.count - within]).collect(),
            explicit_bounds: durations.limits.iter().map(|limit| *limit as f64 / 1000.0).collect(),
            attributes: attributes(labels),
        });
    }
}

fn attributes(labels: &[Label<'_>]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| text(name, value.to_string())).collect()
}

/// The unit in the form of UCUM. The names of Prometheus end with it.
fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    if name.ends_with("_seconds") {
        "s"
    } else if name.ends_with("_bytes") {
        "By"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::{measured, samples};
    use super::*;
    use crate::telemetry::messages::any_value::Value;

    /// The data points as Prometheus would name them.
    fn as_samples(metrics: &[Metric]) -> BTreeMap<String, f64> {
        let mut found = BTreeMap::new();
        let name = |name: &str, attributes: &[KeyValue], le: Option<String>| {
            let pair = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::Text(text)) => format!("{}=\"{text}\"", attribute.key),
                other => panic!("{other:?}"),
            };
            let le = le.map(|le| format!("le=\"{le}\""));
            let pairs: Vec<String> = attributes.iter().map(pair).chain(le).collect();
            if pairs.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", pairs.join(",")) }
        };
        for metric in metrics {
            let numbers = match metric.data.as_ref().unwrap() {
                metric::Data::Gauge(gauge) => &gauge.data_points,
                metric::Data::Sum(sum) => {
                    assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
                    assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano > 0));
                    &sum.data_points
                }
                metric::Data::Histogram(histogram) => {
                    for point in &histogram.data_points {
                        let mut count = 0;
                        let bounds = point.explicit_bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                        for (bucket, bound) in point.bucket_counts.iter().zip(bounds) {
                            count += bucket;
                            found.insert(
                                name(&format!("{}_bucket", metric.name), &point.attributes, Some(bound)),
                                count as f64,
                            );
                        }
                        found
                            .insert(name(&format!("{}_sum", metric.name), &point.attributes, None), point.sum.unwrap());
                        let total = point.count as f64;
                        found.insert(name(&format!("{}_count", metric.name), &point.attributes, None), total);
                    }
                    continue;
                }
            };
            for point in numbers {
                found.insert(name(&metric.name, &point.attributes, None), point.as_double.unwrap());
            }
        }
        found
    }

    #[test]
    fn the_values_are_those_of_prometheus() {
        let measured = measured();
        let changing = ["trunkline_uptime", "trunkline_since_commit", "process_"];
        let stable = |all: BTreeMap<String, f64>| -> BTreeMap<String, f64> {
            all.into_iter().filter(|(name, _)| !changing.iter().any(|prefix| name.starts_with(prefix))).collect()
        };
        let (text, points) = (samples(&measured.text()), as_samples(&measured.points()));
        assert!(text.keys().eq(points.keys()), "{text:?}\n{points:?}");
        assert_eq!(stable(text), stable(points));
        assert_eq!(["a_seconds_total", "trunkline_lag_bytes", "process_open_fds"].map(unit), ["s", "By", ""]);
    }
}
