// The Node side of pg_boss.py and pg_boss_transactional.py; what it is asked and says is told in node_side.py.
const readline = require("node:readline");
const { Pool } = require("pg");
const { PgBoss } = require("pg-boss");

const [mode, connectionString, slots, ...rest] = process.argv.slice(2);
// BATCH jobs are fetched and completed at once by each of so many workers of one process.
const BATCH = Number(process.env.BENCH_BATCH);
const WORKERS = Number(process.env.BENCH_WORKERS);
const TRANSACTIONAL = process.env.BENCH_TRANSACTIONAL === "1";
const WORKS = ["drain", "inserts", "latency"];
const CHUNK = 1000;
const INSERT = "INSERT INTO bench (number) VALUES ($1)";

const boss = new PgBoss({ connectionString, max: Number(slots) + 1, schedule: false, useListenNotify: true });
boss.on("error", (error) => console.error(error.message));

const say = (what) => process.stdout.write(`${what}\n`);
const now = () => (performance.timeOrigin + performance.now()) / 1000;

async function work() {
  const pool = new Pool({ connectionString, max: Number(slots) });
  const bodies = {
    drain: async () => say("ran"),
    inserts: async (argument, db) => {
      await (db ? db.executeSql(INSERT, [argument]) : pool.query(INSERT, [argument]));
      say("ran");
    },
    latency: async (argument) => say(`late ${now() - argument}`),
  };
  const run = bodies[rest[0]];
  // The jobs of a transaction share its connection, one after the other; those of the others share the slots.
  const lanes = TRANSACTIONAL ? 1 : Math.max(1, Math.floor(Number(slots) / WORKERS));
  await boss.work(
    rest[0],
    {
      batchSize: BATCH,
      localConcurrency: WORKERS,
      burstWhenBatchFull: true,
      pollingIntervalSeconds: 0.5,
      ...(TRANSACTIONAL ? { transactional: true } : {}),
    },
    async (jobs, db) => {
      const waiting = jobs.values();
      const lane = async () => {
        for (const job of waiting) await run(job.data.argument, db);
      };
      await Promise.all(Array.from({ length: lanes }, lane));
    },
  );
  process.on("SIGTERM", async () => {
    await boss.stop();
    await pool.end();
    process.exit(0);
  });
}

async function prepare() {
  for (const name of WORKS) await boss.createQueue(name, { partition: true, notify: true });
}

async function fill() {
  const [name, number] = [rest[0], Number(rest[1])];
  for (let first = 0; first < number; first += CHUNK) {
    const length = Math.min(CHUNK, number - first);
    await boss.insert(name, Array.from({ length }, (_, n) => ({ data: { argument: first + n } })));
  }
}

async function send() {
  const [number, size] = rest.map(Number);
  await boss.send("drain", { argument: 0 });
  const started = performance.now();
  for (let sent = 0; sent < number; sent += size) {
    if (size === 1) await boss.send("drain", { argument: 0 });
    else await boss.insert("drain", Array.from({ length: size }, () => ({ data: { argument: 0 } })));
  }
  say((performance.now() - started) / 1000);
}

async function pace() {
  say("connected");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, argument] = line.split(" ");
    await boss.send(name, { argument: Number(argument) });
    say("sent");
  }
}

boss
  .start()
  .then(({ work, prepare, fill, send, pace })[mode])
  .then(() => (mode === "work" ? undefined : boss.stop()));
