// Chats are kept in the browser: several, named, searched, deleted, exported and imported; what comes in is checked.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { after, before, test } from "node:test";
import { accessible, ask, browse, open, PYTHON, serve } from "./browser.mjs";

let browser, url, page, folder;
const names = () => page.locator("#list li button:first-child").allInnerTexts();
const said = () => page.locator("article .said").allInnerTexts();
const fresh = () => page.locator("#fresh").click();

before(async () => {
  [{ url }, browser] = await Promise.all([serve(), browse()]);
  page = await open(browser, url);
  folder = await mkdtemp(`${tmpdir()}/chats-`);
});
after(() => rm(folder, { recursive: true }));

test("chats are kept over a reload, the newest first, and named by their first question", async () => {
  await ask(page, "say: one");
  await fresh();
  await ask(page, "say: two");
  await page.reload();
  await page.locator("article .said").last().waitFor();
  assert.deepEqual(await names(), ["say: two", "say: one"]);
  assert.deepEqual(await said(), ["say: two", "two"]);
  await page.getByRole("button", { name: "say: one", exact: true }).click();
  assert.deepEqual(await said(), ["say: one", "one"]);
});

test("a chat has a name of one's own", async () => {
  await page.locator("#name").fill("<b>Mine</b>");
  await page.locator("#name").press("Tab");
  await page.reload();
  await page.locator("article").last().waitFor();
  assert.deepEqual(await names(), ["say: two", "<b>Mine</b>"]);
});

test("a search finds names and what was said", async () => {
  for (const [sought, found] of [["MINE", ["<b>Mine</b>"]], ["two", ["say: two"]], ["zebra", []], ["", ["say: two", "<b>Mine</b>"]]]) {
    await page.locator("#search").fill(sought);
    assert.deepEqual(await names(), found);
    assert.equal(await page.locator("#none").isVisible(), found.length === 0);
  }
  await accessible(page);
});

test("another tab sees what this one keeps", async () => {
  const other = await page.context().newPage();
  page.faults.splice(0);      // the page that was opened here
  await other.goto(url);
  await other.locator("#list li").nth(1).waitFor();
  await ask(page, "say: three");
  await other.locator("article.assistant .said", { hasText: "three" }).waitFor();
  await other.close();
});

async function exported() {
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#export").click()]);
  return readFile(await download.path(), "utf8");
}

async function take(text) {
  await writeFile(`${folder}/chats.json`, text);
  await page.locator("#file").setInputFiles(`${folder}/chats.json`);
}

test("chats are exported, deleted and imported as they were", async () => {
  const file = await exported();
  const before = JSON.parse(file);
  assert.equal(before.conversations.length, 2);
  page.on("dialog", (dialog) => dialog.accept());
  for (let left = 2; left > 0; left -= 1) await page.getByRole("button", { name: /^Delete / }).first().click();
  await page.reload();
  await page.locator("#model", { hasText: /./ }).waitFor();
  assert.deepEqual(await names(), []);
  await take(file);
  await page.locator("#list li").nth(1).waitFor();
  assert.deepEqual(JSON.parse(await exported()), before);
  await page.getByRole("button", { name: "<b>Mine</b>", exact: true }).click();
  assert.deepEqual(await said(), ["say: one", "one"]);
  await page.getByRole("button", { name: "say: two", exact: true }).click();
  assert.deepEqual(await said(), ["say: two", "two", "say: three", "three"]);
});

// Loads each chat of a file as the terminal does, and saves each in a file of its own.
const IN_TERMINAL = `
import sys
from pathlib import Path
from nanochat.cli.chat_file import load, save
for number, chat in enumerate(load(Path(sys.argv[1]))):
    save(Path(f"{sys.argv[1]}.{number}"), chat)
`;

test("the terminal's /load and /save have the page's form", async () => {
  await fresh();
  await page.locator("#system").evaluate((field) => { field.closest("details").open = true; });
  await page.locator("#seed").fill("7");
  await page.locator("#system").fill("Be brief.");
  await ask(page, "calculate");
  await ask(page, `say: ${"x".repeat(54)}\u{1f600}\\n\\nend`);
  await page.locator("#name").evaluate((field) => {      // as a name that is cut within a sign
    field.value = "half a pair: \ud83d";
    field.dispatchEvent(new Event("change"));
  });
  const before = await said();
  await writeFile(`${folder}/page.json`, await exported());
  execFileSync(PYTHON, ["-c", IN_TERMINAL, `${folder}/page.json`], { cwd: `${import.meta.dirname}/../..` });
  await page.getByRole("button", { name: /^Delete half a pair/ }).click();
  await page.waitForFunction(() => !document.querySelector("article"));
  await take(await readFile(`${folder}/page.json.0`, "utf8"));
  await page.getByRole("button", { name: /^half a pair/ }).first().click();
  assert.deepEqual(await said(), before);
  assert.deepEqual(await Promise.all(["#seed", "#system"].map((field) => page.locator(field).inputValue())), ["7", "Be brief."]);
  await page.getByRole("button", { name: /^Delete half a pair/ }).click();
  await page.waitForFunction(() => !document.querySelector("article"));
});

test("a name is not cut within a sign", async () => {
  await fresh();
  await ask(page, `say: ${"x".repeat(54)}\u{1f600}\u{1f600}`);
  assert.equal((await names())[0], `say: ${"x".repeat(54)}\u{1f600}`);
  await page.getByRole("button", { name: /^Delete say: x/ }).click();
});

const message = (change = {}) => ({ parent: -1, role: "user", parts: [{ type: "text", text: "hi" }], note: "", figures: {}, ...change });
const reply = (change = {}) => message({ parent: 0, role: "assistant", ...change });
const chat = (change = {}) => ({ name: "n", changed: 1, settings: {}, messages: [message()], leaf: 0, ...change });
const file = (conversations, change = {}) => JSON.stringify({ format: "nanochat-conversations", version: 1, conversations, ...change });
const withMessages = (...messages) => file([chat({ messages, leaf: messages.length - 1 })]);
const LONG = [{ type: "text", text: "x".repeat(600_000) }];
const WRONG = [
  ["no JSON", "{", "is not JSON"],
  ["a list", "[]", "The file must be an object"],
  ["another format", file([], { format: "other" }), "format must be"],
  ["another version", file([], { version: 2 }), "version 1"],
  ["no list", file({}), "conversations must be a list"],
  ["too many", file(Array(1001).fill(chat())), "at most 1,000"],
  ["null", file([chat(), null]), "conversations.1 must be an object"],
  ["no name", file([chat({ name: undefined })]), "conversations.0.name must be a text"],
  ["a long name", file([chat({ name: "x".repeat(201) })]), "at most 200 characters"],
  ["a date beyond all", file([chat({ changed: 1e300 })]), "changed must be a whole number"],
  ["a leaf that is none", file([chat({ leaf: 1 })]), "leaf must be a whole number"],
  ["no leaf", file([chat({ leaf: -1 })]), "leaf must name a message"],
  ["too many messages", withMessages(...Array(2049).fill(message())), "messages must be a list of at most 2,048"],
  ["another role", withMessages(message({ role: "system" })), "role must be user or assistant"],
  ["a loop", withMessages(message({ parent: 0 })), "parent must be a whole number from -1 to -1"],
  ["half a parent", withMessages(message(), reply({ parent: 0.5 })), "messages.1.parent must be a whole number"],
  ["a name of the language as a parent", withMessages(message(), reply({ parent: "__proto__" })), "parent must be a whole number"],
  ["an answer to nothing", withMessages(message({ role: "assistant" })), "must follow a question"],
  ["an answer to an answer", withMessages(message(), reply(), reply({ parent: 1 })), "must follow a question"],
  ["a text for parts", withMessages(message({ parts: "hi" })), "parts must be a list"],
  ["another kind", withMessages(message({ parts: [{ type: "html", text: "<b>" }] })), "type must be one of"],
  ["a question with a tool", withMessages(message({ parts: [{ type: "python", text: "1" }] })), "must be text in a question"],
  ["a number for a text", withMessages(message({ parts: [{ type: "text", text: 1 }] })), "text must be a text"],
  ["too long a text", withMessages(message({ parts: [{ type: "text", text: "x".repeat(1_000_001) }] })), "at most 1,000,000"],
  ["texts too long together", withMessages(message({ parts: LONG }), reply({ parts: LONG })), "at most 400,000"],
  ["an endless note", withMessages(message(), reply({ note: "x".repeat(1001) })), "note must be a text"],
  ["no figures", withMessages(message({ figures: null })), "figures must be an object"],
  ["a figure that is none", withMessages(message(), reply({ figures: { tokens: "5" } })), "figures.tokens must be a number"],
  ["a negative figure", withMessages(message(), reply({ figures: { omitted: -1 } })), "figures.omitted must be a number"],
  ["a temperature beyond bounds", file([chat({ settings: { temperature: 3 } })]), "Temperature must be a number from 0 to 2"],
  ["half a seed", file([chat({ settings: { seed: 0.5 } })]), "Seed must be a whole number"],
  ["a null", file([chat({ settings: { top_k: null } })]), "Top k must be a whole number"],
  ["a system message that is none", file([chat({ settings: { system: ["x"] } })]), "System message must be a text"],
  ["too large a file", " ".repeat((16 << 20) + 1), "larger than the 16 MiB"],
];

test(`${WRONG.length} files are refused, each with the place where it is wrong`, async () => {
  const before = await exported();
  for (const [label, content, sentence] of WRONG) {
    await page.locator("#trouble").evaluate((box) => { box.hidden = true; });
    await take(content);
    await page.locator("#trouble").waitFor();
    const told = await page.locator("#said").innerText();
    assert(told.includes(sentence) && told.startsWith("chats.json"), `${label}: ${told}`);
  }
  assert.equal(await exported(), before);
});

test("texts that were cut within a sign are imported, asked and exported", async () => {
  const half = "half \ud83d";      // an escape in the file
  const parts = [{ type: "text", text: half }];
  const given = chat({ name: half, messages: [message({ parts }), reply({ parts })], leaf: 1, settings: { system: half } });
  await take(file([given]));
  await page.getByRole("button", { name: /^half/ }).first().click();
  assert.deepEqual((await said()).map((each) => each.toWellFormed()), ["half \ufffd", "half \ufffd"]);
  const request = page.waitForRequest((each) => each.method() === "POST");
  assert.equal(await (await ask(page, "say: on")).innerText(), "on");
  assert.deepEqual((await request).postDataJSON().messages.map(({ content }) => content), [...Array(3).fill("half \ufffd"), "say: on"]);
  const kept = JSON.parse(await exported()).conversations.find(({ name }) => name.startsWith("half"));
  const texts = [kept.name, kept.settings.system, ...kept.messages.map((each) => each.parts[0].text)];
  assert.deepEqual(texts, [...Array(4).fill("half \ufffd"), "say: on", "on"]);
  await page.getByRole("button", { name: /^Delete half/ }).click();
  await page.waitForFunction(() => !document.querySelector("article"));
});

test("a question that a chat has no room for stays in its field", async () => {
  await take(withMessages(...Array(2048).fill(message())));
  await page.getByRole("button", { name: "n", exact: true }).click();
  await page.locator("#text").fill("say: one too many");
  await page.locator("#text").press("Enter");
  await page.locator("#said", { hasText: "2048 messages, which is the most" }).waitFor();
  assert.equal(await page.locator("#text").inputValue(), "say: one too many");
  await page.locator("#text").fill("");
  await page.getByRole("button", { name: "Delete n", exact: true }).click();
});

test("hostile texts of a file are only texts", async () => {
  const hostile = "<img src=x onerror=alert(1)>[a](javascript:alert(1))";
  const parts = [{ type: "text", text: hostile }, { type: "python", text: hostile }, { type: "python_output", text: hostile }];
  const messages = [message({ parts: parts.slice(0, 1) }), reply({ parts, note: hostile, figures: { model: hostile } })];
  const extra = { ["__proto__"]: { name: "x" }, id: "../x", other: hostile };
  await take(file([chat({ name: hostile, messages, leaf: 1, settings: { system: hostile }, ...extra })]));
  await page.getByRole("button", { name: hostile, exact: true }).click();
  assert.equal((await said())[0], hostile);
  assert.equal(await page.locator("#log :is(img, a, script)").count(), 0);
  assert(!(await exported()).includes('"other"'));
  await accessible(page);
});

// Fills the browser's storage but for `left` characters; `clear` frees it.
const fill = (left) => page.evaluate((left) => {
  localStorage.setItem("fill.left", "x".repeat(left));
  for (let size = 1 << 22; size > 0; size >>= 1) {
    for (let at = 0; ; at += 1) {
      try { localStorage.setItem(`fill.${size}.${at}`, "x".repeat(size)); } catch { break; }
    }
  }
  localStorage.removeItem("fill.left");
}, left);
const clear = () => page.evaluate(() => {
  for (const name of Object.keys(localStorage)) if (name.startsWith("fill.")) localStorage.removeItem(name);
});

test("of chats that are imported, all are shown, and how many the browser has room for is said", async () => {
  const before = await names();
  const large = [message({ parts: [{ type: "text", text: "x".repeat(20_000) }] })];
  await fill(10_000);
  await page.evaluate(() => { document.getElementById("announced").textContent = ""; });
  await take(file([chat({ name: "large", messages: large }), chat({ name: "small" }), chat({ name: "small, too" })]));
  await page.locator("#said", { hasText: /^Imported chats: 3\. .* room for 2 of them; shown only until the page is closed: 1\.$/ }).waitFor();
  assert.deepEqual((await names()).sort(), [...before, "large", "small", "small, too"].sort());
  assert.equal(await page.locator("#announced").innerText(), "");
  await accessible(page);
  await page.reload();
  await page.locator("#model", { hasText: /./ }).waitFor();
  assert.deepEqual((await names()).sort(), [...before, "small", "small, too"].sort());
  for (const name of ["small", "small, too"]) await page.getByRole("button", { name: `Delete ${name}`, exact: true }).click();
  await clear();
});

test("a browser without room says so, and the chat goes on", async () => {
  await fresh();
  await fill(0);
  assert.equal(await (await ask(page, "say: no room")).innerText(), "no room");
  assert.match(await page.locator("#said").innerText(), /has no room for the chat: it is shown here and will be lost/);
  await clear();
  await ask(page, "say: room");
  await page.reload();
  await page.locator("article .said").last().waitFor();
  assert.deepEqual(await said(), ["say: no room", "no room", "say: room", "room"]);
});

test("an entry that is damaged is told of, and left", async () => {
  await page.evaluate(() => localStorage.setItem("nanochat.chat.bad", '{"name": 5}'));
  await page.reload();
  await page.locator("#said", { hasText: "1 of the chats kept here can't be read" }).waitFor();
  assert.equal(await page.evaluate(() => localStorage.getItem("nanochat.chat.bad")), '{"name": 5}');
  assert.deepEqual(page.faults, []);
});
