//! Rows that Snowflake refuses for a reason that the sink does not check. The stand-in refuses
//! texts such as `refuse:100078:why`.

use trunkline_connector::{Batch, Domain, Error, READ_AGAIN, Rejections, SinkSpec};

use crate::{Setup, batch, partition, spec};

/// Loads records as the stage does: after a refusal it opens the sink again, and reads them again.
/// Returns the rejected records, and how often they were read again.
fn load(setup: &Setup, spec: &dyn SinkSpec, records: &Batch) -> Result<(Rejections, usize), Error> {
    let mut repetitions = 0;
    loop {
        let mut sink = setup.open_spec(spec);
        let mut rejected = Rejections::default();
        sink.write(&partition(), records, &mut rejected)?;
        let plans = [sink.seal(&partition())?.unwrap()];
        match sink.prepare(&plans, &mut Rejections::default()) {
            Ok(committables) => {
                sink.commit(&committables)?;
                return Ok((rejected, repetitions));
            }
            Err(error) => {
                sink.abort(&plans[0])?;
                if error.code != READ_AGAIN {
                    return Err(error);
                }
                repetitions += 1;
            }
        }
    }
}

fn texts(texts: &[&str]) -> Batch {
    let rows: Vec<(String, String)> = (0..texts.len())
        .map(|id| (format!("{{\"id\":{id}}}"), format!("{{\"id\":{id},\"text\":\"{}\"}}", texts[id])))
        .collect();
    let rows: Vec<_> = rows.iter().map(|(key, value)| (Some(key.as_str()), Some(value.as_str()))).collect();
    batch(0, &rows, None)
}

#[test]
fn refused_rows_are_rejected_with_snowflakes_reason_and_the_others_are_loaded() {
    let Some(setup) = Setup::find() else { return };
    setup.account.server.control("{\"refuse_values\":true}");
    let mut rows = vec!["fine"; 40];
    (rows[7], rows[33]) = ("refuse:100078:String is too long and would be truncated", "refuse:100038:no number");
    let soft = "upsert\"\nlineage = false\ndeletes = \"soft";
    for (schema, mode) in [("REFUSED_APPEND", "append"), ("REFUSED_UPSERT", soft)] {
        let spec = spec(&setup.account.options(schema, mode));
        let (rejected, repetitions) = load(&setup, spec.as_ref(), &texts(&rows)).unwrap();
        let places: Vec<i64> = rejected.iter().map(|(record, _)| record.entry().offset).collect();
        assert_eq!((places, repetitions), (vec![7, 33], 1));
        let (code, message) = (&rejected.reasons[0].code, &rejected.reasons[0].message);
        assert_eq!(code, "warehouse.row_refused");
        assert!(message.starts_with("snowflake refused the row: cannot run `COPY INTO "), "{message}");
        assert!(message.contains("String is too long and would be truncated"), "{message}");
        assert!(message.contains("(Snowflake error 100078"), "{message}");
        assert_eq!(setup.query(schema, "SELECT COUNT(*), COUNT(DISTINCT \"ID\") FROM \"ROWS\""), ["38|38"]);
        assert_eq!(setup.account.staged_files(schema), [""; 0]);
    }
    // All rows, and an error that is not about values.
    let options = |schema: &str| spec(&setup.account.options(schema, "append"));
    let all = load(&setup, options("REFUSED_ALL").as_ref(), &texts(&["refuse:100038:no number"; 20]));
    let error = all.err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::Data, "warehouse.too_many_refused"), "{error}");
    let file = load(&setup, options("REFUSED_FILE").as_ref(), &texts(&["refuse:100080:5 columns"; 20]));
    let error = file.err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::External, "snowflake.statement_failed"), "{error}");
    setup.account.server.control("{\"refuse_values\":false}");
}
