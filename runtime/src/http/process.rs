//! What the process uses, from `/proc`.

/// Processor time, memory and files of the process, as far as known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProcessUsage {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
}

impl ProcessUsage {
    /// Resident memory.
    pub(super) fn resident_bytes() -> Option<u64> {
        // SAFETY: the call reads a constant of the system.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let pages = read("statm").split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.map(|pages| pages * u64::try_from(page_bytes).unwrap_or(4096))
    }

    /// Processor time and memory. With thousands of threads, the kernel needs a millisecond to add
    /// up their times.
    pub(super) fn now() -> Self {
        // SAFETY: the call reads a constant of the system.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let stat = read("stat");
        // The name of the process, in parentheses, may contain spaces. The fields after it are
        // numbered from 3: utime is 14, stime is 15.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3).and_then(|field| field.parse::<f64>().ok());
        Self {
            cpu_seconds: number(14).zip(number(15)).map(|(user, system)| (user + system) / ticks.max(1) as f64),
            resident_bytes: Self::resident_bytes(),
        }
    }

    /// Open files, if they can be counted.
    pub(super) fn open_files() -> Option<usize> {
        std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default()
}
