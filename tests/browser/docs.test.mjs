// The API's page: what it shows, and that a request is made from it, with a key.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { browse, serve, visit } from "./browser.mjs";

let browser, server;

before(async () => {
  [server, browser] = await Promise.all([serve([], { keys: "secret" }), browse()]);
});

test("the page shows every path of the description, and asks one of them with the key", async () => {
  const page = await visit(browser, server.url, "/docs");
  await page.locator(".opblock").first().waitFor();
  const { paths } = await (await fetch(`${server.url}/openapi.json`)).json();
  const shown = await page.locator(".opblock-summary-path").evaluateAll((all) => all.map(({ dataset }) => dataset.path));
  assert.deepEqual(new Set(shown), new Set(Object.keys(paths)));

  await page.locator("button.authorize").click();
  await page.locator(".auth-container input").fill("secret");
  await page.locator(".auth-btn-wrapper .authorize").click();
  await page.locator(".auth-btn-wrapper .btn-done").click();

  const asked = page.locator(".opblock", { has: page.locator('[data-path="/tokenize"]') });
  await asked.locator(".opblock-summary").click();
  await asked.getByText("The tokens of a text").first().waitFor();      // read as Markdown
  await asked.locator(".try-out__btn").click();
  await asked.locator("textarea").first().fill(JSON.stringify({ prompt: "fox" }));
  await asked.locator("button.execute").click();
  await asked.locator(".live-responses-table .response", { hasText: "max_model_len" }).first().waitFor();
  assert.deepEqual(page.faults, []);
});
