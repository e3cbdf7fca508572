// A server that is gone and comes back, one that is full, a key that is wrong, and a context that is full.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, answered, ask, browse, open, serve } from "./browser.mjs";

let browser, locked, small;

before(async () => {
  [locked, small, browser] = await Promise.all([
    serve(["--queue", "0"], { keys: "secret" }), serve(["--context", "192"]), browse(),
  ]);
});

const trouble = (page, words) => page.locator("#said", { hasText: words }).waitFor();

test("the key is asked for, a wrong one is told of, and a right one kept for the tab", async () => {
  const page = await open(browser, locked.url);
  await trouble(page, "The server asks for an API key");
  await accessible(page);
  await page.locator("#key").fill("wrong");
  await page.locator("#key").press("Tab");
  await trouble(page, "The server does not know this API key");
  await page.locator("#key").fill("secret");
  await page.locator("#key").press("Tab");
  await page.locator("#model", { hasText: "parrot" }).waitFor();
  assert.equal(await page.locator("#trouble").isVisible(), false);
  await page.reload();
  await page.locator("#model", { hasText: "parrot" }).waitFor();
  assert.equal(await (await ask(page, "say: let in")).innerText(), "let in");
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret")), false);
  const opened = page.context().waitForEvent("page");
  await page.evaluate(() => { window.open("/", "_blank", "noopener"); });
  const other = await opened;
  await other.locator("#said", { hasText: "asks for an API key" }).waitFor();
});

test("a server that is full says so, and when to come again; the question is kept and asked again", async () => {
  const headers = { Authorization: "Bearer secret", "Content-Type": "application/json" };
  const body = JSON.stringify({ messages: [{ role: "user", content: `slowly: ${"word ".repeat(80)}` }], stream: true });
  const hold = () => fetch(`${locked.url}/v1/chat/completions`, { method: "POST", headers, body });
  let held = await hold();
  const page = await open(browser, locked.url);
  await page.locator("#key").fill("secret");
  await page.locator("#key").press("Tab");
  await page.locator("#model", { hasText: "parrot" }).waitFor();
  await page.locator("#text").fill("say: at last");
  await page.locator("#text").press("Enter");
  await trouble(page, /Too many requests.*It asks to wait \d+ seconds?\./);
  await accessible(page);
  await held.body.cancel();
  for (;;) {      // the slot is free a token later
    await page.getByRole("button", { name: "Try again" }).click();
    await answered(page);
    if (await page.locator("article.assistant").count()) break;
  }
  assert.deepEqual(await page.locator("article .said").allInnerTexts(), ["say: at last", "at last"]);
  held = await hold();
  await page.getByRole("button", { name: "Regenerate" }).click();
  await trouble(page, /Too many requests/);
  await page.getByRole("button", { name: "Try again" }).waitFor();
  assert.deepEqual(await page.locator("article .said").allInnerTexts(), ["say: at last", "at last"]);
  await held.body.cancel();
});

const words = (n) => `say: ${n} quick brown fox jumps over the lazy dog`;

// The messages of each question that is asked from now on, and what the server answered.
function listen(page) {
  const posts = [];
  page.on("response", (response) => {
    if (response.request().method() !== "POST") return;
    posts.push({ messages: response.request().postDataJSON().messages, status: response.status() });
  });
  return posts;
}

test("before the context is full the oldest exchange goes, which is greyed", async () => {
  const page = await open(browser, small.url);
  const posts = listen(page);
  for (let n = 1; n <= 6; n += 1) assert.equal(await (await ask(page, words(n))).innerText(), words(n).slice(5));
  assert.deepEqual(posts.map(({ status }) => status), Array(6).fill(200), "the server never has to say that it is full");
  const { messages } = posts.at(-1);
  assert(messages.length < 11 && messages[0].role === "user");
  assert.equal(await page.locator("article.omitted").count(), 11 - messages.length);
  assert.match(await page.locator("article.omitted").first().innerText(), /the model no longer sees this/);
  await accessible(page);
});

test("there is room for an answer after one that was stopped, too", async () => {
  const page = await open(browser, small.url);
  for (let n = 1; n <= 3; n += 1) await ask(page, words(n));
  await page.locator("#text").fill(`slowly: ${"quick brown fox jumps over the lazy dog. ".repeat(3)}`);
  await page.locator("#text").press("Enter");
  await page.locator("article.assistant .said").nth(3).filter({ hasText: "lazy" }).waitFor();
  await page.keyboard.press("Escape");
  await answered(page);
  assert.equal(await (await ask(page, words(4))).innerText(), words(4).slice(5));
  assert.equal(await page.locator("article.omitted").count(), 2, "or less than a quarter would be left");
});

test("where the server says that the context is full, the oldest exchanges go until it is not", async () => {
  const page = await open(browser, small.url);
  const posts = listen(page);
  for (let n = 1; n <= 3; n += 1) await ask(page, words(n));
  const dense = "\u6f22".repeat(50);      // has more tokens than the characters of before let expect
  assert.equal(await (await ask(page, `${dense}\n\nsay: end`)).innerText(), "end");
  const [, , , ...last] = posts;
  assert(last.length > 2 && last.slice(0, -1).every(({ status }) => status === 400) && last.at(-1).status === 200);
  const sent = last.map(({ messages }) => messages.length);
  assert.deepEqual(sent, sent.map((_, at) => sent[0] - 2 * at), "an exchange at a time");
  assert.equal(await page.locator("article.omitted").count(), 7 - sent.at(-1));
  assert.equal(await page.locator("#trouble").isVisible(), false);
  await page.locator("#text").fill("x ".repeat(400));
  await page.locator("#text").press("Enter");
  await trouble(page, /context|tokens/);
});

test("a server that goes away is told of, and the page goes on when it is back", async () => {
  const page = await open(browser, small.url);
  await page.locator("#text").fill(`slowly: ${"word ".repeat(20)}`);
  await page.locator("#text").press("Enter");
  await page.locator("article.assistant .said", { hasText: /^word/ }).waitFor();
  await small.stop();
  const said = await answered(page);
  assert.match(await said.locator("xpath=..").innerText(), /interrupted: The connection was lost/);
  assert.equal(await page.locator("#used").innerText(), "192 tokens of context", "how many are in use nobody has counted");
  await page.locator("#text").fill("say: back");
  await page.locator("#text").press("Enter");
  await trouble(page, /The server does not answer\. The page tries again by itself\./);
  await accessible(page);
  await serve([], { port: small.port });
  await trouble(page, "This question has no answer yet.");
  await page.getByRole("button", { name: "Try again" }).click();
  assert.equal(await (await answered(page)).innerText(), "back");
  assert.equal(await page.locator("#trouble").isVisible(), false);
});

test("a device that is offline is told so, until it is back", async () => {
  const page = await open(browser, locked.url);
  await page.clock.install();
  await page.clock.pauseAt(Date.now() + 1000);      // no timer goes off: it is the device that makes the page look again
  await page.context().setOffline(true);
  await trouble(page, "This device is offline.");
  await page.context().setOffline(false);
  await trouble(page, "The server asks for an API key");
});
