// A small program on drizzle-orm's aws-data-api driver, as a user would write it: it prints what it sees as one JSON
// object. The endpoint and the key pair come in AWS's own environment variables.
import { isDeepStrictEqual } from "node:util";
import { RDSDataClient } from "@aws-sdk/client-rds-data";
import { and, arrayContains, desc, eq, gte, inArray, relations, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/aws-data-api/pg";
import {
  bigint, boolean, date, doublePrecision, integer, jsonb, numeric, pgEnum, pgTable, serial, text, time, timestamp, uuid,
} from "drizzle-orm/pg-core";

const mood = pgEnum("mood", ["calm", "busy"]);
const customers = pgTable("customers", {
  id: uuid().primaryKey().defaultRandom(),
  name: text().notNull().unique(),
  mood: mood().notNull(),
  tags: text().array(),
  scores: integer().array(),
  settings: jsonb(),
  since: timestamp({ precision: 6, mode: "string" }),
  seen: timestamp({ withTimezone: true, mode: "date" }),
  born: date(),
  wakes: time(),
  balance: numeric({ precision: 12, scale: 2 }),
  weight: doublePrecision(),
  visits: bigint({ mode: "number" }),
  active: boolean(),
});
const orders = pgTable("orders", {
  id: serial().primaryKey(),
  customer: uuid().references(() => customers.id),
  what: text().notNull(),
});
const ofCustomers = relations(customers, ({ many }) => ({ orders: many(orders) }));
const ofOrders = relations(orders, ({ one }) => ({
  customer: one(customers, { fields: [orders.customer], references: [customers.id] }),
}));

const arn = "arn:aws:rds:us-east-1:123456789012:cluster:any";
const db = drizzle(new RDSDataClient({ maxAttempts: 1 }), {
  database: process.env.DATABASE,
  resourceArn: arn,
  secretArn: arn,
  schema: { customers, orders, ofCustomers, ofOrders },
});

const ada = {
  id: "6f1c7a52-3c1e-4c8e-9d1a-0b7c0e4b7a11",
  name: "Ada: 'x' :1 \\ \"y\" ü",
  mood: "busy",
  tags: ["a", 'with "quotes", commas', "NULL", ""],
  scores: [3, 1, 2],
  settings: { nested: { list: [1, "two", null] }, "key:1": true },
  since: "2026-01-02 03:04:05.123456",
  seen: new Date("2026-05-06T07:08:09.123Z"),
  born: "1990-12-31",
  wakes: "06:30:00",
  balance: "1234567890.12",
  weight: 61.5,
  visits: 9007199254740991,
  active: true,
};
const seen = {};

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    const cause = error.cause ?? error;
    return { kind: cause.name, message: cause.message };
  }
}

await db.execute(sql`create type mood as enum ('calm', 'busy')`);
await db.execute(sql`
  create table customers (
    id uuid primary key default gen_random_uuid(), name text not null unique, mood mood not null, tags text[],
    scores int[], settings jsonb, since timestamp(6), seen timestamptz, born date, wakes time, balance numeric(12, 2),
    weight float8, visits bigint, active boolean)`);
await db.execute(sql`create table orders (
    id serial primary key, customer uuid references customers, what text not null)`);

const [inserted] = await db.insert(customers).values(ada).returning();
seen.changed = Object.keys(ada).filter((key) => !isDeepStrictEqual(inserted[key], ada[key]))
  .map((key) => [key, ada[key], inserted[key]]);
const [bare] = await db.insert(customers).values({ name: "bare", mood: "calm", tags: [] }).returning();
seen.nulls = Object.keys(bare).filter((key) => bare[key] === null);
seen.emptyArray = bare.tags;

await db.insert(orders).values([
  { customer: ada.id, what: "tea" },
  { customer: ada.id, what: "cake" },
  { customer: bare.id, what: "water" },
]);
const names = async (condition) =>
  (await db.select({ name: customers.name }).from(customers).where(condition).orderBy(desc(customers.name)))
    .map((row) => row.name);
seen.found = {
  uuid: await names(eq(customers.id, ada.id)),
  enumeration: await names(eq(customers.mood, "calm")),
  timestamp: await names(gte(customers.since, "2026-01-02 03:04:05.123456")),
  moment: await names(eq(customers.seen, ada.seen)),
  date: await names(eq(customers.born, "1990-12-31")),
  numeric: await names(eq(customers.balance, "1234567890.12")),
  bigint: await names(eq(customers.visits, ada.visits)),
  list: await names(inArray(customers.id, [ada.id, bare.id])),
  json: await names(sql`${customers.settings} @> ${JSON.stringify({ "key:1": true })}::jsonb`),
  slice: await names(sql`${customers.scores}[1:2] = array[3, 1]`),
  element: await names(and(sql`${1} = any(${customers.scores})`, eq(customers.active, true))),
  both: await names(and(eq(customers.name, ada.name), eq(customers.weight, 61.5))),
};
seen.arrayContains = await failure(() => names(arrayContains(customers.tags, ["a"])));

const [related] = await db.query.customers.findMany({
  where: eq(customers.id, ada.id),
  columns: { name: true },
  with: { orders: { columns: { what: true }, orderBy: orders.what } },
});
seen.related = related;
seen.joined = await db.select({ what: orders.what, mood: customers.mood }).from(orders)
  .innerJoin(customers, eq(orders.customer, customers.id)).orderBy(orders.id);
seen.raw = (await db.execute(sql`select count(*) as number, ${"x"}::text as letter from orders`)).rows;

const [updated] = await db.update(customers)
  .set({ settings: { changed: true }, tags: ["new"], seen: null }).where(eq(customers.id, ada.id)).returning();
seen.updated = { settings: updated.settings, tags: updated.tags, seen: updated.seen };
const upserted = await db.insert(customers).values({ name: "bare", mood: "busy" })
  .onConflictDoUpdate({ target: customers.name, set: { mood: "busy" } }).returning({ mood: customers.mood });
seen.upserted = upserted;
seen.deleted = (await db.delete(orders).where(eq(orders.what, "water")).returning()).length;
const prepared = db.select({ what: orders.what }).from(orders).where(eq(orders.what, sql.placeholder("what"))).prepare();
seen.prepared = [await prepared.execute({ what: "tea" }), await prepared.execute({ what: "coffee" })];

await db.transaction(async (work) => {
  await work.insert(orders).values({ customer: ada.id, what: "committed" });
  seen.nested = await failure(() => work.transaction(async (inner) => {
    await inner.insert(orders).values({ customer: ada.id, what: "undone" });
    await inner.execute(sql`select 1 / 0`);
  }));
  await work.transaction((inner) => inner.insert(orders).values({ customer: ada.id, what: "kept" }));
}, { isolationLevel: "serializable", accessMode: "read write" });
seen.rolledBack = await failure(() => db.transaction(async (work) => {
  await work.insert(orders).values({ customer: ada.id, what: "rolled back" });
  work.rollback();
}));
seen.orders = (await db.select().from(orders).orderBy(orders.id)).map((row) => row.what);

seen.duplicate = await failure(() => db.insert(customers).values({ name: ada.name, mood: "calm" }));
seen.noSuchTable = await failure(() => db.execute(sql`select * from nowhere`));
seen.tooLarge = await failure(() => db.execute(sql`select repeat('x', 2000000)`));
console.log(JSON.stringify(seen));
