//! Calls a [`Transform`] with packed batches and packs its verdicts, in a plugin and in the mock
//! host.

use crate::timers::Timer;
use crate::{Batch, Done, Transform, Verdicts};

/// Bytes of a `pass` verdict. The buffer grows when a verdict has more.
const PASS_BYTES: usize = 4;

pub(crate) fn process<T: Transform>(transform: &mut T, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let batch = Batch::new(bytes).map_err(|error| error.to_string())?;
    let mut verdicts = Verdicts::with_capacity(batch.len() * PASS_BYTES);
    if batch.has_timers() {
        for timer in batch.iter().map(Timer::of) {
            let _: Done = transform.timer(timer, verdicts.next_verdict())?;
        }
    } else {
        transform.process(batch, &mut verdicts)?;
    }
    assert_eq!(verdicts.len(), batch.len(), "`process` must write one verdict per record");
    Ok(verdicts.into_bytes())
}

pub(crate) fn flush<T: Transform>(transform: &mut T) -> Result<Vec<u8>, String> {
    let mut verdicts = Verdicts::with_capacity(0);
    let mut result = Ok(());
    let _ = verdicts.next_verdict().emit(|out| result = transform.flush(out));
    result.map(|()| verdicts.into_bytes())
}
