//! Ends processes: others with all that they have started, and this one without handlers.

use std::io;

/// Sends SIGKILL to a group of processes, which must be one that this process has made.
///
/// Neither std nor tokio can: they end the one process that they have started, and what that has
/// started in turn goes on (kill(2)).
#[cfg(target_os = "linux")]
pub(crate) fn kill_group(leader: u32) -> io::Result<()> {
    let group = match libc::pid_t::try_from(leader) {
        // 0 is our own group, and 1 would stand for every process there is.
        Ok(group) if group > 1 => group,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    #[expect(unsafe_code, reason = "neither std nor tokio can end a group of processes")]
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let outcome = unsafe { libc::kill(-group, libc::SIGKILL) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Elsewhere the process itself is all that is ended.
#[cfg(not(target_os = "linux"))]
pub(crate) fn kill_group(_: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Ends this process without running what was registered for its exit (_exit(2)).
#[cfg(target_os = "linux")]
pub(crate) fn end_at_once(code: u8) -> ! {
    #[expect(unsafe_code, reason = "std ends a process by way of its exit handlers alone")]
    // SAFETY: the call takes a number and does not return.
    unsafe {
        libc::_exit(i32::from(code))
    }
}

/// Elsewhere the handlers run.
#[cfg(not(target_os = "linux"))]
pub(crate) fn end_at_once(code: u8) -> ! {
    std::process::exit(i32::from(code))
}
