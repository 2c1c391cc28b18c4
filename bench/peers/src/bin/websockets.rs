//! tokio-websockets, echoing as its README does.

use futures_util::{SinkExt as _, StreamExt as _};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    bench_peers::serve(|stream| async {
        let Ok((_, mut socket)) = tokio_websockets::ServerBuilder::new().accept(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
}
