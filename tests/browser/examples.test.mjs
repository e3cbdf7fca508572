// Example questions of the model's card are offered in a chat that is empty, as texts.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, answered, browse, open, serve } from "./browser.mjs";

const QUESTIONS = ["say: an example", "<img src=x onerror=alert(1)>", "say: another"];
let browser, page, plain;

before(async () => {
  const asking = QUESTIONS.flatMap((question) => ["--question", question]);
  const [card, none, chromium] = await Promise.all([serve(asking), serve(), browse()]);
  [browser, plain] = [chromium, none];
  page = await open(browser, card.url);
});

test("questions of the card are asked by a click, each in a chat that is empty", async () => {
  const buttons = page.locator("#examples button");
  assert.deepEqual(await buttons.allInnerTexts(), QUESTIONS);
  await accessible(page);
  await page.locator("#text").fill("a draft");
  await buttons.first().click();
  assert.equal(await (await answered(page)).innerText(), "an example");
  assert.equal(await page.locator("#examples").isVisible(), false);
  assert.equal(await page.locator("#text").inputValue(), "a draft");
  await page.locator("#fresh").click();
  assert.deepEqual(await buttons.allInnerTexts(), QUESTIONS);
  await buttons.nth(1).press("Enter");
  assert.equal(await page.locator("article.user .said").innerText(), QUESTIONS[1]);
  await answered(page);
  assert.equal(await page.locator("#log img").count(), 0);
  assert.deepEqual(page.faults, []);
});

test("a card without questions shows none", async () => {
  const other = await open(browser, plain.url);
  await other.locator("#model", { hasText: "parrot" }).waitFor();
  assert.equal(await other.locator("#examples").isVisible(), false);
  assert.deepEqual(other.faults, []);
});

test("they fit on a phone", async () => {
  const phone = await open(browser, new URL(page.url()).origin, { viewport: { width: 360, height: 640 }, colorScheme: "dark" });
  await phone.locator("#examples button").first().waitFor();
  assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth), 0);
  await accessible(phone);
});
