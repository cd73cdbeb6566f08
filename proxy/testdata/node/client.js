// A client in another language, made of the .proto alone: node client.js HOST:PORT DIRECTORY_OF_THE_PROTO.
// It prints what it got as one line of JSON. The Go test that runs it checks that.
'use strict';
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos] = process.argv.slice(2);
const definition = loader.loadSync(path.join(protos, 'decree/v1/decree.proto'), {
  includeDirs: [protos], longs: Number, defaults: true, oneofs: true, enums: String, keepCase: true,
});
const { decree } = grpc.loadPackageDefinition(definition);
const client = new decree.v1.DecreeService(address, grpc.credentials.createInsecure());
const shard = 1;
const key = Buffer.from('from node');

const call = (method, request, metadata = new grpc.Metadata()) => new Promise((resolve, reject) =>
  client[method](request, metadata, { deadline: Date.now() + 10000 }, (err, answer) => (err ? reject(err) : resolve(answer))));

const number = (bytes) => Number(bytes.readBigUInt64BE());

// Error is in the details of every error: google.rpc.Status, with an Any in it.
const errorOf = (err) => {
  const bytes = err.metadata.get('grpc-status-details-bin')[0];
  // google.rpc.Status { code = 1; message = 2; details = 3 }, google.protobuf.Any { type_url = 1; value = 2 }: read by hand, as
  // these two are not part of Decree's .proto.
  const fields = (b) => {
    const out = [];
    for (let at = 0; at < b.length;) {
      const varint = () => { let x = 0n; for (let shift = 0n; ; shift += 7n) { const c = b[at++]; x |= BigInt(c & 127) << shift; if (c < 128) return Number(x); } };
      const tag = varint();
      if ((tag & 7) === 0) { out.push([tag >> 3, varint()]); continue; }
      const n = varint();
      out.push([tag >> 3, b.subarray(at, at + n)]);
      at += n;
    }
    return out;
  };
  const any = fields(bytes).find(([n]) => n === 3)[1];
  const value = fields(any).find(([n]) => n === 2)[1];
  const e = {};
  for (const [n, v] of fields(value)) {
    if (n === 1) e.kind = v;
    if (n === 2) e.code = v.toString();
    if (n === 7) e.detail = v.toString();
  }
  return e;
};

async function main() {
  const got = {};
  const { session } = await call('OpenSession', { shard });
  const submit = { shard, commands: [key], session, sequence: 1 };
  const first = await call('Submit', submit);
  const again = await call('Submit', submit); // the same number: the same outcome, and it happened once
  got.first = number(first.replies[0]);
  got.again = number(again.replies[0]);
  got.read = number((await call('Read', { shard, query: key })).answer);
  got.token = number((await call('Read', { shard, query: key, level: 'LEVEL_TOKEN', token: first.index })).answer);
  try {
    await call('Submit', { shard, commands: [Buffer.from('reject')] });
  } catch (err) {
    got.rejected = errorOf(err);
  }
  try {
    await call('Submit', { commands: [key] });
  } catch (err) {
    got.refused = errorOf(err);
  }
  const topology = await call('GetTopology', {});
  got.shards = topology.shards.map((s) => s.shard);

  // Many calls on one stream, answered in any order.
  got.stream = await new Promise((resolve, reject) => {
    const stream = client.Connect();
    const answers = new Map();
    stream.on('data', (m) => {
      for (const a of m.answers) answers.set(a.id, a.answer === 'submit' ? number(a.submit.replies[0]) : a.answer === 'error' ? a.error.code : a.answer);
      if (answers.size === 101) stream.end();
    });
    stream.on('error', reject);
    stream.on('end', () => resolve({ answers: answers.size, last: Math.max(...[...answers.values()].filter((v) => typeof v === 'number')), bad: answers.get(101) }));
    const calls = [];
    for (let i = 1; i <= 100; i++) calls.push({ id: i, timeout_ms: 10000, submit: { shard, commands: [key], session, sequence: i + 1, acknowledged: 1 } });
    calls.push({ id: 101, submit: { shard } });
    stream.write({ calls });
  });
  await call('CloseSession', { shard, session });
  console.log(JSON.stringify(got));
}

main().then(() => process.exit(0), (err) => { console.error(err); process.exit(1); });
