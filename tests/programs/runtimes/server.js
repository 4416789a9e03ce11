// An HTTP server that answers with the number of bytes it was sent.
const http = require('http');

http.createServer((request, response) => {
  let size = 0;
  request.on('data', (data) => { size += data.length; });
  request.on('end', () => response.end(`${size}\n`));
}).listen(Number(process.argv[2]), '127.0.0.1');
