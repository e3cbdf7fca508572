// Questions are edited, answers written again, and no branch is lost; each chat has settings of its own.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, answered, ask, browse, open, serve } from "./browser.mjs";

let browser, url, page;
const said = () => page.locator("article .said").allInnerTexts();
const requests = [];

before(async () => {
  [{ url }, browser] = await Promise.all([serve(), browse()]);
  page = await open(browser, url);
  page.on("request", (request) => request.method() === "POST" && requests.push(request.postDataJSON()));
});

test("any question can be edited, and is asked again with what was before it", async () => {
  await ask(page, "say: one");
  await ask(page, "say: two");
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.getByLabel("Your question").fill("say: other");
  await accessible(page);
  await page.getByRole("button", { name: "Ask again" }).click();
  await answered(page);
  assert.deepEqual(await said(), ["say: other", "other"]);
  assert.deepEqual(requests.at(-1).messages, [{ role: "user", content: "say: other" }]);
});

test("the branches of a question are turned over, over a reload too", async () => {
  await page.getByRole("button", { name: "The version before" }).click();
  assert.deepEqual(await said(), ["say: one", "one", "say: two", "two"]);
  await page.reload();
  await page.locator("article").last().waitFor();
  assert.deepEqual(await said(), ["say: one", "one", "say: two", "two"]);
  assert.equal(await page.getByText("1 of 2").count(), 1);
  await page.getByRole("button", { name: "The next version" }).click();
  assert.deepEqual(await said(), ["say: other", "other"]);
  await page.getByRole("button", { name: "The version before" }).click();
});

test("any answer is written again, beside the one there was", async () => {
  await page.getByRole("button", { name: "Regenerate" }).first().click();
  await answered(page);
  assert.deepEqual(await said(), ["say: one", "one"]);
  assert.equal(await page.getByText("2 of 2").count(), 1);
  await page.locator("article.assistant").getByRole("button", { name: "The version before" }).click();
  assert.deepEqual(await said(), ["say: one", "one", "say: two", "two"]);
  await accessible(page);
});

test("what the tool said goes back to the model", async () => {
  await ask(page, "calculate");
  await ask(page, "say: three");
  assert.deepEqual(requests.at(-1).messages.at(-2).content.map(({ type }) => type), ["text", "python", "python_output", "text"]);
});

test("an edit can be cancelled", async () => {
  const before = await said();
  await page.getByRole("button", { name: "Edit" }).last().click();
  await page.getByLabel("Your question").fill("never asked");
  await page.getByLabel("Your question").press("Escape");
  assert.deepEqual(await said(), before);
});

test("Regenerate, pressed twice and fast, answers once at a time", async () => {
  const before = (await said()).length;
  await page.getByRole("button", { name: "Regenerate" }).last().evaluate((button) => { button.click(); button.click(); });
  await answered(page);
  await page.waitForFunction(() => !document.querySelector(".waiting"));
  assert.equal((await said()).length, before);
  assert.equal((await said()).at(-1), "three");
});

test("the settings are those of the chat, and survive a reload", async () => {
  await page.locator("#settings summary").click();
  const chosen = { temperature: "0.5", top_k: "7", top_p: "0.9", max_tokens: "99", seed: "9007199254740991", system: "Be brief." };
  for (const [name, value] of Object.entries(chosen)) await page.locator(`#${name}`).fill(value);
  await page.reload();
  await page.locator("article").last().waitFor();
  for (const [name, value] of Object.entries(chosen)) assert.equal(await page.locator(`#${name}`).inputValue(), value);
  await ask(page, "say: set");
  const { messages, stream, stream_options, ...sampling } = requests.at(-1);
  assert.deepEqual(sampling, { temperature: 0.5, top_k: 7, top_p: 0.9, max_tokens: 99, seed: 9007199254740991 });
  assert.deepEqual(messages[0], { role: "system", content: "Be brief." });
  await page.locator("#fresh").click();
  assert.equal(await page.locator("#temperature").inputValue(), "0.8");
  assert.equal(await page.locator("#system").inputValue(), "");
  await page.locator("#settings summary").click();
  await page.locator("#top_k").fill("9");
  await page.reload();
  await page.locator("#model", { hasText: /./ }).waitFor();
  assert.equal(await page.locator("#top_k").inputValue(), "9", "before the first question too");
  await page.getByRole("button", { name: "say: one", exact: true }).click();
  assert.equal(await page.locator("#temperature").inputValue(), "0.5");
});

test("a value out of bounds is named beside its field, and nothing is asked with it", async () => {
  const WRONG = { temperature: ["2.1", "-1"], top_k: ["1.5", "-1"], top_p: ["1.01"], max_tokens: ["0"], seed: ["-1", "9007199254740993"] };
  await page.locator("#settings").evaluate((box) => { box.open = true; });
  for (const [name, values] of Object.entries(WRONG)) {
    const good = await page.locator(`#${name}`).inputValue();
    for (const value of values) {
      await page.locator(`#${name}`).fill(value);
      assert.match(await page.locator(`#${name}-problem`).innerText(), /must be a (whole )?number from/);
      assert.equal(await page.locator(`#${name}`).getAttribute("aria-invalid"), "true");
    }
    if (name === "temperature") {
      await accessible(page);
      const asked = requests.length;
      await page.locator("#text").fill("say: wrong");
      await page.locator("#text").press("Enter");
      assert.equal(await page.evaluate(() => document.activeElement.id), "temperature");
      assert.equal(requests.length, asked);
      assert.equal(await page.locator("#text").inputValue(), "say: wrong");
    }
    await page.locator(`#${name}`).fill(good);
    assert.equal(await page.locator(`#${name}-problem`).isVisible(), false);
  }
  assert.deepEqual(page.faults, []);
});

test("an edit goes on when the server is back, and when another tab keeps the chat", async () => {
  const page = await open(browser, url);
  await ask(page, "say: one");
  await ask(page, "say: two");
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.getByLabel("Your question").fill("say: mine");
  await page.getByLabel("Your question").press("Home");
  const back = async () => {      // until the page has drawn anew
    await page.evaluate(() => {
      document.querySelector("article").drawn = true;
      dispatchEvent(new Event("online"));
    });
    await page.waitForFunction(() => !document.querySelector("article").drawn);
  };
  const editing = () => page.evaluate(() => {
    const { value, selectionStart } = document.activeElement;
    return [value, selectionStart];
  });
  await back();
  assert.deepEqual(await editing(), ["say: mine", 0]);
  const other = await page.context().newPage();
  await other.goto(url);
  await other.getByRole("button", { name: "Edit" }).first().click();
  await other.getByLabel("Your question").fill("say: other");
  await other.getByLabel("Your question").press("Enter");
  await page.getByText("1 of 2").waitFor();
  assert.deepEqual(await editing(), ["say: mine", 0]);
  await answered(other);
  await page.getByLabel("Your question").press("Enter");
  assert.equal(await (await answered(page)).innerText(), "mine");
  await page.getByText("3 of 3").waitFor();
  await page.getByRole("button", { name: "Edit" }).click();
  await page.getByLabel("Your question").fill("never asked");
  await back();
  await page.getByLabel("Your question").press("Escape");
  assert.deepEqual(await page.locator("article .said").allInnerTexts(), ["say: mine", "mine"]);
});
