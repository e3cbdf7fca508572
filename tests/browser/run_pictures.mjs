// Takes the pictures that run_pictures.py wants into $PICTURES, of what is named in $REPORT, $PRINT, $MLFLOW, $TERMINAL.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { REPORT, PRINT, MLFLOW, TERMINAL, PICTURES, ALL } = process.env;
const XTERM = `${import.meta.dirname}/node_modules/@xterm/xterm`;
const PATIENCE = 600_000;
const A4 = { width: 794, height: 1123 };
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: PATIENCE });

async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  await page.goto(url);
  return page;
}

async function report() {
  await (await open(REPORT)).screenshot({ path: `${PICTURES}/report.png` });
  if (!ALL) return;
  await (await open(REPORT)).screenshot({ path: `${ALL}/light.png`, fullPage: true });
  await (await open(REPORT, { colorScheme: "dark" })).screenshot({ path: `${ALL}/dark.png`, fullPage: true });
  const phone = await open(REPORT, { viewport: { width: 375, height: 700 } });
  await phone.screenshot({ path: `${ALL}/phone.png`, fullPage: true });
  await (await open(REPORT, { colorScheme: "dark" })).pdf({ path: `${ALL}/print.pdf` });
}

async function printed() {
  const page = await open(PRINT, { viewport: A4, colorScheme: "dark" });
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  await page.screenshot({ path: `${PICTURES}/report-print.png` });
}

async function mlflow(url, seen, path) {
  const page = await open(url, { viewport: { width: 1300, height: 800 } });
  await page.getByText(seen).first().waitFor();
  await page.getByRole("button", { name: "Close" }).first().click();      // its assistant
  if (path) await page.screenshot({ path });
  return page;
}

async function terminal() {
  const page = await open("about:blank");
  await page.addStyleTag({ path: `${XTERM}/css/xterm.css` });
  await page.addStyleTag({ content: "body { margin: 0 } #terminal { padding: 12px; background: #111316; width: max-content }" });
  await page.addScriptTag({ path: `${XTERM}/lib/xterm.js` });
  await page.evaluate(({ text, rows, cols }) => {
    document.body.innerHTML = '<div id="terminal"></div>';
    const shown = new globalThis.Terminal({
      rows, cols, fontFamily: "DejaVu Sans Mono", fontSize: 14, theme: { background: "#111316" }, cursorInactiveStyle: "none",
    });
    shown.open(document.getElementById("terminal"));
    return new Promise((resolve) => { shown.write(text, () => requestAnimationFrame(resolve)); });
  }, { text: readFileSync(TERMINAL, "utf8"), rows: Number(process.env.ROWS), cols: Number(process.env.COLUMNS) });
  await page.locator("#terminal").screenshot({ path: `${PICTURES}/status.png` });
}

if (REPORT) await report();
if (PRINT) await printed();
if (TERMINAL) await terminal();
if (MLFLOW) {
  const runs = await mlflow(MLFLOW.replace(/runs\/[^?]+/, "runs"), "default.demo-");
  assert.match(runs.url(), /\/runs\?/);
  await runs.screenshot({ path: `${PICTURES}/mlflow.png` });
  if (ALL) await mlflow(MLFLOW, "Description", `${ALL}/mlflow-run.png`);
}
await browser.close();
