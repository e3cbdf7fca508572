// Takes the pictures of the chat page in docs/pictures, of chats that are imported: `make screenshots`.

import { before, test } from "node:test";
import { browse, open, serve } from "./browser.mjs";

const PICTURES = `${import.meta.dirname}/../../docs/pictures`;
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

const QUESTIONS = ["What is your name?", "What is 21 plus 46?", 'How do you spell "tomato"?'];
const PHONE = { viewport: { width: 390, height: 720 }, hasTouch: true, colorScheme: "dark" };

let browser, url;
before(async () => {
  const asking = QUESTIONS.flatMap((question) => ["--question", question]);
  [{ url }, browser] = await Promise.all([serve(asking), browse()]);
});

async function imported(options) {
  const page = await open(browser, url, options);
  const buffer = Buffer.from(JSON.stringify({ format: "nanochat-conversations", version: 1, conversations: CHATS }));
  await page.locator("#file").setInputFiles({ name: "chats.json", mimeType: "application/json", buffer });
  await page.locator("#list li").first().waitFor({ state: "attached" });
  return page;
}

const picture = (page, name) => page.screenshot({ path: `${PICTURES}/${name}.png` });

test("a chat", async () => {
  const page = await imported({ viewport: { width: 1000, height: 800 } });
  await page.getByRole("button", { name: "Primes", exact: true }).click();
  await picture(page, "chat");
});

test("a phone, in the dark", async () => {
  const page = await imported(PHONE);
  await page.locator("#toggle").tap();
  await page.getByRole("button", { name: "Primes", exact: true }).tap();
  await picture(page, "chat-phone");
});

test("a beginning, with the settings", async () => {
  const page = await imported({ viewport: { width: 1000, height: 720 } });
  await page.locator("#examples button").first().waitFor();
  await page.locator("#settings summary").click();
  await page.locator("#temperature").fill("3");
  await picture(page, "chat-settings");
});
