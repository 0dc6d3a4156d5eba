#!/usr/bin/env node
// A second client of the task server, in plain JavaScript, written from docs/protocol.md alone and meant to be read beside it:
// its sections have the page's names. Node 18 or later, no dependencies. It prints one JSON line per reply.

import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const HELP = `Run one session of a task server: reset, steps, state; one JSON line per reply.

    REMOTE_ENV_TOKEN=... node examples/minimal_client.mjs 127.0.0.1:8888
    node examples/minimal_client.mjs 127.0.0.1:8888 --token-file PATH --seed 0 --steps 100

  ADDRESS            host:port, or the path of a Unix socket (default 127.0.0.1:8888)
  --token-file PATH  the file that the server names at its start (JSON with "token"), or one that holds the token alone;
                     without it the environment variable REMOTE_ENV_TOKEN is read
  --seed N           of the first reset and of the actions (default 0)
  --steps N          how many steps; an episode that ends is followed by a reset (default 10)
  --state            ask for the scene's state with each reset and step, too
  --help             this text`;

class LinkCut extends Error {} // this connection is of no more use; the session may go on over another
class DamagedFrame extends LinkCut {}
class SessionLost extends Error {} // the simulator, the session or the server is gone
class ProtocolError extends Error {} // a frame that breaks the page; another connection would not mend that
class ClientError extends Error {} // the user can do something about it

// ---- Frames ----------------------------------------------------------------------------------------------------------

const VERSION = 2, HEADER_BYTES = 40, STALL_S = 20;
const FIXED = 1, STATE = 2, TAIL = 4, WANT_STATE = 8;
const LINK_LIMITS = { body: 2 ** 20, payload: 0 };
const SESSION_LIMITS = { body: 2 ** 26, payload: 2 ** 30 };

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

export function crc32(...parts) {
  let crc = -1;
  for (const part of parts) for (const byte of part) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

export function packFrame({ type, flags = 0, epoch = 0, sequence = 0, acknowledged = 0, body, payload = [] }) {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write("RENV", "latin1");
  header[4] = VERSION;
  header[5] = type;
  header.writeUInt16LE(flags, 6);
  header.writeUInt32LE(epoch, 8);
  header.writeBigUInt64LE(BigInt(sequence), 16);
  header.writeBigUInt64LE(BigInt(acknowledged), 24);
  header.writeUInt32LE(body.length, 32);
  header.writeUInt32LE(payload.reduce((sum, part) => sum + part.length, 0), 36);
  header.writeUInt32LE(crc32(header, body), 12); // taken with zeros in its own place
  return Buffer.concat([header, body, ...payload]);
}

/** The fields of a header, checked before any memory is taken for what follows. */
export function parseHeader(header, limits = SESSION_LIMITS) {
  if (header.toString("latin1", 0, 4) !== "RENV") throw new DamagedFrame("what came is no frame: it does not begin with RENV");
  if (header[4] !== VERSION)
    throw new DamagedFrame(`the server speaks version ${header[4]}, this client ${VERSION}: use ends of one version`);
  const frame = { type: header[5], flags: header.readUInt16LE(6), epoch: header.readUInt32LE(8), crc: header.readUInt32LE(12) };
  frame.sequence = Number(header.readBigUInt64LE(16));
  frame.bodySize = header.readUInt32LE(32);
  frame.payloadSize = header.readUInt32LE(36);
  if (frame.bodySize <= limits.body && frame.payloadSize <= limits.payload) return frame;
  throw new DamagedFrame(`a frame claims ${frame.bodySize} + ${frame.payloadSize} bytes, above the limits`);
}

export function checkCrc(frame, header, body) {
  if (crc32(header.subarray(0, 12), Buffer.alloc(4), header.subarray(16), body) !== frame.crc)
    throw new DamagedFrame("the CRC of a frame is not that of its bytes");
}

/** Frames over a socket. Each byte is copied once: from the socket's chunk into the header, body or array that it belongs to. */
class FrameStream {
  constructor(address) {
    this.socket = net.connect({ ...address, noDelay: true, keepAlive: true });
    this.socket.on("error", () => {}); // whoever reads is told
    this.chunks = this.socket[Symbol.asyncIterator]();
    this.chunk = Buffer.alloc(0);
  }

  send(bytes) { this.socket.write(bytes); } // a failure shows where the answer is read
  close(why = "closed") { this.socket.destroy(new LinkCut(why)); }

  /** The next frame without its payload, which is read with `fill`. `waitS` bounds the wait for its first byte. */
  async receive(limits, waitS) {
    const header = await this.fill(Buffer.alloc(HEADER_BYTES), waitS);
    const frame = parseHeader(header, limits);
    frame.body = await this.fill(Buffer.alloc(frame.bodySize));
    checkCrc(frame, header, frame.body);
    return frame;
  }

  async fill(target, waitS = STALL_S) {
    for (let filled = 0; filled < target.length; waitS = STALL_S) {
      if (!this.chunk.length) this.chunk = await this.nextChunk(waitS);
      const count = this.chunk.copy(target, filled);
      this.chunk = this.chunk.subarray(count);
      filled += count;
    }
    return target;
  }

  async nextChunk(waitS) {
    const timer = waitS === Infinity ? null : setTimeout(() => this.close(`nothing came for ${waitS} s`), waitS * 1000);
    try {
      const { value, done } = await this.chunks.next();
      if (!done) return value;
    } catch (error) {
      throw Object.assign(new LinkCut(error.message), { code: error.code });
    } finally {
      clearTimeout(timer);
    }
    throw new LinkCut("the server ended the connection");
  }
}

// ---- Messages --------------------------------------------------------------------------------------------------------

const HELLO = 1, CHALLENGE = 2, PROOF = 3, WELCOME = 4, REFUSED = 5, PING = 19, LEAVE = 23, REPLY = 24, EVENT = 25;
const READY = 32, RESET = 33, STEP = 34, GET_STATE = 36, CLOSE = 43, RESUMED = 45, RESULT = 64, ERROR = 65;

function sendLink(stream, type, fields, sequence = 0) {
  stream.send(packFrame({ type, sequence, body: Buffer.from(JSON.stringify(fields)) }));
}

async function receiveLink(stream, waitS) {
  const { type, sequence, body } = await stream.receive(LINK_LIMITS, waitS);
  return { type, sequence, fields: JSON.parse(body) };
}

// ---- Handshake -------------------------------------------------------------------------------------------------------

const hmac = (key, ...strings) => createHmac("sha256", key).update(["remote-env", `${VERSION}`, ...strings].join("\0")).digest("hex");
export const proof = (token, side, role, ours, theirs) => hmac(token, side, role, ours, theirs);
export const sessionSecret = (token, id, ours, theirs) => hmac(token, "session", id, ours, theirs);
export const sessionProof = (secret, role, ours, theirs, id) => hmac(secret, "client", role, ours, theirs, id);
const isSame = (ours, theirs) => ours.length === theirs?.length && timingSafeEqual(Buffer.from(ours), Buffer.from(theirs));

/** A connection after its handshake, what WELCOME said, and both nonces. With `secret`, `hello.session` is the id of a session. */
async function connect(address, token, hello, secret) {
  const stream = new FrameStream(address);
  const timer = setTimeout(() => stream.close("no connection and handshake within 10 s"), 10_000);
  try {
    const ours = randomBytes(32).toString("hex");
    sendLink(stream, HELLO, { ...hello, nonce: ours });
    const { nonce: theirs, proof: claimed } = await expectLink(stream, CHALLENGE);
    if (!isSame(proof(token, "server", hello.role, ours, theirs), claimed))
      throw new ClientError("the server's token is another than ours: pass the file that the server named at its start as --token-file");
    const proofs = { proof: proof(token, "client", hello.role, ours, theirs) };
    if (secret) proofs.session_proof = sessionProof(secret, hello.role, ours, theirs, hello.session);
    sendLink(stream, PROOF, proofs);
    return { stream, welcome: await expectLink(stream, WELCOME), ours, theirs };
  } catch (error) {
    stream.close();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

async function expectLink(stream, due) {
  const { type, fields } = await receiveLink(stream);
  if (type === due) return fields;
  if (type !== REFUSED) throw new DamagedFrame(`type ${type} came where ${due} was due`);
  const mayPass = ["busy", "protocol", "version"].includes(fields.kind); // the latter two: one damaged byte is enough
  throw new (mayPass ? LinkCut : SessionLost)(`the server refuses (${fields.kind}): ${fields.message}`);
}

// ---- Values: what carries what ---------------------------------------------------------------------------------------

// Python → here: None null, int Number or (beyond 2^53) BigInt, float Number, bytes Buffer, list Array, tuple Tuple, dict Map.
class Tuple extends Array {}
const MARK = Symbol("mark");
const LARGE_BYTES = 4096, MAX_DEPTH = 64, MAX_VALUES = 1_000_000;
const DTYPES = [ // by their codes; float16 stays bits, a complex number is two floats
  ["bool", Uint8Array], ["int8", Int8Array], ["int16", Int16Array], ["int32", Int32Array], ["int64", BigInt64Array],
  ["uint8", Uint8Array], ["uint16", Uint16Array], ["uint32", Uint32Array], ["uint64", BigUint64Array],
  ["float16", Uint16Array], ["float32", Float32Array], ["float64", Float64Array],
  ["complex64", Float32Array, 2], ["complex128", Float64Array, 2],
].map(([name, Items, parts = 1]) => ({ name, Items, parts }));

/** An array of numpy's, in C order and memory of its own (this machine's order of bytes, little-endian); a scalar's shape is null. */
class NumpyArray {
  constructor(dtype, shape) {
    Object.assign(this, { dtype, shape, data: new dtype.Items(countOf(dtype, shape)) });
    this.bytes = Buffer.from(this.data.buffer);
  }
}
const countOf = (dtype, shape) => (shape ?? []).reduce((product, size) => product * size, dtype.parts);
const sizeOf = (dtype, shape) => countOf(dtype, shape) * dtype.Items.BYTES_PER_ELEMENT;
const fitNumber = (big) => (Number.isSafeInteger(Number(big)) ? Number(big) : big);

/** Reads a body: fixed layouts and MessagePack values. Large arrays are made here and noted in `large`, for the payload. */
export class BodyReader {
  constructor(body, payloadSize = 0) {
    Object.assign(this, { body, at: 0, values: 0, payloadLeft: payloadSize, large: [] });
  }

  /** The position of the next `size` bytes, which are there. */
  take(size) {
    if (size > this.body.length - this.at) throw new ProtocolError("a body ends in the middle of a value");
    this.at += size;
    return this.at - size;
  }

  end() {
    if (this.at !== this.body.length || this.payloadLeft) throw new ProtocolError("bytes of a body or payload are left over");
  }

  value(depth = 0) {
    const value = this.valueOrMark(depth);
    if (value === MARK) throw new ProtocolError("a mark stands elsewhere than first in an array");
    return value;
  }

  valueOrMark(depth) {
    if (++this.values > MAX_VALUES || depth > MAX_DEPTH) throw new ProtocolError("a body holds too many values, or too deep ones");
    const byte = this.body[this.take(1)];
    if (byte < 0x80) return byte;
    if (byte < 0x90) return this.map(byte & 15, depth + 1);
    if (byte < 0xa0) return this.array(byte & 15, depth + 1);
    if (byte < 0xc0) return this.text(byte & 31);
    if (byte >= 0xe0) return byte - 256;
    const width = (first, narrowest = 1) => narrowest << (byte - first);
    switch (byte) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return Buffer.from(this.bytes(this.uint(width(0xc4))));
      case 0xc7: case 0xc8: case 0xc9: return this.extension(this.uint(width(0xc7)));
      case 0xca: return this.body.readFloatBE(this.take(4));
      case 0xcb: return this.body.readDoubleBE(this.take(8));
      case 0xcc: case 0xcd: case 0xce: return this.uint(width(0xcc));
      case 0xcf: return fitNumber(this.body.readBigUInt64BE(this.take(8)));
      case 0xd0: case 0xd1: case 0xd2: return this.body.readIntBE(this.take(width(0xd0)), width(0xd0));
      case 0xd3: return fitNumber(this.body.readBigInt64BE(this.take(8)));
      case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8: return this.extension(width(0xd4));
      case 0xd9: case 0xda: case 0xdb: return this.text(this.uint(width(0xd9)));
      case 0xdc: case 0xdd: return this.array(this.uint(width(0xdc, 2)), depth + 1);
      case 0xde: case 0xdf: return this.map(this.uint(width(0xde, 2)), depth + 1);
    }
    throw new ProtocolError("the byte c1 is no value");
  }

  uint(size) { return this.body.readUIntBE(this.take(size), size); }
  bytes(size) { return this.body.subarray(this.take(size), this.at); }
  text(size) { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.bytes(size)); }

  /** A list; after a mark a tuple (a graph, too, is one here). */
  array(count, depth) {
    this.claim(count);
    const items = Array.from({ length: count }, (_, index) => (index ? this.value(depth) : this.valueOrMark(depth)));
    return items[0] === MARK ? Tuple.from(items.slice(1)) : items;
  }

  map(count, depth) {
    this.claim(2 * count);
    const pairs = Array.from({ length: count }, () => [this.value(depth), this.value(depth)]);
    const map = new Map(pairs);
    if (map.size !== count) throw new ProtocolError("a key of a dict comes twice");
    return map;
  }

  claim(count) {
    if (count > this.body.length - this.at) throw new ProtocolError("a list or dict claims more elements than there are bytes");
  }

  extension(size) {
    const type = this.body[this.take(1)];
    const end = this.at + size;
    const value = this.extensionOf(type, size);
    if (this.at !== end) throw new ProtocolError(`an extension of type ${type} has not the size of what it holds`);
    return value;
  }

  extensionOf(type, size) {
    if (type === 1 && this.body[this.take(1)] < 2) return MARK;
    if (type === 2 && size) return fitNumber(BigInt.asIntN(8 * size, BigInt(`0x${this.bytes(size).toString("hex")}`)));
    if (type === 3) return { real: this.body.readDoubleLE(this.take(8)), imaginary: this.body.readDoubleLE(this.take(8)) };
    const dtype = type > 3 && type < 7 && DTYPES[this.body[this.take(1)]];
    if (!dtype) throw new ProtocolError(`an extension of type ${type}, or its dtype, is not known`);
    if (type === 4) return this.inlineArray(dtype, null);
    const shape = Array.from({ length: this.body[this.take(1)] }, () => this.body.readUInt32LE(this.take(4)));
    return type === 5 ? this.inlineArray(dtype, shape) : this.largeArray(dtype, shape);
  }

  inlineArray(dtype, shape) {
    const bytes = this.bytes(sizeOf(dtype, shape));
    const array = new NumpyArray(dtype, shape);
    bytes.copy(array.bytes);
    return array;
  }

  largeArray(dtype, shape) {
    this.payloadLeft -= sizeOf(dtype, shape);
    if (this.payloadLeft < 0) throw new ProtocolError("the large arrays of a body are more than its payload");
    this.large.push(new NumpyArray(dtype, shape));
    return this.large.at(-1);
  }

  // ---- Fixed layouts

  fixed(space) {
    const type = space.get("type"), spaces = space.get("spaces");
    if (type === "Discrete") return fitNumber(this.body.readBigInt64LE(this.take(9) + 1));
    if (type === "Dict") return new Map([...spaces].map(([key, part]) => [key, this.fixed(part)]));
    if (type === "Tuple") return Tuple.from(spaces, (part) => this.fixed(part));
    const [dtype, shape] = arrayOf(space);
    return sizeOf(dtype, shape) >= LARGE_BYTES ? this.largeArray(dtype, shape) : this.inlineArray(dtype, shape);
  }

  transition() {
    const reward = this.body.readDoubleLE(this.take(8));
    const flags = this.body[this.take(2) + 1];
    return { reward, terminated: !!(flags & 1), truncated: !!(flags & 2) };
  }

  state() {
    const layout = this.body.readUInt32LE(this.take(4));
    return { layout, vector: this.inlineArray(dtypeNamed("float64"), [this.body.readUInt32LE(this.take(4))]) };
  }
}

const dtypeNamed = (name) => DTYPES.find((dtype) => dtype.name === name);

/** The dtype and shape of a space whose values are arrays. */
function arrayOf(space) {
  const type = space.get("type");
  if (type === "MultiBinary") return [dtypeNamed("int8"), [space.get("n")].flat()];
  return [dtypeNamed(space.get("dtype")), type === "Box" ? space.get("shape") : space.get("nvec").shape];
}

/** What this client sends as a MessagePack value: a tuple of ints and None, a bool. */
export function packValue(value) {
  if (value instanceof Tuple) return Buffer.concat([Buffer.from([0x91 + value.length, 0xd4, 1, 0]), ...Array.from(value, packValue)]);
  if (value === null) return Buffer.from([0xc0]);
  if (typeof value === "boolean") return Buffer.from([value ? 0xc3 : 0xc2]);
  if (value >= 0 && value < 128) return Buffer.from([Number(value)]);
  const bytes = Buffer.alloc(9, 0xd3);
  bytes.writeBigInt64BE(BigInt(value), 1);
  return bytes;
}

/** An action in its space's fixed layout: body and payload. */
export function packAction(space, action) {
  const isLarge = action.bytes?.length >= LARGE_BYTES;
  if (space.get("type") === "Box") return isLarge ? { body: Buffer.alloc(0), payload: [action.bytes] } : { body: action.bytes };
  const body = Buffer.alloc(9); // its first byte: a plain integer
  body.writeBigInt64LE(BigInt(action), 1);
  return { body };
}

// ---- A session's states, and when a link breaks ------------------------------------------------------------------------

const RECONNECT_S = 60, HEARTBEAT_S = 5, SILENCE_S = 20, CALL_S = 120, MOST_DAMAGED = 5;

class Session {
  sequence = 0; // of the last request that was made
  received = 0; // of the last reply that was read whole
  damaged = 0; // damaged frames since then
  asked = 0; // requests on the control connection
  answers = new Map(); // who waits for their replies

  /** A session whose simulator is ready, with its spaces. */
  static async open(address, token) {
    const client = `minimal_client.mjs on ${os.hostname()} pid ${process.pid}`;
    const hello = { role: "control", session: "new", client, resume_s: RECONNECT_S };
    const { stream, welcome, ours, theirs } = await connect(address, token, hello);
    const secret = sessionSecret(token, welcome.session, ours, theirs);
    const session = Object.assign(new Session(), { address, token, secret, id: welcome.session, task: welcome.task });
    try {
      await session.start(stream);
      if (welcome.num_envs) throw new ClientError(`the server holds a batch of ${welcome.num_envs} environments, this client steps one`);
    } catch (error) {
      await session.leave();
      throw error;
    }
    return session;
  }

  async start(control) {
    this.heartbeat = setInterval(() => this.beat(), HEARTBEAT_S * 1000);
    await new Promise((resolve, reject) => {
      Object.assign(this, { isReady: resolve, isLost: reject });
      this.keepControl(control);
    });
    await this.persist(() => this.begin());
  }

  /** Open the data connection and read READY, whose epoch all further frames carry. */
  async begin() {
    await this.dialData(null);
    const frame = await this.receive(READY);
    this.ready = (await this.readBody(frame)).value;
    this.epoch = frame.epoch;
  }

  /** Send one request and return its reply, over as many connections as it takes: the server runs it once. */
  async request(type, { flags = 0, body, payload, space }) {
    const sequence = ++this.sequence;
    this.underWay = packFrame({ type, flags, epoch: this.epoch, sequence, acknowledged: this.received, body, payload });
    this.stream.send(this.underWay);
    const reply = await this.persist(async (isFirst) => {
      if (!isFirst) await this.resume();
      return this.readReply(type, space);
    });
    this.received = sequence;
    this.damaged = 0;
    return reply;
  }

  async resume() {
    await this.dialData(this.received);
    const { sequence: taken, epoch } = await this.receive(RESUMED);
    if (epoch !== this.epoch || taken < this.received || taken > this.sequence)
      throw new SessionLost(`the server resumes at request ${taken}; this client has made ${this.sequence}, ${this.received} were answered`);
    if (taken < this.sequence) this.stream.send(this.underWay); // byte for byte, with what it acknowledged then
    console.error(`the link was cut; resumed with request ${taken} taken, reply ${this.received} received`);
  }

  async readReply(request, space) {
    const frame = await this.receive(RESULT, ERROR);
    if (frame.sequence !== this.sequence || frame.epoch !== this.epoch)
      throw new DamagedFrame(`reply ${frame.sequence} came, due was ${this.sequence}`);
    return { type: frame.type, ...(await this.readBody(frame, request, space)) };
  }

  async receive(...types) {
    const frame = await this.stream.receive(SESSION_LIMITS, Math.max(CALL_S, this.ready?.get("step_timeout_s") ?? 0));
    if (!types.includes(frame.type)) throw new DamagedFrame(`type ${frame.type} came where ${types.join(" or ")} was due`);
    return frame;
  }

  /** The parts of a body in their order; then the payload, each array straight into its own memory. */
  async readBody({ flags, body, payloadSize }, request, space) {
    const reader = new BodyReader(body, payloadSize);
    const reply = {};
    if (flags & FIXED && request === STEP) Object.assign(reply, reader.transition());
    if (flags & FIXED) reply.observation = reader.fixed(space);
    if (flags & STATE) reply.state = reader.state();
    if (flags & TAIL) reply.value = reader.value();
    reader.end();
    for (const array of reader.large) await this.stream.fill(array.bytes);
    return reply;
  }

  async dialData(resume) {
    this.stream?.close(); // it may be damaged rather than gone
    this.stream = await this.dial({ role: "data", session: this.id, resume });
  }

  async dial(hello) {
    try {
      return (await connect(this.address, this.token, hello, this.secret)).stream;
    } catch (error) {
      throw error.code === "ECONNREFUSED" ? new SessionLost(`the server is gone: ${error.message}`) : error;
    }
  }

  /** Try until it works, with growing pauses: for a link that is cut there is another one, everything else is raised. */
  async persist(attempt) {
    let givesUp; // counted from the first cut: a long call is none
    for (let pauseS = 0.05, isFirst = true; ; pauseS = Math.min(2 * pauseS, 2), isFirst = false) {
      try {
        return await attempt(isFirst);
      } catch (error) {
        if (this.lost) throw this.lost;
        if (!(error instanceof LinkCut)) throw error;
        if (error instanceof DamagedFrame && ++this.damaged >= MOST_DAMAGED) throw new SessionLost(`again and again: ${error.message}`);
        givesUp ??= Date.now() + RECONNECT_S * 1000;
        if (Date.now() > givesUp) throw new SessionLost(`no connection in ${RECONNECT_S} s: ${error.message}`);
      }
      await sleep(pauseS * 1000 * (0.5 + Math.random()));
    }
  }

  /** Follow the control connection for as long as the session lives, and take the session back whenever it breaks. */
  async keepControl(stream) {
    try {
      while (!this.isOver) {
        this.control = stream;
        await this.followControl().catch(() => this.dropControl()); // whatever broke it, another is made
        await sleep(50);
        if (!this.isOver) stream = await this.persist(() => this.dial({ role: "control", session: this.id }));
      }
    } catch (error) {
      this.isOver = true;
      this.lose(error);
    }
  }

  async followControl() {
    for (this.heard = Date.now(); ; this.heard = Date.now()) {
      const { type, sequence, fields } = await receiveLink(this.control, Infinity);
      if (type === REPLY) this.answers.get(sequence)?.resolve(fields), this.answers.delete(sequence);
      if (type === EVENT && fields.state === "ready") this.isReady();
      if (type === EVENT && ["failed", "dead"].includes(fields.state)) this.lose(new SessionLost(reasonOf(fields)));
    }
  }

  dropControl() {
    this.control.close();
    this.control = null;
    for (const { reject } of this.answers.values()) reject(new LinkCut("the control connection broke"));
    this.answers.clear();
  }

  /** Ask the supervisor; `followControl` reads the answer. */
  async ask(type, fields) {
    if (!this.control) throw new LinkCut("the control connection is being made anew");
    const sequence = ++this.asked;
    sendLink(this.control, type, fields, sequence);
    return new Promise((resolve, reject) => this.answers.set(sequence, { resolve, reject }));
  }

  /** Notice a peer that has vanished without a word: a ping, and an end to both connections when long nothing has come. */
  beat() {
    if (!this.control) return;
    if (Date.now() - this.heard < SILENCE_S * 1000) return void this.ask(PING, { session: this.id }).catch(() => {});
    for (const stream of [this.control, this.stream]) stream?.close(`no answer for ${SILENCE_S} s`);
  }

  lose(error) {
    this.lost ??= error;
    this.isLost(error);
    this.stream?.close(); // whoever waits there learns of `lost`
  }

  /** CLOSE, upon which the simulator ends the data connection; then LEAVE, which ends the session. */
  async leave() {
    try {
      if (this.epoch && !this.lost) {
        this.stream.send(packFrame({ type: CLOSE, epoch: this.epoch, body: Buffer.alloc(0) }));
        await this.stream.receive(SESSION_LIMITS, 10).catch(() => {}); // there is no answer but the connection's end
      }
      await this.persist(() => this.ask(LEAVE, {}));
    } catch (error) {
      if (!this.lost) throw error; // what is gone needs no leaving
    } finally {
      this.isOver = true;
      clearInterval(this.heartbeat);
      for (const stream of [this.control, this.stream]) stream?.close();
    }
  }
}

const reasonOf = ({ state, kind, message, why, log_tail: tail }) =>
  `the simulator is ${state}: ${[kind, message ?? why].filter(Boolean).join(": ")}${tail ? `\n${tail}` : ""}`;

// ---- Spaces: a sample of a Box or Discrete -----------------------------------------------------------------------------

/** Numbers from 0 to 1, the same for the same seed: a linear congruence with the constants of Numerical Recipes. */
function randomFrom(seed) {
  return () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

/** A value of the space; where it has no bounds zero, or what is next to it. */
function sample(space, random) {
  const type = space.get("type");
  if (type === "Discrete") return drawn(random, space.get("start"), space.get("start") + space.get("n") - 1, true);
  if (type !== "Box" || space.get("dtype") === "float16")
    throw new ClientError(`this client makes actions for Discrete and for Box (but float16), not for ${type}`);
  const action = new NumpyArray(...arrayOf(space));
  const isInteger = !space.get("dtype").startsWith("float");
  const bound = (key, index) => Number(space.get(key).data[space.get(key).shape ? index : 0]);
  action.data.forEach((zero, index) => {
    const number = drawn(random, bound("low", index), bound("high", index), isInteger);
    action.data[index] = typeof zero === "bigint" ? BigInt(number) : number;
  });
  return action;
}

function drawn(random, low, high, isInteger) {
  if (!Number.isFinite(high - low)) return Math.min(Math.max(0, low), high);
  return isInteger ? low + Math.floor(random() * (high - low + 1)) : low + random() * (high - low);
}

// ---- What is printed ---------------------------------------------------------------------------------------------------

/** A value as JSON has it: small arrays as lists, large ones by their shape and SHA-256, what JSON lacks as text. */
function plain(value) {
  if (value instanceof Map) return Object.fromEntries(Array.from(value, ([key, part]) => [plain(key), plain(part)]));
  if (Buffer.isBuffer(value)) return value.toString("hex");
  if (Array.isArray(value)) return Array.from(value, plain);
  if (value instanceof NumpyArray) return plainArray(value);
  const isNumber = ["number", "bigint"].includes(typeof value);
  return isNumber && !Number.isFinite(fitNumber(value)) ? String(value) : value;
}

function plainArray({ dtype, shape, data, bytes }) {
  if (data.length > 64 || dtype.parts > 1 || dtype.name === "float16")
    return { dtype: dtype.name, shape, sha256: createHash("sha256").update(bytes).digest("hex") };
  let numbers = Array.from(data, (item) => (dtype.name === "bool" ? !!item : plain(typeof item === "bigint" ? fitNumber(item) : item)));
  for (const size of [...(shape ?? [])].reverse()) // rows of the last axis first
    numbers = Array.from({ length: numbers.length / size || 0 }, (_, row) => numbers.slice(row * size, (row + 1) * size));
  return numbers[0] ?? [];
}

const layouts = new Map(); // of this session's states, by number
const print = (fields) => console.log(JSON.stringify(plain(new Map(Object.entries(fields)))));

function report(session, name, { type, value, state, ...fixed }, action) {
  const { layout, ...reply } = { ...fixed, ...Object.fromEntries(value ?? []) };
  if (type === ERROR) return reportError(session, name, reply);
  if (layout) layouts.set(state.layout, layout);
  if (state) reply.state = new Map([["time", state.vector.data[0]], ...layouts.get(state.layout), ["vector", state.vector]]);
  print({ reply: name, request: session.sequence, action, ...reply });
  return reply;
}

function reportError(session, name, { kind, type, message, traceback }) {
  print({ reply: "ERROR", request: session.sequence, of: name, kind, type, message });
  if (name !== "GET_STATE" || kind !== "Unsupported") throw new ClientError(`the ${name} failed: ${type}: ${message}\n${traceback ?? ""}`);
}

// ---- One run -----------------------------------------------------------------------------------------------------------

async function play(session, { seed, steps, state }) {
  const space = session.ready.get("observation_space"), actions = session.ready.get("action_space");
  const flags = state ? WANT_STATE : 0;
  const random = randomFrom(seed);
  const ask = async (name, type, parts, action) => report(session, name, await session.request(type, { ...parts, space }), action);
  const reset = (seed) => ask("RESET", RESET, { flags, body: packValue(Tuple.of(seed, null)) });
  const readState = () => ask("GET_STATE", GET_STATE, { body: packValue(false) });

  print({ reply: "READY", task: session.task, observation_space: space, action_space: actions });
  await reset(seed);
  await readState();
  for (let step = 0; step < steps; step++) {
    const action = sample(actions, random);
    const reply = await ask("STEP", STEP, { flags: flags | FIXED, ...packAction(actions, action) }, action);
    if (reply.terminated || reply.truncated) await reset(null);
  }
  await readState();
}

const OPTIONS = {
  "token-file": { type: "string" }, seed: { type: "string", default: "0" }, steps: { type: "string", default: "10" },
  state: { type: "boolean" }, help: { type: "boolean", short: "h" },
};

function addressFrom(text = "127.0.0.1:8888") {
  if (text.includes("/")) return { path: text };
  const [, host, port] = /^\[?(.+?)\]?:(\d+)$/.exec(text) ?? [];
  if (!port) throw new ClientError(`${text} is no address: say host:port, or the path of a Unix socket`);
  return { host, port: Number(port) };
}

function tokenFrom(path) {
  const text = path ? readFileSync(path, "utf8").trim() : process.env.REMOTE_ENV_TOKEN;
  if (!text) throw new ClientError("no token: pass --token-file (the server names the file at its start), or set REMOTE_ENV_TOKEN");
  return text.startsWith("{") ? JSON.parse(text).token : text;
}

function countFrom(name, text) {
  if (!/^\d+$/.test(text)) throw new ClientError(`--${name} is a whole number, 0 or above; got ${text}`);
  return Number(text);
}

async function main() {
  const { values: options, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  if (options.help) return console.log(HELP);
  const wishes = { ...options, seed: countFrom("seed", options.seed), steps: countFrom("steps", options.steps) };
  const session = await Session.open(addressFrom(positionals[0]), tokenFrom(options["token-file"]));
  try {
    await play(session, wishes);
  } finally {
    await session.leave();
  }
}

function complain(error) {
  const isOurs = [LinkCut, SessionLost, ProtocolError, ClientError].some((kind) => error instanceof kind) || error.code;
  const hint = error.code === "ECONNREFUSED" ? "; start a server there: python servers/task_server.py --env CartPole-v1 --port 8888" : "";
  console.error(isOurs ? `minimal_client: ${error.message}${hint}` : error);
  process.exitCode = 1;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) main().catch(complain);
