// npm's `ws` as its README has it: no compression, which is its default, and `bufferutil` beside it for masking.
import { WebSocketServer } from "ws";

const [host, port] = process.argv[2].split(":");
const server = new WebSocketServer({ host, port: Number(port), perMessageDeflate: false, backlog: 4096 });
server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
