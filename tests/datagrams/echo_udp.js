// node echo_udp.js PORT: echoes datagrams; ends at SIGTERM.
const socket = require("dgram").createSocket("udp4");
socket.on("message", (data, from) => socket.send(data, from.port, from.address));
socket.bind(Number(process.argv[2]), "127.0.0.1");
process.on("SIGTERM", () => socket.close(() => process.exit(0)));
