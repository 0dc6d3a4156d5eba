// Holds the functions of examples/minimal_client.mjs against recorded conversations: frames with their CRCs, proofs, every body
// read to its last byte, and the requests that the client can make made again. Run by test_javascript_client.py with the paths
// of files of one session, the one that opens it first.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { BodyReader, checkCrc, packAction, packFrame, packValue, parseHeader, proof, sessionProof, sessionSecret } from "../examples/minimal_client.mjs";

const TOKEN = "0123456789abcdef".repeat(4);
const FIXED = 1, STATE = 2, TAIL = 4;
const EVENT = 25, READY = 32, RESET = 33, STEP = 34, GET_STATE = 36;
const handshakes = {};
const counts = { frames: 0, proofs: 0, requests: 0, values: 0 };
let ready, request, secret;

const frames = process.argv.slice(2).flatMap((path) => JSON.parse(readFileSync(path, "utf8")));
for (const { link, from, message, hex } of frames) {
  const bytes = Buffer.from(hex, "hex");
  const frame = parseHeader(bytes);
  frame.body = bytes.subarray(40, 40 + frame.bodySize);
  frame.payload = [bytes.subarray(40 + frame.bodySize)];
  checkCrc(frame, bytes.subarray(0, 40), frame.body);
  assert.deepEqual(packFrame({ ...frame, acknowledged: bytes.readBigUInt64LE(24) }), bytes, message);
  counts.frames += 1;
  if (frame.type <= EVENT) checkLink(link, message, JSON.parse(frame.body));
  else if (from === "client") checkRequest((request = frame));
  else checkReply(frame);
}
console.log(JSON.stringify(counts));

function checkLink(link, message, fields) {
  if (message === "HELLO") handshakes[link] = { ours: fields.nonce, id: fields.session };
  const { ours, theirs, id } = handshakes[link];
  if (message === "CHALLENGE") {
    handshakes[link].theirs = fields.nonce;
    same(proof(TOKEN, "server", link, ours, fields.nonce), fields.proof);
  }
  if (message === "PROOF") same(proof(TOKEN, "client", link, ours, theirs), fields.proof);
  if (message === "WELCOME" && id === "new") secret = sessionSecret(TOKEN, fields.session, ours, theirs);
  if (fields.session_proof) same(sessionProof(secret, link, ours, theirs, id), fields.session_proof);
}

function same(ours, recorded) {
  assert.equal(ours, recorded);
  counts.proofs += 1;
}

function checkRequest({ type, flags, body, payloadSize }) {
  if (ready.has("num_envs")) return; // bodies of batches are beyond this client
  const reader = new BodyReader(body, payloadSize);
  const isFixed = flags & FIXED;
  const value = body.length ? (isFixed ? reader.fixed(ready.get("action_space")) : reader.value()) : null;
  reader.end();
  if (type === STEP && isFixed) assert.deepEqual(packAction(ready.get("action_space"), value).body, body);
  else if (type === RESET || type === GET_STATE) assert.deepEqual(packValue(value), body);
  else return;
  counts.requests += 1;
}

function checkReply({ type, flags, body, payloadSize }) {
  if (ready?.has("num_envs")) return;
  const reader = new BodyReader(body, payloadSize);
  if (flags & FIXED && request.type === STEP) reader.transition();
  if (flags & FIXED) reader.fixed(ready.get("observation_space"));
  if (flags & STATE) reader.state();
  const value = flags & TAIL ? reader.value() : null;
  reader.end();
  if (type === READY) ready = value;
  counts.values += 1;
}
