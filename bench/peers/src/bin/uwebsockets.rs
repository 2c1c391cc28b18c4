//! uWebSockets through its C API, from the library inside the Python package `socketify`, without any Python.
//!
//! Arguments: the address to listen on, and the library. Declarations are those of the package's `native.py`.

use std::ffi::{CString, c_char, c_int, c_uint, c_ushort, c_void};
use std::net::SocketAddr;

use libloading::{Library, Symbol};

type App = *mut c_void;
type Socket = *mut c_void;
type Handler = Option<unsafe extern "C" fn()>;
type Message = unsafe extern "C" fn(Socket, *const c_char, usize, c_int, *mut c_void);
type Send = unsafe extern "C" fn(c_int, Socket, *const c_char, usize, c_int) -> c_int;
type Listening = unsafe extern "C" fn(*mut c_void, ListenConfig, *mut c_void);

#[repr(C)]
struct ContextOptions {
    names: [*const c_char; 6],
    prefer_low_memory: c_int,
}

#[repr(C)]
struct ListenConfig {
    port: c_int,
    host: *const c_char,
    options: c_int,
}

#[repr(C)]
struct Behavior {
    compression: c_int,
    payload_bytes_max: c_uint,
    idle_timeout_s: c_ushort,
    backpressure_max: c_uint,
    close_on_backpressure: bool,
    reset_idle_timeout_on_send: bool,
    send_pings: bool,
    lifetime_max: c_ushort,
    upgrade: Handler,
    open: Handler,
    message: Option<Message>,
    others: [Handler; 5],
}

static SEND: std::sync::OnceLock<Send> = std::sync::OnceLock::new();

/// Answers inside the handler, where the library corks by itself.
unsafe extern "C" fn echo(socket: Socket, bytes: *const c_char, length: usize, opcode: c_int, _: *mut c_void) {
    if let Some(send) = SEND.get() {
        // SAFETY: the arguments are those that the library has just handed over.
        unsafe { send(0, socket, bytes, length, opcode) };
    }
}

unsafe extern "C" fn listening(socket: *mut c_void, _: ListenConfig, _: *mut c_void) {
    if socket.is_null() {
        eprintln!("uWebSockets cannot listen there");
        std::process::exit(1);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().ok_or("the first argument is the address")?.parse()?;
    let path = arguments.next().ok_or("the second argument is the library")?;
    let host = CString::new(address.ip().to_string())?;
    let pattern = CString::new("/*")?;
    // SAFETY: the functions have the signatures of the package's own declarations; all memory that they are given
    // lives until the process ends.
    unsafe {
        let library: &'static Library = Box::leak(Box::new(Library::new(path)?));
        let create: Symbol<unsafe extern "C" fn(c_int, ContextOptions) -> App> = library.get(b"uws_create_app")?;
        let serve: Symbol<unsafe extern "C" fn(c_int, App, *const c_char, Behavior, *mut c_void)> =
            library.get(b"uws_ws")?;
        let listen: Symbol<unsafe extern "C" fn(c_int, App, ListenConfig, Listening, *mut c_void)> =
            library.get(b"uws_app_listen_with_config")?;
        let run: Symbol<unsafe extern "C" fn(c_int, App)> = library.get(b"uws_app_run")?;
        let _ = SEND.set(*library.get::<Send>(b"uws_ws_send")?);
        let app = create(0, ContextOptions { names: [std::ptr::null(); 6], prefer_low_memory: 0 });
        let behavior = Behavior {
            compression: 0,
            payload_bytes_max: 16 << 10,
            // The library's own default; it costs a timer per context, not per socket.
            idle_timeout_s: 120,
            backpressure_max: 64 << 10,
            close_on_backpressure: false,
            reset_idle_timeout_on_send: false,
            send_pings: true,
            lifetime_max: 0,
            upgrade: None,
            open: None,
            message: Some(echo),
            others: [None; 5],
        };
        serve(0, app, pattern.as_ptr(), behavior, std::ptr::null_mut());
        let config = ListenConfig { port: c_int::from(address.port()), host: host.as_ptr(), options: 0 };
        listen(0, app, config, listening, std::ptr::null_mut());
        run(0, app);
    }
    Ok(())
}
