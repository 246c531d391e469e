// A Node server that takes part in checkpoints. Try it:
//
//   thawbox run --name agent --mount "$PWD:/agent:ro" --hooks http://127.0.0.1:8000 \
//     --ready http://127.0.0.1:8000/internal/checkpoint-ready -- node /agent/agent.js
//   thawbox fork agent -n 3
'use strict'
const thawbox = require('./thawbox')
const crypto = require('node:crypto')
const http = require('node:http')

const state = { nonce: crypto.randomBytes(16).toString('hex'), answered: 0, told: [] }

thawbox.beforeCheckpoint(async () => { state.told.push('before') })
thawbox.afterCheckpoint(async (event) => { state.told.push(event.what) })
thawbox.afterRestore(async (event) => {
  state.told.push(event.what)
  state.name = event.identity.name
  state.key = event.secrets.KEY ? event.secrets.KEY.length : 0
})

const draw = () => ({
  'Math.random': Math.random(),
  randomBytes: crypto.randomBytes(16).toString('hex'),
  randomUUID: crypto.randomUUID(),
  randomInt: crypto.randomInt(2 ** 40),
  getRandomValues: Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString('hex')
})
draw() // fills what caches its numbers

http.createServer((request, response) => {
  if (thawbox.handle(request, response)) return
  state.answered += 1
  response.writeHead(200, { 'Content-Type': 'application/json', Connection: 'close' })
  response.end(JSON.stringify({ ...state, who: process.env.WHO, drawn: draw() }))
}).listen(8000, '127.0.0.1', () => thawbox.ready())
