//! The sample pipelines that load warehouses, as they are: only the servers' addresses differ.

use std::fs;

use trunkline_tests::{Case, Kafka, Mysql, Redshift, S3, Snowflake, need, repository};

use crate::LONG;

/// A sample pipeline with its addresses replaced by these.
fn sample(name: &str, addresses: &[(&str, String)]) -> String {
    let file = fs::read_to_string(repository().join("pipelines").join(name)).unwrap();
    addresses.iter().fold(file, |text, (from, to)| {
        assert!(text.contains(from), "{name} has no {from}");
        text.replace(from, to)
    })
}

#[test]
fn sample_pipelines_keep_the_warehouses_equal_to_the_source() {
    let (kafka, mysql, s3) = (need!(Kafka::any()), need!(Mysql::shared()), need!(S3::shared()));
    let (redshift, snowflake) = (need!(Redshift::shared()), need!(Snowflake::start(s3)));
    mysql.run(&fs::read_to_string(repository().join("pipelines/shop-changes/shop.sql")).unwrap());
    s3.bucket("lake");
    let case = Case::new("samples", kafka);
    let local = |port: u16| format!("127.0.0.1:{port}");
    let sources = [("127.0.0.1:3306", local(mysql.port())), ("127.0.0.1:9000", s3.address())];
    for (name, warehouse) in [
        ("shop-to-warehouse", ("127.0.0.1:5439", local(redshift.port()))),
        ("shop-to-snowflake", ("127.0.0.1:8090", local(snowflake.port()))),
    ] {
        case.pipeline(name, &sample(&format!("{name}.toml"), &[&sources[..], &[warehouse]].concat()));
    }
    let summary = case.until_idle("a", LONG);
    for pipeline in ["shop-to-warehouse", "shop-to-snowflake"] {
        let counters = summary.of(pipeline, "dw");
        assert!(counters.input > 0, "{pipeline}");
        assert_eq!((counters.output, counters.dead_lettered), (counters.input, 0), "{pipeline}");
    }
    for (table, columns) in [("orders", "id, customer, price"), ("customers", "id, name, joined")] {
        let sql = |place: &str| format!("SELECT {columns} FROM {place}{table} ORDER BY id");
        let expected = mysql.run(&sql("shop."));
        assert_eq!(redshift.run(&sql("public.")), expected, "{table} in Redshift");
        assert_eq!(snowflake.try_query("ANALYTICS", "RAW", &sql("")).unwrap(), expected, "{table} in Snowflake");
    }
    let excluded = redshift.run("SELECT 1 FROM information_schema.tables WHERE table_name = 'audit_log'");
    assert!(excluded.is_empty(), "the pipeline excludes audit_log");
    let checked = case.run_command("validate", &[], &["--check"], LONG);
    assert_eq!(checked.code, Some(0), "{}", checked.describe());
    // Since its last load, an administrator has replaced a column.
    redshift.run("ALTER TABLE public.orders DROP COLUMN customer; ALTER TABLE public.orders ADD COLUMN customer DATE");
    let checked = case.run_command("validate", &[], &["--check"], LONG);
    assert!(
        checked.code == Some(3) && checked.stderr.contains("warehouse.type_change"),
        "the column has another type: {}",
        checked.describe()
    );
}
