//! Rights, logins and stages: what the sink and `validate --check` report, without secrets.

use trunkline_connector::{Domain, Rejections};

use crate::{ROWS, Setup, batch, load, partition, prepare, spec, write};

#[test]
fn a_table_that_the_role_may_not_use_is_reported_with_its_grant() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("HIDDEN", "upsert").replace("warehouse =", "role = \"loader\"\nwarehouse =");
    let mut sink = setup.open_with(&options, None).unwrap();
    let message = "SQL compilation error: Object 'ROWS' already exists, but current role has no privileges on it.";
    let refuse =
        serde_json::json!({ "refuse": "create table if not exists \"rows\"", "code": "002002", "message": message });
    setup.account.server.control(&refuse.to_string());
    let error = sink.write(&partition(), &batch(0, &ROWS, None), &mut Rejections::default()).unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "snowflake.access_denied"), "{error}");
    let grant = "run `GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE DB.HIDDEN.\"ROWS\" TO ROLE LOADER`";
    assert!(error.message().contains(grant), "{error}");
    // A role with some of the rights sees the table.
    setup.query("HIDDEN", "CREATE TABLE \"ROWS\" (\"ID\" NUMBER(38, 0), \"NAME\" VARCHAR)");
    setup.account.server.control(
        "{\"refuse\":\"explain delete\",\"code\":\"003001\",\"message\":\"Insufficient privileges to operate on table 'ROWS'\"}",
    );
    let issues = spec(&options).preflight_records(setup.context(None), &mut || Ok(batch(0, &ROWS, None)));
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["warehouse.missing_right"], "{issues:?}");
    assert_eq!(issues[0].message, "the sink lacks DELETE on the table ROWS");
    assert!(issues[0].fix.as_deref().is_some_and(|fix| grant.contains(fix)), "{issues:?}");
}

#[test]
fn a_missing_privilege_is_reported_and_waited_for() {
    let Some(setup) = Setup::find() else { return };
    setup.account.server.control(
        "{\"refuse\":\"create table\",\"code\":\"003001\",\"message\":\"SQL access control error: Insufficient privileges\"}",
    );
    let error = setup.open_with(&setup.account.options("DENIED", "append"), None).err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::External, "snowflake.access_denied"), "{error}");
    // The grant was given.
    load(setup.open("DENIED", "append").as_mut(), &batch(0, &ROWS, None));
}

#[test]
fn the_preflight_check_reports_what_is_missing() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("CHECKED", "append");
    let issues = |options: &str| spec(options).preflight("checked.test", setup.runtime.handle());
    assert!(issues(&options).is_empty(), "{:?}", issues(&options));
    assert_eq!(setup.account.staged_files("CHECKED"), [""; 0]);
    setup.account.server.control(
        "{\"refuse\":\"create table\",\"code\":\"003001\",\"message\":\"SQL access control error: Insufficient privileges\"}",
    );
    let denied = issues(&options);
    assert_eq!(denied.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.access_denied"]);
    let grant = "GRANT USAGE, CREATE TABLE ON SCHEMA DB.CHECKED TO ROLE SYSADMIN";
    assert!(denied[0].fix.as_deref().is_some_and(|fix| fix.contains(grant)), "{denied:?}");
    setup.account.server.control(
        "{\"refuse\":\"select count\",\"code\":\"000606\",\"message\":\"No active warehouse selected in the current session\"}",
    );
    let without_warehouse = issues(&options.replace("warehouse =", "role = \"loader\"\nwarehouse ="));
    assert_eq!(without_warehouse.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.no_warehouse"]);
    let grant = "GRANT USAGE ON WAREHOUSE LOADING TO ROLE LOADER";
    let fix = without_warehouse[0].fix.as_deref();
    assert!(fix.is_some_and(|fix| fix.contains(grant)), "{without_warehouse:?}");
    setup
        .account
        .server
        .control("{\"refuse\":\"copy into\",\"code\":\"003167\",\"message\":\"Failure using stage area\"}");
    let unreadable = issues(&options);
    let message = unreadable.first().map(|issue| issue.message.as_str());
    assert!(message.is_some_and(|message| message.contains("cannot read the stage")), "{unreadable:?}");
    assert_eq!(setup.account.staged_files("CHECKED"), [""; 0]);
    let refused = issues(&options.replace("\"snow\"", "\"wrong\""));
    assert!(refused.iter().any(|issue| issue.code == "snowflake.login_refused"), "{refused:?}");
}

#[test]
fn a_table_that_does_not_fit_is_reported_with_the_statement_that_fixes_it() {
    let Some(setup) = Setup::find() else { return };
    let spec = spec(&setup.account.options("FITS", "upsert"));
    let issues = || spec.preflight_records(setup.context(None), &mut || Ok(batch(0, &ROWS, None)));
    assert!(issues().is_empty(), "the sink creates the table");
    setup.query("FITS", "CREATE TABLE \"ROWS\" (\"ID\" NUMBER(38, 0) NOT NULL, \"NAME\" BOOLEAN)");
    let found = issues();
    assert_eq!(found.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["warehouse.type_change"], "{found:?}");
    let statement = found[0].fix.as_deref().and_then(|fix| fix.split('`').nth(1)).unwrap();
    setup.query("FITS", statement);
    assert!(issues().is_empty(), "{:?}", issues());
    load(setup.open("FITS", "upsert").as_mut(), &batch(0, &ROWS, None));
    assert_eq!(setup.query("FITS", "SELECT \"ID\", \"NAME\" FROM \"ROWS\" ORDER BY \"ID\""), ["1|c", "2|b"]);
}

#[test]
fn a_wrong_password_stops_the_sink() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("LOGIN", "append").replace("\"snow\"", "\"wrong\"");
    let error = setup.open_with(&options, None).err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::Config, "snowflake.login_refused"), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}

#[test]
fn no_error_shows_the_secret_of_the_stage() {
    let Some(setup) = Setup::find() else { return };
    let mut sink = setup.open("SECRET", "append");
    write(sink.as_mut(), &batch(0, &ROWS, None));
    let plans = [sink.seal(&partition()).unwrap().unwrap()];
    setup.account.server.control(
        "{\"refuse\":\"copy into\",\"code\":\"003167\",\"message\":\"cannot read s3://lake with AKTEST and SKTESTSK\"}",
    );
    let error = sink.prepare(&plans, &mut Rejections::default()).unwrap_err().to_string();
    assert!(error.contains("cannot read s3://lake") && !error.contains("SKTESTSK"), "{error}");
    let committables = sink.prepare(&plans, &mut Rejections::default()).unwrap();
    sink.commit(&committables).unwrap();
}

#[test]
fn copy_passes_a_session_token_that_no_error_shows() {
    let Some(setup) = Setup::find() else { return };
    let (keys, token) = ("secret_access_key = \"SKTESTSK\"", "FwoGZXIvYXdz//temporary+token==");
    let options = setup.account.options("TOKENS", "append");
    assert!(options.contains(keys));
    // The S3 server of the tests knows no tokens: another sink uploads the files.
    let mut uploads = setup.open_with(&options, None).unwrap();
    write(uploads.as_mut(), &batch(0, &ROWS, None));
    let committables = prepare(uploads.as_mut());
    let options = options.replace(keys, &format!("{keys}, session_token = \"{token}\""));
    let mut sink = setup.open_with(&options, None).unwrap();
    // Only a statement with this clause gets the error, whose text repeats it.
    let clause = format!("CREDENTIALS = (AWS_KEY_ID = 'AKTEST' AWS_SECRET_KEY = 'SKTESTSK' AWS_TOKEN = '{token}')");
    let message = format!("SQL compilation error: {clause}");
    let control = serde_json::json!({ "refuse": clause, "code": "001003", "message": message });
    setup.account.server.control(&control.to_string());
    let error = sink.commit(&committables).unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("AWS_SECRET_KEY = '***' AWS_TOKEN = '***'"), "{shown}");
    assert!(!shown.contains("SKTESTSK") && !shown.contains("temporary"), "{shown}");
    // The stand-in loads with them.
    sink.commit(&committables).unwrap();
    assert_eq!(setup.query("TOKENS", "SELECT COUNT(*) FROM \"ROWS\""), ["3"]);
}

#[test]
fn files_wait_in_a_stage_of_the_service() {
    let Some(setup) = Setup::find() else { return };
    let options = setup.account.options("INTERNAL", "append");
    let (start, _) = options.split_once("stage =").unwrap();
    let options = format!("{start}stage = \"@LOADS/a\"\n");
    let check = || spec(&options).preflight("loads.test", setup.runtime.handle());
    let issues = check();
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.access_denied"], "{issues:?}");
    let grant = "GRANT READ, WRITE ON STAGE LOADS TO ROLE";
    assert!(issues[0].fix.as_deref().is_some_and(|fix| fix.contains(grant)), "{issues:?}");
    setup.query("INTERNAL", "CREATE STAGE LOADS ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')");
    setup.account.server.control("{\"encrypted_stages\":true}");
    let issues = check();
    assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), ["snowflake.internal_stage"], "{issues:?}");
    setup.account.server.control("{\"encrypted_stages\":false}");
    assert!(check().is_empty(), "{:?}", check());
    let mut sink = setup.open_with(&options, None).unwrap();
    load(sink.as_mut(), &batch(0, &ROWS, None));
    // A file of a task that died is removed by the next owner; a prepared one is loaded.
    write(sink.as_mut(), &batch(3, &ROWS, None));
    prepare(sink.as_mut());
    write(sink.as_mut(), &batch(3, &ROWS, None));
    let committables = prepare(sink.as_mut());
    assert_eq!(setup.account.internal_files().len(), 2);
    let mut next = setup.open_with(&options, None).unwrap();
    next.recover(&partition(), &committables).unwrap();
    assert_eq!(setup.account.internal_files().len(), 1);
    next.commit(&committables).unwrap();
    assert_eq!(setup.query("INTERNAL", "SELECT COUNT(*) FROM \"ROWS\""), ["6"]);
    assert_eq!(setup.account.internal_files(), [""; 0]);
}
