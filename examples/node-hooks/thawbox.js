// Checkpoint hooks for Node programs, by HTTP: run the sandbox with --hooks http://127.0.0.1:PORT.
//
//   const thawbox = require('./thawbox')          // before anything that takes functions out of `crypto`
//   thawbox.beforeCheckpoint(async () => { ... })
//   thawbox.afterRestore(async (event) => { ... })  // event: what, identity, slept, environment, secrets
//   thawbox.ready()
//   http.createServer((request, response) => { if (!thawbox.handle(request, response)) ... })
//
// Randomness: every clone has the same memory, so the generators in it are seeded anew before `afterRestore` runs.
// OpenSSL needs reseed.node beside this file (see reseed.c); Math.random, randomUUID and randomInt, which keep numbers
// drawn in advance, are replaced by ones that do not.
'use strict'
const crypto = require('node:crypto')
const fs = require('node:fs')
const { syncBuiltinESMExports } = require('node:module')
const path = require('node:path')

const ADDON = process.env.THAWBOX_RESEED || path.join(__dirname, 'reseed.node')
const before = []
const after = []
const resumed = []
const laid = new Map() // by name: what it replaced
let missing = ['ready()']

const pool = new Uint32Array(256)
let drawn = pool.length

Math.random = () => {
  if (drawn >= pool.length) {
    crypto.randomFillSync(pool)
    drawn = 0
  }
  const high = pool[drawn++] >>> 5
  const low = pool[drawn++] >>> 6
  return (high * 67108864 + low) / 9007199254740992 // 53 bits, as Math.random gives
}
const randomUUID = crypto.randomUUID
crypto.randomUUID = () => randomUUID.call(crypto, { disableEntropyCache: true })
globalThis.crypto.randomUUID = crypto.randomUUID
crypto.randomInt = (low, high, callback) => {
  if (typeof high === 'function' || high === undefined) [low, high, callback] = [0, low, high]
  const span = high - low
  if (!Number.isSafeInteger(low) || !Number.isSafeInteger(high) || span <= 0 || span > 2 ** 48 - 1) {
    throw new RangeError(`randomInt: ${low} to ${high} is no range below 2**48`)
  }
  const limit = 2 ** 48 - (2 ** 48 % span)
  let number = limit
  while (number >= limit) number = crypto.randomBytes(6).readUIntBE(0, 6)
  if (callback === undefined) return low + (number % span)
  process.nextTick(callback, null, low + (number % span))
}
syncBuiltinESMExports()

function reseed () {
  drawn = pool.length
  if (!fs.existsSync(ADDON)) throw new Error(`${ADDON} is missing: clones would share their keys (see reseed.c)`)
  process.dlopen({ exports: {} }, ADDON)
}

async function body (request) {
  const parts = []
  for await (const part of request) parts.push(part)
  return JSON.parse(Buffer.concat(parts).toString() || '{}')
}

async function run (hooks, request, response, prepare, conclude = () => {}) {
  let status = 200
  let answer
  try {
    const event = await body(request)
    answer = { nonce: event.nonce, sandbox: event.identity.id }
    prepare(event)
    for (const hook of hooks) await hook(event)
    Object.assign(answer, conclude())
  } catch (error) {
    status = 500
    answer = { error: String(error) }
  }
  say(response, status, answer)
}

function say (response, status, answer) {
  response.writeHead(status, { 'Content-Type': 'application/json', Connection: 'close' })
  response.end(JSON.stringify(answer))
}

// The environment that a clone was given is its own: it is taken out before a checkpoint, and comes back after it.
function lay (environment) {
  for (const [name, value] of Object.entries(environment || {})) {
    if (!laid.has(name)) laid.set(name, process.env[name])
    process.env[name] = value
  }
}

function giveUp () {
  const held = {}
  for (const [name, replaced] of laid) {
    held[name] = process.env[name]
    if (replaced === undefined) delete process.env[name]
    else process.env[name] = replaced
  }
  laid.clear()
  return { environment: held }
}

function wake (event) {
  if (event.what !== 'checkpoint') reseed()
  lay(event.environment)
  event.secrets = Object.fromEntries(
    Object.entries(event.secrets || {}).map(([name, text]) => [name, Buffer.from(text, 'base64')])
  )
}

const routes = {
  'GET /internal/checkpoint-ready': (_, response) => say(response, missing.length ? 503 : 200, { missing }),
  'POST /internal/before-checkpoint': (request, response) =>
    run([...before].reverse(), request, response, () => {}, giveUp),
  'POST /internal/after-checkpoint': (request, response) => run(resumed, request, response, wake),
  'POST /internal/after-restore': (request, response) => run(after, request, response, wake)
}

module.exports = {
  beforeCheckpoint: (hook) => before.push(hook),
  afterRestore: (hook) => after.push(hook),
  afterCheckpoint: (hook) => resumed.push(hook),
  ready: () => { missing = [] },
  notReady: (...what) => { missing = what },
  // True when the request was one of ours; then it is being answered.
  handle (request, response) {
    const route = routes[`${request.method} ${request.url}`]
    const peer = request.socket.remoteAddress
    if (!route || !['127.0.0.1', '::ffff:127.0.0.1'].includes(peer)) return false
    route(request, response)
    return true
  }
}
