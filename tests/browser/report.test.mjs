// The report of a run: light, dark, on a phone, printed, and for those who do not see it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { accessible, browse, PYTHON } from "./browser.mjs";

let browser, folder;
before(async () => {
  folder = mkdtempSync(`${tmpdir()}/report-`);
  execFileSync(PYTHON, [`${import.meta.dirname}/report_page.py`, folder]);
  browser = await browse();
});
after(() => rmSync(folder, { recursive: true }));

async function open(options) {
  const page = await (await browser.newContext(options)).newPage();
  page.faults = [];
  page.on("request", (request) => request.url().startsWith("file:") || page.faults.push(request.url()));
  page.on("pageerror", (error) => page.faults.push(String(error)));
  await page.goto(pathToFileURL(`${folder}/report/report.html`).href);
  return page;
}

const ground = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const ink = (page) => page.evaluate(() => getComputedStyle(document.body).color);
const width = (page) => page.evaluate(() => document.documentElement.scrollWidth);

for (const colorScheme of ["light", "dark"]) {
  test(`axe has nothing to say of it in a ${colorScheme} scheme`, async () => {
    const page = await open({ colorScheme });
    await page.locator("summary").click();
    await accessible(page);
    assert.deepEqual(page.faults, []);
  });
}

test("it fits a phone", async () => {
  const page = await open({ viewport: { width: 375, height: 700 } });
  assert.ok((await width(page)) <= 375);
  await accessible(page);
});

test("it is printed light, with what is folded, in a dark scheme too", async () => {
  const page = await open({ colorScheme: "dark" });
  assert.notEqual(await ground(page), "rgb(255, 255, 255)");
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  assert.equal(await ground(page), "rgb(255, 255, 255)");
  assert.equal(await ink(page), "rgb(0, 0, 0)");
  const folded = page.locator("details dt").first();
  assert.ok((await folded.boundingBox()).height > 0, "the settings are printed");
  assert.equal(await page.locator("nav").isVisible(), false);
});

test("plots are called by their names", async () => {
  const page = await open({});
  const names = await page.getByRole("img").evaluateAll((all) => all.map((each) => each.querySelector("title").textContent));
  assert.match(names[0], /^Loss of BASE by step: Training loss from [\d.]+ at step 1 to [\d.]+ at 600$/);
  assert.ok(names.every((name) => name.length > 20));
});
