//! `pglock history --metrics`, read by the parser of Prometheus' Python client.

use crate::support::pglock::python_tool;
use crate::support::run_table::{FAILED, RUNNING, RunTable};
use serde_json::{Value, json};

/// Returns the samples of `pglock history --metrics`, as the parser of Prometheus' Python client reads them: name,
/// labels and value.
#[track_caller]
fn metrics(table: &RunTable, arguments: &[&str]) -> Vec<(String, Value, f64)> {
    const TO_JSON: &str = "import json, sys\n\
        from prometheus_client.parser import text_string_to_metric_families as parse\n\
        text = sys.stdin.buffer.read().decode()\n\
        print(json.dumps([[f.name, f.type, f.documentation != '', [[s.name, s.labels, s.value] for s in f.samples]] \
        for f in parse(text)]))";
    let text = table.history(&["--metrics"]).args(arguments).output().stdout();
    let json = python_tool("python3")
        .args(["-c", TO_JSON])
        .output_with(text.as_bytes());
    let families: Value = serde_json::from_str(&json.stdout()).unwrap();
    let families = families.as_array().unwrap();
    let names = families.iter().map(|family| family[0].as_str().unwrap());
    let expected = [
        "pglock_last_start_timestamp_seconds",
        "pglock_last_success_timestamp_seconds",
        "pglock_last_duration_seconds",
        "pglock_last_exit_status",
        "pglock_runs",
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected, "{text}");
    assert!(
        families.iter().all(|family| family[1] == "gauge" && family[2] == true),
        "{text}"
    );
    let samples = families.iter().flat_map(|family| family[3].as_array().unwrap());
    let sample = |sample: &Value| {
        let name = sample[0].as_str().unwrap().to_owned();
        (name, sample[1].clone(), sample[2].as_f64().unwrap())
    };
    samples.map(sample).collect()
}

#[test]
fn a_real_parser_reads_the_metrics() {
    let table = RunTable::new();
    assert_eq!(metrics(&table, &[]), []);
    let at = |text: &str| format!("'2026-11-26 {text}+00'");
    let epoch = |text: &str| -> f64 {
        let sql = format!("SELECT extract(epoch FROM timestamptz {})", at(text));
        table.value(&sql).parse().unwrap()
    };
    let (one, two, three, four) = (at("01:00:00"), at("01:00:02.5"), at("02:00:00"), at("02:00:01"));
    table.insert("nightly", &[("started", &one), ("ended", &two)]);
    let killed = [
        ("started", three.as_str()),
        ("ended", &four),
        ("exit_status", "NULL"),
        ("signal", "'SIGKILL'"),
        ("outcome", "'failed'"),
    ];
    table.insert("nightly", &killed);
    table.insert("nightly", &[RUNNING[0], RUNNING[1], RUNNING[2], ("started", &four)]);
    let hostile = "a\\b\"c\nd\re\\n {x=\"y\"} # 鍵 \u{1b}[0m";
    table.insert(hostile, &[FAILED[0], ("exit_status", "3")]);
    table.insert("abandoned", &[RUNNING[1], RUNNING[2], ("outcome", "'abandoned'")]);
    let samples = metrics(&table, &[]);
    let value = |name: &str, key: &str| {
        let found: Vec<f64> = samples
            .iter()
            .filter(|(found, labels, _)| found == name && *labels == json!({ "key": key }))
            .map(|(.., value)| *value)
            .collect();
        assert!(found.len() <= 1, "{samples:?}");
        found.first().copied()
    };
    let of_nightly = |name: &str| value(&format!("pglock_last_{name}"), "nightly");
    assert_eq!(of_nightly("start_timestamp_seconds"), Some(epoch("02:00:01")));
    assert_eq!(of_nightly("success_timestamp_seconds"), Some(epoch("01:00:02.5")));
    assert_eq!(of_nightly("duration_seconds"), Some(1.0));
    assert_eq!(of_nightly("exit_status"), Some(137.0));
    assert_eq!(value("pglock_last_exit_status", hostile), Some(3.0));
    assert_eq!(value("pglock_last_success_timestamp_seconds", hostile), None);
    assert_eq!(value("pglock_last_duration_seconds", "abandoned"), None);
    assert_eq!(value("pglock_last_exit_status", "abandoned"), None);
    let counts = |samples: &[(String, Value, f64)], key: &str| -> Vec<(String, f64)> {
        let of_key = samples
            .iter()
            .filter(|(name, labels, _)| name == "pglock_runs" && labels["key"] == key);
        of_key
            .map(|(_, labels, value)| (labels["outcome"].as_str().unwrap().to_owned(), *value))
            .collect()
    };
    let expected = [
        ("abandoned", 0.0),
        ("evicted", 0.0),
        ("failed", 1.0),
        ("lost", 0.0),
        ("ok", 1.0),
        ("running", 1.0),
    ];
    let expected = expected.map(|(outcome, count)| (outcome.to_owned(), count));
    assert_eq!(counts(&samples, "nightly"), expected);
    assert_eq!(counts(&samples, hostile).len(), 6);
    // Two locks that are named alike are one key, because no two samples may have the same labels.
    table.insert("nightly", &[("number", "'42'"), ("started", &four), ("ended", &four)]);
    let samples = metrics(&table, &["--key", "nightly", "--key", "42"]);
    assert_eq!(samples.len(), 4 + 6, "{samples:?}");
    assert_eq!(counts(&samples, "nightly")[4], ("ok".to_owned(), 2.0));
    assert_eq!(samples[2].2, 0.0, "the newest run took no time: {samples:?}");
    assert_eq!(metrics(&table, &["--key", "never"]), []);
}
