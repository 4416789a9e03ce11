// node ask_udp.js PORT COUNT: sends a number, waits for it, sends the next one; prints `ok`.
const port = Number(process.argv[2]);
const count = Number(process.argv[3]);
const socket = require("dgram").createSocket("udp4");
let number = 0;
const ask = () => socket.send(String(number), port, "127.0.0.1");
socket.on("message", (data) => {
  if (String(data) !== String(number)) throw new Error(`${data} came, not ${number}`);
  if (++number < count) return ask();
  console.log("ok");
  socket.close();
});
ask();
