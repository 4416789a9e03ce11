// An ordinary node program (libuv): node echo.js ADDRESS PORT sends back what it gets.
"use strict";
const net = require("net");
const [address, port] = process.argv.slice(2);
const server = net.createServer((socket) => {
  socket.setNoDelay(true);
  socket.on("data", (data) => socket.write(data));
  socket.on("error", () => socket.destroy());
});
server.listen({ host: address, port: Number(port), backlog: 1024 }, () => console.log("ready"));
process.on("SIGTERM", () => process.exit(0));
