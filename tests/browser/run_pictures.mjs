// Takes the pictures that run_pictures.py wants into $PICTURES, of what is named in $REPORT, $MLFLOW and $TERMINAL.

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { REPORT, MLFLOW, TERMINAL, ROWS, COLUMNS, PICTURES, ALL } = process.env;
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
  const page = await open(REPORT, { viewport: A4, colorScheme: "dark" });
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  await page.screenshot({ path: `${PICTURES}/report-print.png` });
}

async function moreOfReport() {
  await (await open(REPORT)).screenshot({ path: `${ALL}/light.png`, fullPage: true });
  await (await open(REPORT, { colorScheme: "dark" })).screenshot({ path: `${ALL}/dark.png`, fullPage: true });
  const phone = await open(REPORT, { viewport: { width: 375, height: 700 } });
  await phone.screenshot({ path: `${ALL}/phone.png`, fullPage: true });
  await (await open(REPORT, { colorScheme: "dark" })).pdf({ path: `${ALL}/print.pdf` });
}

async function mlflow() {
  const page = await open(`${MLFLOW}&orderByKey=attributes.start_time&orderByAsc=true&compareRunsMode=CHART`, {
    viewport: { width: 1300, height: 800 },
  });
  await page.getByText("Model metrics").first().waitFor();
  await page.getByRole("button", { name: "Close" }).first().click();      // its assistant
  await page.getByRole("gridcell").getByRole("button").first().click();   // the run's stages
  await page.mouse.move(0, 0);
  await page.getByText("train/loss").first().waitFor();
  await page.locator(".js-line").nth(8).waitFor({ state: "attached" });   // those of the first row
  await page.waitForTimeout(2000);
  await page.screenshot({ path: `${PICTURES}/mlflow.png` });
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
  }, { text: readFileSync(TERMINAL, "utf8"), rows: Number(ROWS), cols: Number(COLUMNS) });
  await page.locator("#terminal").screenshot({ path: `${PICTURES}/status.png` });
}

await report();
await terminal();
await mlflow();
if (ALL) await moreOfReport();
await browser.close();
