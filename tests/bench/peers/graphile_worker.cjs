// The Node side of graphile_worker.py; what it is asked and says is told in node_side.py.
const readline = require("node:readline");
const { Logger, makeWorkerUtils, run } = require("graphile-worker");

const [mode, connectionString, slots, ...rest] = process.argv.slice(2);
const preset = {
  worker: {
    connectionString,
    concurrentJobs: Number(slots),
    maxPoolSize: Number(slots) + 1,
    // What its page on performance recommends.
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger: new Logger(() => () => {}),
  },
};
const CHUNK = 1000;

const say = (what) => process.stdout.write(`${what}\n`);
const now = () => (performance.timeOrigin + performance.now()) / 1000;

async function work() {
  const taskList = {
    drain: async () => say("ran"),
    inserts: async (argument, helpers) => {
      await helpers.query("INSERT INTO bench (number) VALUES ($1)", [argument]);
      say("ran");
    },
    latency: async (argument) => say(`late ${now() - argument}`),
  };
  const runner = await run({ preset, taskList, noHandleSignals: true });
  process.on("SIGTERM", () => runner.stop().then(() => process.exit(0)));
}

const connected = (action) => async () => {
  const utils = await makeWorkerUtils({ preset });
  await action(utils);
  await utils.release();
};

const prepare = connected((utils) => utils.migrate());

const fill = connected(async (utils) => {
  const [identifier, number] = [rest[0], Number(rest[1])];
  for (let first = 0; first < number; first += CHUNK) {
    const length = Math.min(CHUNK, number - first);
    await utils.addJobs(Array.from({ length }, (_, n) => ({ identifier, payload: first + n })));
  }
});

const send = connected(async (utils) => {
  const [number, size] = rest.map(Number);
  await utils.addJob("drain", 0);
  const started = performance.now();
  for (let sent = 0; sent < number; sent += size) {
    if (size === 1) await utils.addJob("drain", 0);
    else await utils.addJobs(Array.from({ length: size }, () => ({ identifier: "drain", payload: 0 })));
  }
  say((performance.now() - started) / 1000);
});

const pace = connected(async (utils) => {
  say("connected");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [identifier, argument] = line.split(" ");
    await utils.addJob(identifier, Number(argument));
    say("sent");
  }
});

({ work, prepare, fill, send, pace })[mode]();
