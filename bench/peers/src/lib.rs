//! What the peers on tokio have in common: one thread, as fits one core, and a task per connection.

use std::future::Future;
use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

/// Serves on the address named by the first argument until the process is killed.
pub fn serve<F: Future<Output = ()> + 'static>(echo: impl Fn(TcpStream) -> F) {
    let address = std::env::args().nth(1).and_then(|text| text.parse::<SocketAddr>().ok());
    let address = address.expect("the first argument is the address to listen on");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option of it");
        socket.bind(address).expect("a free address");
        let listener = socket.listen(4_096).expect("a listener");
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                // Without it a small answer may wait for the acknowledgement of the last.
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(echo(stream));
            }
        }
    });
}
