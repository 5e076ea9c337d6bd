// A target that returns every byte: `node echo-target.mjs HOST PORT`. Prints `ready` when it listens.
import { createServer } from "node:net";

const [host, port] = process.argv.slice(2);
const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  socket.on("error", () => undefined);
  socket.pipe(socket);
});
server.listen({ host, port: Number(port), backlog: 4096 }, () => console.log("ready"));
