//! The records of the comparison with native code. A benchmark and an example include this file.

/// A record of about 300 bytes of JSON.
pub(crate) fn value(id: usize) -> String {
    format!(
        "{{\"id\":\"request-{id:08}\",\"time\":\"2026-11-29T02:30:00.000Z\",\"host\":\"web-{}.example.org\",\"user\":{{\"name\":\
         \"user-{:05}\",\"country\":\"DE\"}},\"method\":\"GET\",\"path\":\"/products/{}/reviews\",\"status\":{},\"ms\":{}.25,\
         \"agent\":\"Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0\"}}",
        id % 7,
        id % 50_000,
        id % 999,
        200 + (id % 20) * 20,
        id % 300,
    )
}
