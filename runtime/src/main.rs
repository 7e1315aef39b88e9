//! The binary `trunkline`.

use std::ffi::c_char;

/// Batches are allocated in one thread and freed in another. glibc's malloc is slow at that, and
/// its memory grows. jemalloc needed a third less CPU time and memory (`tests/bench/RESULTS.md`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas, and freed pages return to the system after half a second: peaks are short, and
/// memory is bounded (I6). Thread caches are small: those of the threads of a hundred idle
/// pipelines held a quarter of their memory. With 12 objects of a size a record costs 0.2 % more
/// instructions than with 20, with 4 it costs 3 % more.
#[allow(non_upper_case_globals, reason = "the name that jemalloc looks for")]
#[unsafe(no_mangle)]
pub static malloc_conf: Option<&'static c_char> =
    // SAFETY: the bytes are static and end with a zero.
    unsafe {
        Some(&*c"narenas:4,dirty_decay_ms:500,muzzy_decay_ms:0,background_thread:true,tcache_max:2048,tcache_nslots_small_min:2,tcache_nslots_small_max:12".as_ptr())
    };

fn main() -> ! {
    // HTTP clients take the provider of the process: ring, as all other connections do. It fails
    // only if there is one already.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    trunkline::cli::main()
}
