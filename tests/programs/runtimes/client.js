// 200 requests of growing size over ten kept connections; the answers say what arrived.
const http = require('http');

const COUNT = 200;
const STEP = 500;
const port = Number(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 10 });
const body = Buffer.alloc(COUNT * STEP, 'x');
let left = COUNT;

for (let i = 0; i < COUNT; i++) {
  const options = { host: '127.0.0.1', port, agent, method: 'POST', headers: { 'content-length': i * STEP } };
  const request = http.request(options, (response) => {
    let text = '';
    response.on('data', (data) => { text += data; });
    response.on('end', () => {
      if (text !== `${i * STEP}\n`) {
        throw new Error(`request ${i}: ${text}`);
      }
      left -= 1;
      if (left === 0) {
        console.log('ok');
        agent.destroy();
      }
    });
  });
  request.on('error', (error) => { throw error; });
  request.end(body.subarray(0, i * STEP));
}
