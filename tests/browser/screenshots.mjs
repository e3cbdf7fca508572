// Makes the picture of the chat page in docs/pictures, of chats that are imported: `node tests/browser/screenshots.mjs`.

import { test } from "node:test";
import { browse, open, serve } from "./browser.mjs";

const PICTURE = `${import.meta.dirname}/../../docs/pictures/chat.png`;
const PRIMES = `A **prime** has two divisors: 1 and itself.

\`\`\`python
def prime(n):
    return n > 1 and all(n % d for d in range(2, n))
\`\`\`

- 2, 3, 5 and 7 are primes
- 1 is none`;

const text = (said) => ({ type: "text", text: said });
const figures = { model: "nanochat:3", prompt: 412, tokens: 96, first: 0.3, seconds: 2.8 };
const CHATS = [
  ["Six times seven", "What is six times seven?", [text("It is 42.")]],
  ["Names for a cat", "Name a cat.", [text("Minka.")]],
  ["Primes", "How many primes are below 10?", [
    text("I count them: "), { type: "python", text: "len('2357')" }, { type: "python_output", text: "4" }, text("There are 4."),
  ], "And what is a prime?", [text(PRIMES)]],
].map(([name, ...turns], changed) => ({
  name, changed, settings: {}, leaf: turns.length - 1,
  messages: turns.map((said, at) => (at % 2
    ? { parent: at - 1, role: "assistant", parts: said, note: "", figures }
    : { parent: at - 1, role: "user", parts: [text(said)], note: "", figures: {} })),
}));

test("a picture", async () => {
  const [{ url }, browser] = await Promise.all([serve(), browse()]);
  const page = await open(browser, url, { viewport: { width: 1000, height: 800 } });
  const buffer = Buffer.from(JSON.stringify({ format: "nanochat-conversations", version: 1, conversations: CHATS }));
  await page.locator("#file").setInputFiles({ name: "chats.json", mimeType: "application/json", buffer });
  await page.getByRole("button", { name: "Primes", exact: true }).click();
  await page.screenshot({ path: PICTURE });
});
