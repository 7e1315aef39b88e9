//! Logins with temporary credentials of AWS, from a server that answers as AWS documents.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Bench, Records, load, partition, problems};
use trunkline_connector::{Domain, ErasedTwoPhaseSink, Rejections, Result};
use trunkline_tests::need;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A request: its headers in lower case, and its body.
type Request = (Vec<String>, String);

/// The service that issues credentials.
struct Aws {
    address: String,
    /// The answer: status and body.
    answer: Arc<Mutex<(u16, String)>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Aws {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((500, String::new())));
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (shared_answer, shared_requests) = (Arc::clone(&answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    lines.push(line.trim().to_lowercase());
                }
                let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                reader.read_exact(&mut body).unwrap();
                shared_requests.lock().unwrap().push((lines, String::from_utf8(body).unwrap()));
                let (status, answer) = shared_answer.lock().unwrap().clone();
                let head =
                    format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
                reader.get_mut().write_all(format!("{head}{answer}").as_bytes()).unwrap();
            }
        });
        Self { address, answer, requests }
    }

    /// Answers with this login of a cluster, which expires after a time.
    fn issue(&self, user: &str, password: &str, lifetime: Duration) {
        let end = (SystemTime::now() + lifetime).duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (day, second) = (end / 86_400, end % 86_400);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let date = arrow::temporal_conversions::date32_to_datetime(day as i32).unwrap().format("%Y-%m-%d");
        let expiration = format!("{date}T{hour:02}:{minute:02}:{:02}.000Z", second % 60);
        let body = format!(
            "<GetClusterCredentialsWithIAMResponse xmlns=\"http://redshift.amazonaws.com/doc/2012-12-01/\">\n\
             <GetClusterCredentialsWithIAMResult>\n<DbUser>{user}</DbUser>\n<DbPassword>{password}</DbPassword>\n\
             <Expiration>{expiration}</Expiration>\n<NextRefreshTime>{expiration}</NextRefreshTime>\n\
             </GetClusterCredentialsWithIAMResult>\n<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>\n\
             </GetClusterCredentialsWithIAMResponse>"
        );
        *self.answer.lock().unwrap() = (200, body);
    }

    fn answer(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// A sink that logs in with what `aws` issues for `target`.
fn open(bench: &Bench, aws: &Aws, target: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
    let login = format!(
        "auth = \"aws\"\naws = {{ {target}, region = \"eu-central-1\", endpoint = \"{}\", access_key_id = \"AKIDEXAMPLE\", \
         secret_access_key = \"{SECRET}\", session_token = \"session+token\" }}",
        aws.address
    );
    bench.open_logged_in(&format!("postgres://127.0.0.1:{}/dev", bench.redshift.port()), &login)
}

fn row(offset: i64) -> Records {
    let mut records = Records::from_offset(offset);
    records.push(None, None, Some(&format!(r#"{{"id":{offset}}}"#)));
    records
}

/// A user of the database that AWS's credentials name.
fn create_user(bench: &Bench, user: &str, password: &str) {
    bench.rows(&format!("CREATE ROLE \"{user}\" LOGIN PASSWORD '{password}'"));
    bench.rows(&format!("GRANT USAGE, CREATE ON SCHEMA $S TO \"{user}\""));
}

/// Ends all sessions and prepares a load in new ones, as the stage does: it repeats the step.
fn prepare_in_new_sessions(bench: &Bench, sink: &mut dyn ErasedTwoPhaseSink) {
    sink.write(&partition(), &row(1).batch, &mut Rejections::default()).unwrap();
    let plans = [sink.seal(&partition()).unwrap().unwrap()];
    bench.redshift.end_sessions("trunkline iam.dw");
    (0..5).find_map(|_| sink.prepare(&plans, &mut Rejections::default()).ok()).unwrap();
}

#[test]
fn sessions_log_in_with_credentials_that_are_renewed() {
    let bench = need!(Bench::new("iam"));
    let aws = Aws::start();
    let user = "IAMR:iam-loader";
    create_user(&bench, user, "first&/+=");
    aws.issue(user, "first&amp;/+=", Duration::from_secs(3600));
    let mut sink = open(&bench, &aws, "cluster = \"shop\"").unwrap();
    load(sink.as_mut(), &row(0).batch);
    let requests = aws.requests();
    // One login for all sessions.
    let [(headers, body)] = requests.as_slice() else { panic!("{} requests", requests.len()) };
    assert_eq!(
        body,
        "Action=GetClusterCredentialsWithIAM&Version=2012-12-01&ClusterIdentifier=shop&DbName=dev&DurationSeconds=3600"
    );
    let signed = headers.iter().find(|header| header.starts_with("authorization: ")).unwrap();
    assert!(signed.starts_with("authorization: aws4-hmac-sha256 credential=akidexample/"), "{signed}");
    assert!(signed.contains("/eu-central-1/redshift/aws4_request"), "{signed}");
    assert!(headers.contains(&"x-amz-security-token: session+token".to_owned()), "{headers:?}");
    assert!(!format!("{requests:?}").to_lowercase().contains(&SECRET.to_lowercase()));
    // A new session while they are valid, and one after the server has refused them.
    prepare_in_new_sessions(&bench, sink.as_mut());
    assert_eq!(aws.requests().len(), 1, "valid credentials are kept");
    bench.rows(&format!("ALTER ROLE \"{user}\" PASSWORD 'second'"));
    aws.issue(user, "second", Duration::from_secs(3600));
    prepare_in_new_sessions(&bench, sink.as_mut());
    assert_eq!(aws.requests().len(), 2, "refused credentials are fetched again");
    // Credentials that are about to expire.
    aws.issue(user, "second", Duration::from_secs(30));
    let mut other = open(&bench, &aws, "cluster = \"shop\"").unwrap();
    let before = aws.requests().len();
    prepare_in_new_sessions(&bench, other.as_mut());
    assert!(aws.requests().len() > before, "expiring credentials are renewed");
    // The new ones are refused, too.
    aws.issue(user, "third", Duration::from_secs(3600));
    let error = open(&bench, &aws, "cluster = \"shop\"").err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::Config, "redshift.login"), "{error}");
    assert!(!error.to_string().contains("third"), "{error}");
}

#[test]
fn workgroups_have_their_own_service() {
    let bench = need!(Bench::new("iamserverless"));
    let aws = Aws::start();
    create_user(&bench, "IAM:loader", "pass");
    let end = (SystemTime::now() + Duration::from_secs(900)).duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    aws.answer(
        200,
        &format!(r#"{{"dbPassword":"pass","dbUser":"IAM:loader","expiration":{end},"nextRefreshTime":{end}}}"#),
    );
    load(open(&bench, &aws, "workgroup = \"shop\"").unwrap().as_mut(), &row(0).batch);
    let requests = aws.requests();
    let (headers, body) = &requests[0];
    assert_eq!(body, r#"{"dbName":"dev","durationSeconds":3600,"workgroupName":"shop"}"#);
    assert!(headers.contains(&"x-amz-target: redshiftserverless.getcredentials".to_owned()), "{headers:?}");
    assert!(
        headers.iter().any(|header| header.contains("/eu-central-1/redshift-serverless/aws4_request")),
        "{headers:?}"
    );
    aws.answer(400, r#"{"__type":"AccessDeniedException","message":"User x is not authorized"}"#);
    let error = open(&bench, &aws, "workgroup = \"shop\"").err().unwrap();
    assert_eq!((error.domain, error.code), (Domain::External, "redshift.permission_denied"), "{error}");
    assert!(error.message().contains("`redshift-serverless:GetCredentials` on the workgroup `shop`"), "{error}");
    assert!(!error.to_string().contains(SECRET), "{error}");
}

#[test]
fn wrong_options_of_logins_are_reported() {
    let rest = "stage = \"s3://b\"\n";
    for (options, expected) in [
        (
            "url = \"postgres://h/d\"",
            "`sinks.test.url` names no user; expected `postgres://USER:PASSWORD@HOST:5439/DATABASE`",
        ),
        (
            "url = \"postgres://u:p@h/d\"\nauth = \"aws\"\naws = { cluster = \"c\" }",
            "`sinks.test.url` names a user, and `auth = \"aws\"` logs in with the one that AWS names; expected \
             `postgres://HOST:5439/DATABASE`",
        ),
        (
            "url = \"postgres://h/d\"\nauth = \"aws\"",
            "`sinks.test.url` has no address of Amazon's, so `auth = \"aws\"` does not know the cluster; expected \
             `aws = { cluster = \"..\" }` or `aws = { workgroup = \"..\" }` too",
        ),
        (
            "url = \"postgres://u:p@h/d\"\naws = { cluster = \"c\" }",
            "`sinks.test.aws` has no effect without `auth = \"aws\"`; expected `auth = \"aws\"` too",
        ),
        (
            "url = \"postgres://h/d\"\nauth = \"aws\"\naws = { cluster = \"c\", workgroup = \"w\" }",
            "`sinks.test.aws.workgroup` is given together with `cluster`; expected `cluster` or `workgroup`",
        ),
        (
            "url = \"postgres://h/d\"\nauth = \"aws\"\naws = { cluster = \"c\", access_key_id = \"a\" }",
            "`sinks.test.aws.secret_access_key` is missing; expected `secret_access_key` here: it goes with `access_key_id`",
        ),
    ] {
        assert_eq!(problems(&format!("{options}\n{rest}")), [expected], "{options}");
    }
    let amazon = "url = \"postgres://shop.abc1.eu-central-1.redshift.amazonaws.com/dev\"\nauth = \"aws\"\n";
    assert_eq!(problems(&format!("{amazon}{rest}")), [""; 0]);
}
