// A target that returns every byte: `node echo-target.mjs HOST PORT`. Prints `ready`, and on SIGUSR2 `connections N`, those
// that are open now.
import { createServer } from "node:net";

const [host, port] = process.argv.slice(2);
let open = 0;
const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  open++;
  socket.on("error", () => undefined);
  socket.once("close", () => open--);
  socket.pipe(socket);
});
process.on("SIGUSR2", () => console.log(`connections ${open}`));
server.listen({ host, port: Number(port), backlog: 4096 }, () => console.log("ready"));
