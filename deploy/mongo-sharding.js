// Spreads the collections that grow with the events over the shards of a MongoDB 8 cluster:
//
//   eventstream migrate     (through mongos, so that all collections and indexes are there)
//   mongosh "mongodb://mongos:27017/eventstream" deploy/mongo-sharding.js
//
// before or after there is something in them, and again at any time: what is sharded stays so.
//
// Event ids, users and click histories are a document each, found and written by `_id` alone. A
// hashed `_id` spreads them evenly, whereas a month or the order of names would bring all writes to
// one shard. It is also the only unique index that they have, and equal ids are of the same shard.
const sharded = {
  claims: { _id: "hashed" },
  seen_events: { _id: "hashed" },
  users: { _id: "hashed" },
  hit_tallies: { _id: "hashed" },
};

// All else stays together on the database's primary shard. A transaction that counts page views
// without ids writes only here (ledger, expiry, change), and so does each that folds changes into
// counters, and each that drops what expired of the ledger: one shard commits, on its own.
// They are few: a row for each batch, and one for each page, day and ad, however many events.
const together = [
  "applied_batches",
  "expiries",
  "changes",
  "page_views",
  "page_totals",
  "day_totals",
  "hour_counts",
  "impression_months",
  "user_sets",
  "click_months",
  "ads",
  "impressions",
  "visitors",
  "month_counts",
  "clicks",
  "click_totals",
  "filtered",
  "ad_differences",
  "consumed_offsets",
  "outgoing",
  "statements",
  "schema",
];

const known = new Set(db.getCollectionNames());
const absent = [...Object.keys(sharded), ...together].filter((name) => !known.has(name));
if (absent.length > 0) {
  throw new Error(`run eventstream migrate first: ${absent.join(", ")} not found in ${db.getName()}`);
}

for (const [name, key] of Object.entries(sharded)) {
  // A collection that is not empty needs the index of its shard key first.
  db.getCollection(name).createIndex(key);
  sh.shardCollection(`${db.getName()}.${name}`, key);
  print(`${name}: sharded by ${JSON.stringify(key)}`);
}
print(`on the primary shard: ${together.join(", ")}`);
