//! A stage of Snowflake itself, in an account on AWS.
//!
//! PUT answers where the stage is in S3, with temporary credentials for it; the files go there with
//! requests of S3. Other clouds have other protocols: such accounts need an external stage.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use trunkline_connector::{Error, Result};
use trunkline_warehouse::{AccessKey, S3Location, S3Stage, Stage};

use crate::client::{Answer, ClientOptions, Session, StageInfo};

/// The credentials are valid for an hour and more.
const LOCATION_LIFE: Duration = Duration::from_secs(1800);

/// See the module's header.
pub(crate) struct InternalStage {
    client: Arc<ClientOptions>,
    /// `@`, its name, and the folder in it without a slash at its end.
    place: String,
    tag: String,
    runtime: Handle,
    session: Mutex<Option<Session>>,
    uploads: Mutex<Option<(S3Stage, Instant)>>,
}

/// Why a text is no internal stage.
pub(crate) fn problem(place: &str) -> Option<&'static str> {
    let (name, path) = place.strip_prefix('@')?.split_once('/').unwrap_or((&place[1..], ""));
    let is_word =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_$".contains(&byte));
    if name.split('.').count() > 3 || !name.split('.').all(is_word) {
        return Some("has no name of a stage: letters, digits, `_` and `$`, with its schema and database before it");
    }
    let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    (!is_plain).then_some("has a folder with characters other than letters, digits and `-_./`")
}

impl InternalStage {
    pub(crate) fn new(client: Arc<ClientOptions>, place: &str, tag: String, runtime: Handle) -> Self {
        let place = place.trim_end_matches('/').to_owned();
        Self { client, place, tag, runtime, session: Mutex::default(), uploads: Mutex::default() }
    }

    /// The address of a key, for SQL.
    fn literal(&self, key: &str) -> String {
        format!("'{}'", self.url(key))
    }

    /// Runs a statement in a session, which is dropped after an error.
    fn run(&self, sql: &str, doing: &str) -> Result<Answer> {
        let mut slot = locked(&self.session);
        let failed = |error: crate::client::SqlError| error.into_error(&format!("cannot {doing} {}", self.place));
        let mut session = match slot.take() {
            Some(session) => session,
            None => self.runtime.block_on(Session::open(&self.client, &self.tag, &self.runtime)).map_err(failed)?,
        };
        let answer = self.runtime.block_on(session.execute(sql)).map_err(failed)?;
        *slot = Some(session);
        Ok(answer)
    }

    /// Uploads with the credentials of the last PUT, or of a new one.
    fn upload(&self, put: impl Fn(&S3Stage) -> Result<()>) -> Result<()> {
        let known = locked(&self.uploads).take().filter(|(_, since)| since.elapsed() < LOCATION_LIFE);
        let (stage, since) = match known {
            Some(known) => known,
            None => (S3Stage::of_location(self.location()?, self.runtime.clone())?, Instant::now()),
        };
        put(&stage)?;
        // After an error the next upload asks again.
        *locked(&self.uploads) = Some((stage, since));
        Ok(())
    }

    fn location(&self) -> Result<S3Location> {
        let sql = format!(
            "PUT 'file:///trunkline' {} AUTO_COMPRESS = FALSE SOURCE_COMPRESSION = NONE OVERWRITE = TRUE",
            self.literal("")
        );
        let info = self.run(&sql, "upload to")?.upload;
        let unusable = |problem: &str| {
            Error::config("snowflake.internal_stage", format!("the stage {} cannot be used: {problem}", self.place))
        };
        let info = info.ok_or_else(|| unusable("the service does not say where it is; use a stage in a bucket"))?;
        let StageInfo { location_type, location, region, end_point, is_client_side_encrypted, creds } = info;
        if location_type != "S3" {
            let problem =
                format!("it is on {location_type}, not on S3; use a stage in a bucket (`s3://bucket/prefix`)");
            return Err(unusable(&problem));
        }
        if is_client_side_encrypted {
            return Err(unusable(
                "its files are encrypted by the client; create one with `CREATE STAGE .. ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')`",
            ));
        }
        let (bucket, prefix) = location.split_once('/').unwrap_or((&location, ""));
        let endpoint = end_point
            .filter(|text| !text.is_empty())
            .map(|text| if text.contains("://") { text } else { format!("https://{text}") });
        Ok(S3Location {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint,
            region,
            key: AccessKey {
                id: creds.id,
                secret: creds.secret,
                session_token: creds.token.filter(|token| !token.is_empty()),
            },
        })
    }
}

fn locked<T>(slot: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage for InternalStage {
    fn url(&self, key: &str) -> String {
        format!("{}/{key}", self.place)
    }

    fn put_file(&self, key: &str, file: &Path) -> Result<()> {
        self.upload(|stage| stage.put_file(key, file))
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.upload(|stage| stage.put_bytes(key, bytes))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let Answer { columns, rows, .. } = self.run(&format!("LIST {}", self.literal(prefix)), "list")?;
        let name = columns.iter().position(|column| column.eq_ignore_ascii_case("name")).unwrap_or(0);
        // A name begins with that of the stage, and then has the folder.
        let folder = self.place.split_once('/').map_or(String::new(), |(_, folder)| format!("{folder}/"));
        let key = |row: &Vec<Option<String>>| {
            let (_, path) = row.get(name)?.as_deref()?.split_once('/')?;
            path.strip_prefix(&folder).map(str::to_owned)
        };
        Ok(rows.iter().filter_map(key).collect())
    }

    fn remove(&self, keys: &[String]) -> Result<()> {
        // Snowflake needs no manifests, so there are none.
        for key in keys.iter().filter(|key| !key.ends_with(".manifest")) {
            self.run(&format!("REMOVE {}", self.literal(key)), "remove files from")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_stages_are_checked() {
        for place in ["@LOADS", "@RAW.LOADS/a/b-c", "@DB.RAW.LOADS$1/"] {
            assert_eq!(problem(place), None, "{place}");
        }
        for place in ["@", "@a b", "@a.b.c.d", "@~", "@LOADS/a'b", "@\"x\""] {
            assert!(problem(place).is_some(), "{place}");
        }
    }
}
