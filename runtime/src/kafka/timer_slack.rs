//! Lets the kernel wake librdkafka's threads together.
//!
//! A client has four threads or more, and each wakes every second to look for something to do. With
//! a hundred idle pipelines these are a thousand wake-ups per second, each alone on a sleeping
//! processor. The kernel may delay a timer by the *slack* of its thread, and so handles several
//! with one interrupt. Threads inherit the slack of the thread that starts them.

/// How late timers of a client's threads may be. librdkafka's own shortest wait is 5 ms
/// (`fetch.queue.backoff.ms`).
#[cfg(target_os = "linux")]
const SLACK_NANOSECONDS: libc::c_ulong = 5_000_000;

/// Creates a client: the threads that `create` starts have the larger slack.
#[cfg(target_os = "linux")]
pub(super) fn with_timer_slack<T>(create: impl FnOnce() -> T) -> T {
    // SAFETY: the calls read and change a number of this thread. Zero arguments are not used.
    let before = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
    // SAFETY: see above.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOSECONDS, 0, 0, 0) };
    let created = create();
    // Zero, or less after a failure, would restore the default of the process, which is the same.
    let before = libc::c_ulong::try_from(before).unwrap_or(0);
    // SAFETY: see above.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, before, 0, 0, 0) };
    created
}

/// Creates a client.
#[cfg(not(target_os = "linux"))]
pub(super) fn with_timer_slack<T>(create: impl FnOnce() -> T) -> T {
    create()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_client_have_the_slack_and_its_creator_does_not_keep_it() {
        // SAFETY: the call reads a number of this thread.
        let slack = || unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
        let before = slack();
        let of_thread = with_timer_slack(|| std::thread::spawn(slack).join()).unwrap();
        assert_eq!((of_thread, slack()), (5_000_000, before));
    }
}
