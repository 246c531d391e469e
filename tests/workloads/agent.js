// The agent once more, for Node.js: see agent.py and answering.py.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const net = require('node:net');
const { spawn } = require('node:child_process');
const { Worker } = require('node:worker_threads');

const CHUNK = 64 << 10;
const nonce = crypto.randomBytes(16).toString('hex');
const memory = Array.from({ length: 16 }, () => crypto.randomBytes(CHUNK));
const moved = { interval: 0, worker: 0, child: 0 };

const log = fs.openSync('/var/log/agent.log', 'a+');
const deleted = fs.openSync('/tmp/deleted', 'w+');
fs.unlinkSync('/tmp/deleted');
fs.writeSync(deleted, nonce);
let written = nonce.length;

setInterval(() => { moved.interval += 1; }, 5);
const worker = new Worker("setInterval(() => require('node:worker_threads').parentPort.postMessage(1), 5)", { eval: true });
worker.on('message', () => { moved.worker += 1; });
const child = spawn('cat', { stdio: ['pipe', 'pipe', 'ignore'] });
child.stdout.on('data', (bytes) => { moved.child += bytes.length; child.stdin.write('x'); });
child.stdin.write('x');

function grow() {
  memory.push(crypto.randomBytes(CHUNK));
  memory[crypto.randomInt(memory.length)][crypto.randomInt(CHUNK)] ^= 0xff;
  fs.writeSync(log, `${memory.length} chunks\n`);
  const more = crypto.randomBytes(100);
  fs.writeSync(deleted, more);
  written += more.length;
}

function sha256(bytes) { return crypto.createHash('sha256').update(bytes).digest('hex'); }

function kept() {
  const unlinked = Buffer.alloc(written);
  fs.readSync(deleted, unlinked, 0, written, 0);
  return {
    nonce, memory: sha256(Buffer.concat(memory)), chunks: memory.length, log: sha256(fs.readFileSync('/var/log/agent.log')),
    deleted: sha256(unlinked), pids: [process.pid, process.ppid, child.pid], environment: process.env, directory: process.cwd(),
  };
}

function moving() { return { ...moved, monotonic: Number(process.hrtime.bigint() / 1000n) }; }

function allMovedSince(begun) { return Object.entries(moving()).every(([name, now]) => now > begun[name]); }

const server = net.createServer((connection) => {
  const answer = () => server.getConnections((_error, connected) => {
    const descriptors = fs.readdirSync('/proc/self/fd').length - 1 - connected;
    const [, blocked] = /^SigBlk:\s*(\w+)$/m.exec(fs.readFileSync('/proc/self/status', 'utf8'));
    const at_rest = { descriptors, blocked };
    connection.end(JSON.stringify({ kept: kept(), moving: moving(), at_rest }));
  });
  connection.on('error', () => {});
  connection.once('data', (bytes) => {
    const word = bytes.toString().trim();
    if (word === 'grow') grow();
    if (word !== 'move') return answer();
    const begun = moving();
    const waiting = setInterval(() => { if (allMovedSince(begun)) { clearInterval(waiting); answer(); } }, 2);
  });
});
server.listen(8000, '127.0.0.1', () => console.log('agent ready', nonce));
