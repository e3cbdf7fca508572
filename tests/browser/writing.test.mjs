// While an answer is written, and after: the waiting sign, steps, figures, keys, and all of it on phones and in the dark.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, answered, ask, browse, open, serve } from "./browser.mjs";

let browser, url, page;

before(async () => {
  [{ url }, browser] = await Promise.all([serve(), browse()]);
  page = await open(browser, url);
});

test("a sign says that the answer is waited for, until its first word", async () => {
  await page.evaluate(() => {
    globalThis.waited = [];
    new MutationObserver(() => globalThis.waited.push(Boolean(document.querySelector(".waiting")))).observe(
      document.getElementById("log"), { childList: true, subtree: true });
  });
  await ask(page, "say: here");
  const waited = await page.evaluate(() => globalThis.waited);
  assert(waited.includes(true));
  assert.equal(waited.at(-1), false);
});

test("a call of the tool is a step that can be read", async () => {
  const said = await ask(page, "calculate");
  assert.equal(await said.locator(".step").innerText(), "Calculator: 6*7 = 42");
  assert.equal(await said.locator("li").count(), 0, "the number 42. is no list");
  await accessible(page);
});

test("each answer has its figures, and the context's meter counts", async () => {
  const said = await ask(page, "say: these are a few words");
  assert.match(await said.locator("xpath=..").innerText(), /parrot:3 · [\d.]+ tokens\/s · first word after [\d.]+ s/);
  assert.match(await page.locator("#used").innerText(), /^[1-9]\d* of 1,024 tokens of context$/);
  assert.equal(await page.locator("#meter").getAttribute("max"), "1024");
  assert.equal(await page.locator("#model").innerText(), "parrot, version 3");
});

const inUse = async () => (await page.locator("#used").innerText()).match(/^(about )?(\d+) of/).slice(1);

test("Esc stops, what came is kept and measured, and the model goes on from it", async () => {
  const [, before] = await inUse();
  await page.locator("#text").fill(`slowly: ${"word ".repeat(60)}`);
  await page.locator("#text").press("Enter");
  await page.locator("article.assistant .said", { hasText: /^word/ }).waitFor();
  await accessible(page);
  await page.keyboard.press("Escape");
  const said = await answered(page);
  assert.match(await said.locator("xpath=..").innerText(), /stopped/);
  assert((await said.innerText()).length < 290);
  const [about, used] = await inUse();
  assert(about && Number(used) > Number(before), used);
  assert.equal(await (await ask(page, "say: on")).innerText(), "on");
  assert.equal((await inUse())[0], undefined, "counted, no more estimated");
});

test("arrow up edits the last question; Shift+Enter begins a line", async () => {
  await page.locator("#text").press("ArrowUp");
  assert.equal(await page.getByLabel("Your question").inputValue(), "say: on");
  await page.getByLabel("Your question").fill("say: edited");
  await page.getByLabel("Your question").press("Enter");
  assert.equal(await (await answered(page)).innerText(), "edited");
  await page.locator("#text").fill("a");
  await page.locator("#text").press("Shift+Enter");
  assert.equal(await page.locator("#text").inputValue(), "a\n");
  await page.locator("#text").fill("");
});

test("the keys are explained, and work", async () => {
  await page.locator("#help").click();
  await accessible(page);
  await page.keyboard.press("Escape");
  await page.locator("#help").focus();
  await page.keyboard.press("?");
  assert(await page.getByRole("dialog").isVisible());
  await page.getByRole("button", { name: "Close" }).click();
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "text");
  await page.keyboard.press("Alt+n");
  await page.waitForFunction(() => !document.querySelector("article"));
});

test("screen readers hear that it is written, and the whole answer once", async () => {
  await page.evaluate(() => {
    globalThis.heard = [];
    new MutationObserver(() => globalThis.heard.push(document.getElementById("announced").textContent)).observe(
      document.getElementById("announced"), { childList: true, characterData: true, subtree: true });
  });
  await ask(page, "say: heard");
  assert.deepEqual(await page.evaluate(() => globalThis.heard), ["nanochat is writing.", "heard"]);
});

for (const colorScheme of ["light", "dark"]) {
  test(`a phone, ${colorScheme}: nothing is wider than it, and chats come and go`, async () => {
    const phone = await open(browser, url, { viewport: { width: 360, height: 640 }, colorScheme, hasTouch: true });
    await ask(phone, `say: ${"w".repeat(150)}\\n\\n\`\`\`python\\nprint("${"x".repeat(100)}")\\n\`\`\``);
    const beyond = () => [document.documentElement, document.getElementById("scroll")].map((box) => box.scrollWidth - box.clientWidth);
    assert.deepEqual(await phone.evaluate(beyond), [0, 0]);
    assert.equal(await phone.locator("pre").count(), 1);
    assert(await phone.locator("#model").isVisible() && await phone.locator("#send").isVisible());
    await accessible(phone);
    const back = await phone.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(Number(back.match(/\d+/)[0]) < 128, colorScheme === "dark", back);
    await phone.locator("#toggle").tap();
    assert(await phone.locator("#list li").isVisible());
    await accessible(phone);
    await phone.locator("#list li button").first().tap();
    assert(await phone.locator("#text").isVisible());
    assert.deepEqual(phone.faults, []);
  });
}

test("nothing went wrong, and nothing left the server", () => assert.deepEqual(page.faults, []));
