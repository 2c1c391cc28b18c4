//! The same echo over epoll, as most servers are built: level-triggered, one read and one write per event.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, RawFd};

use crate::server::Trouble;

const EVENTS: usize = 1_024;

/// Echoes until the process is killed.
pub fn serve(address: SocketAddr) -> Result<(), Trouble> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call; the others take no pointers.
    let epoll = unsafe {
        let (value, bytes) = ((&raw const on).cast(), size_of::<libc::c_int>() as u32);
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, value, bytes);
        libc::listen(listener.as_raw_fd(), 4_096);
        libc::epoll_create1(0)
    };
    watch(epoll, listener.as_raw_fd())?;
    println!("listening");
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let mut buffer = [0_u8; 4_096];
    loop {
        // SAFETY: the kernel writes at most as many events as there is room for.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as i32, -1) };
        for event in &events[..count.max(0) as usize] {
            let socket = event.u64 as RawFd;
            if socket == listener.as_raw_fd() {
                accept_all(epoll, socket)?;
            } else {
                echo(socket, &mut buffer);
            }
        }
    }
}

fn watch(epoll: RawFd, socket: RawFd) -> std::io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: socket as u64 };
    // SAFETY: the event lives through the call.
    let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &raw mut event) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn accept_all(epoll: RawFd, listener: RawFd) -> std::io::Result<()> {
    loop {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: the address of the peer is not asked for.
        let socket = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        if socket < 0 {
            return Ok(());
        }
        watch(epoll, socket)?;
    }
}

fn echo(socket: RawFd, buffer: &mut [u8]) {
    // SAFETY: the kernel reads and writes inside the buffer only; a socket that is closed leaves the epoll.
    unsafe {
        let bytes = libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0);
        if bytes > 0 {
            // A probe's peer always reads: what does not fit is an error of the measurement, and it would hang.
            libc::send(socket, buffer.as_ptr().cast(), bytes as usize, libc::MSG_NOSIGNAL);
        } else if bytes == 0 || *libc::__errno_location() != libc::EAGAIN {
            libc::close(socket);
        }
    }
}
