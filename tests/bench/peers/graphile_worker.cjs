// The Node side of graphile_worker.py: `node graphile_worker.cjs MODE URL SLOTS NUMBER SIZE`; told on stdout, a line each.
const { Logger, makeWorkerUtils, run } = require("graphile-worker");

const [mode, connectionString, slots, number, size] = process.argv.slice(2);
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

const say = (what) => process.stdout.write(`${what}\n`);

async function work() {
  const taskList = {
    drain: async () => say("ran"),
    inserts: async (argument, helpers) => {
      await helpers.query("INSERT INTO bench (number) VALUES ($1)", [argument]);
      say("ran");
    },
    latency: async (argument) => say(`late ${Date.now() / 1000 - argument}`),
  };
  const runner = await run({ preset, taskList, noHandleSignals: true });
  process.on("SIGTERM", () => runner.stop().then(() => process.exit(0)));
}

async function send() {
  const utils = await makeWorkerUtils({ preset });
  await utils.addJob("drain", 0);
  const started = performance.now();
  for (let sent = 0; sent < Number(number); sent += Number(size)) {
    if (size === "1") await utils.addJob("drain", 0);
    else await utils.addJobs(Array.from({ length: Number(size) }, () => ({ identifier: "drain", payload: 0 })));
  }
  say((performance.now() - started) / 1000);
  await utils.release();
}

async function prepare() {
  const utils = await makeWorkerUtils({ preset });
  await utils.migrate();
  await utils.release();
}

({ work, send, prepare })[mode]();
