// The API's page: what it shows, for those who do not see it too, and that a request is made from it, with a key.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, browse, serve, visit } from "./browser.mjs";

// What axe finds moderate in Swagger UI's own markup, which only another release of it could mend.
const SWAGGER = {
  "heading-order": "its groups of paths are h3 right below the page's h1, and so is the title of its dialog",
  "region": "the page's title stands before its main, and its dialog beside that",
};

let browser, server;

before(async () => {
  [server, browser] = await Promise.all([serve([], { keys: "secret" }), browse()]);
});

test("the page shows every path of the description, and asks one of them with the key", async () => {
  const page = await visit(browser, server.url, "/docs");
  await page.locator(".opblock").first().waitFor();
  const { paths } = await (await fetch(`${server.url}/openapi.json`)).json();
  const heard = await accessible(page, SWAGGER);
  const shown = await page.locator(".opblock-summary-path").evaluateAll((all) => all.map(({ dataset }) => dataset.path));
  assert.deepEqual(new Set(shown), new Set(Object.keys(paths)));

  await page.locator("button.authorize").click();
  await page.locator(".auth-container input").fill("secret");
  heard.push(...(await accessible(page, SWAGGER)));
  await page.locator(".auth-btn-wrapper .authorize").click();
  await page.locator(".auth-btn-wrapper .btn-done").click();

  const asked = page.locator(".opblock", { has: page.locator('[data-path="/tokenize"]') });
  await asked.locator(".opblock-summary").click();
  await asked.getByText("The tokens of a text").first().waitFor();      // read as Markdown
  await asked.locator(".try-out__btn").click();
  await asked.locator("textarea").first().fill(JSON.stringify({ prompt: "fox" }));
  await asked.locator("button.execute").click();
  await asked.locator(".live-responses-table .response", { hasText: "max_model_len" }).first().waitFor();
  heard.push(...(await accessible(page, SWAGGER)));
  assert.deepEqual(Object.keys(SWAGGER).filter((name) => !heard.includes(name)), [], "mended in Swagger UI: take it out");
  assert.deepEqual(page.faults, []);
});
