// Takes the pictures that run_pictures.py wants: of the report at $REPORT, or of MLflow's pages, a run's being $MLFLOW.

import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const { REPORT, MLFLOW, PICTURES, ALL } = process.env;
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: 120_000 });

async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 800 }, ...options });
  context.setDefaultTimeout(120_000);
  const page = await context.newPage();
  await page.goto(url);
  return page;
}

async function mlflow(url, seen, path) {
  const page = await open(url, { viewport: { width: 1300, height: 800 } });
  await page.getByText(seen).first().waitFor();
  await page.getByRole("button", { name: "Close" }).first().click();      // its assistant
  if (path) await page.screenshot({ path });
  return page;
}

if (REPORT) {
  await (await open(REPORT)).screenshot({ path: `${PICTURES}/report.png` });
  if (ALL) {
    await (await open(REPORT)).screenshot({ path: `${ALL}/light.png`, fullPage: true });
    await (await open(REPORT, { colorScheme: "dark" })).screenshot({ path: `${ALL}/dark.png`, fullPage: true });
    const phone = await open(REPORT, { viewport: { width: 375, height: 700 } });
    await phone.screenshot({ path: `${ALL}/phone.png`, fullPage: true });
    await (await open(REPORT, { colorScheme: "dark" })).pdf({ path: `${ALL}/print.pdf` });
  }
}
if (MLFLOW) {
  const runs = await mlflow(MLFLOW.replace(/runs\/[^?]+/, "runs"), "default.demo-");
  assert.match(runs.url(), /\/runs\?/);
  await runs.screenshot({ path: `${PICTURES}/mlflow.png` });
  if (ALL) await mlflow(MLFLOW, "Description", `${ALL}/mlflow-run.png`);
}
await browser.close();
