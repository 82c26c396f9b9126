//! The one socket option that no safe library sets.

use std::io;
use std::os::fd::BorrowedFd;

/// Sets `SO_RCVLOWAT`: the socket counts as readable when so many bytes are there, or its buffer
/// is full, or nothing more will come.
///
/// For TCP on Linux, where `poll` and `epoll` honour it and a lower value makes what is there
/// readable at once (socket(7); `tcp_set_rcvlowat` in net/ipv4/tcp.c). For a Unix socket `poll`
/// does not look at it.
#[cfg(target_os = "linux")]
pub(crate) fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    #[expect(unsafe_code, reason = "neither std nor rustix nor socket2 sets this option")]
    // SAFETY: the descriptor is open for as long as it is borrowed; the pointer is that of a live
    // `c_int`, whose size is the length that is given; the kernel only reads it, before it returns.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Elsewhere the readiness that a lower value brings is not told to a poller that waits already.
#[cfg(not(target_os = "linux"))]
pub(crate) fn set_receive_low_water(_: BorrowedFd<'_>, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
