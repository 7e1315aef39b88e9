//! [`host_name`]: the name of the machine.

/// The name of this machine; `None` if it has none, or one that is not UTF-8.
pub fn host_name() -> Option<String> {
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer outlives the call, and its true length is given.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let name = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).ok()?;
    (result == 0 && !name.is_empty()).then(|| name.to_owned())
}
