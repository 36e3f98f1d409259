// One node-postgres client: each line of standard input is {"text", "value"}, run as a named (prepared) query;
// each answer is a line: {"rows"} or {"error"}. The connection is told by PG* variables.
const fs = require("node:fs");
const readline = require("node:readline");
const { Client } = require("pg");

async function main() {
  const client = new Client({ ssl: { ca: fs.readFileSync(process.env.PGSSLROOTCERT) } });
  await client.connect();
  const names = new Map(); // a name has at most 63 characters
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { text, value } = JSON.parse(line);
    if (!names.has(text)) names.set(text, `statement ${names.size}`);
    const query = { name: names.get(text), text, values: [value], rowMode: "array" };
    let answer;
    try {
      answer = { rows: (await client.query(query)).rows };
    } catch (error) {
      answer = { error: `${error.code}: ${error.message}` };
    }
    console.log(JSON.stringify(answer));
  }
  await client.end();
}

main();
