// What the tests of the page share: a server process, a browser, and a page of it in which nothing may go wrong unseen.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { after } from "node:test";
import axe from "axe-core";
import { chromium } from "playwright-core";

const HERE = import.meta.dirname;
export const PYTHON = process.env.PYTHON ?? `${HERE}/../../.venv/bin/python`;
const PATIENCE = 120_000;      // milliseconds; nothing waits so long but where it fails

const endings = [];      // of what was started
after(() => Promise.all(endings.map((end) => end())));

const freePort = () => new Promise((resolve) => {
  const probe = createServer().listen(0, "127.0.0.1", () => {
    const { port } = probe.address();
    probe.close(() => resolve(port));
  });
});

// {url, stop()} of a server that answers; `options` as page_server.py takes them.
export async function serve(options = [], { keys, port } = {}) {
  const chosen = port ?? (await freePort());
  const env = { ...process.env, OMP_NUM_THREADS: "1", ...(keys ? { NANOCHAT_API_KEYS: keys } : {}) };
  const command = [`${HERE}/page_server.py`, String(chosen), ...options];
  const child = spawn(PYTHON, command, { stdio: ["ignore", "ignore", "inherit"], env });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const stop = () => (child.kill("SIGKILL"), ended);
  endings.push(stop);
  const url = `http://127.0.0.1:${chosen}`;
  for (;;) {
    assert.equal(child.exitCode, null, "the server has ended");
    if (await fetch(`${url}/readyz`).then(({ ok }) => ok, () => false)) return { url, port: chosen, stop };
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

export async function browse() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], timeout: PATIENCE });
  endings.push(() => browser.close());
  return browser;
}

// The chat page of a fresh profile.
export async function open(browser, url, options = {}) {
  const page = await visit(browser, url, "/", options);
  await page.locator("#model", { hasText: /./ }).or(page.locator("#said", { hasText: /./ })).first().waitFor();
  return page;
}

// A page of a fresh profile; `faults` gets every error, violation of the policy and request that leaves the server.
export async function visit(browser, url, path, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await context.newPage();
  page.faults = [];
  await page.exposeFunction("fault", (what) => page.faults.push(what));
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => window.fault(`${event.violatedDirective} ${event.blockedURI}`));
    window.alert = (said) => window.fault(`alert ${said}`);
  });
  page.on("pageerror", (error) => page.faults.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(`${url}/`) && !/^(data|blob):/.test(request.url())) page.faults.push(request.url());
  });
  context.on("page", () => page.faults.push("another page was opened"));
  await page.goto(url + path);
  return page;
}

// Asks, and waits for the whole answer, which is returned as a locator.
export async function ask(page, question) {
  await page.locator("#text").fill(question);
  await page.locator("#text").press("Enter");
  return answered(page);
}

export async function answered(page) {
  await page.locator("#stop").waitFor({ state: "hidden" });
  return page.locator("article.assistant .said").last();
}

// Fails on every finding of axe that is not minor, but those whose names have a reason in `known`; returns all names.
export async function accessible(page, known = {}) {
  await page.evaluate(axe.source).catch(() => page.addScriptTag({ content: axe.source }));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.filter(({ id, impact }) => impact !== "minor" && !(id in known));
  assert.deepEqual(found.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`), []);
  return violations.map(({ id }) => id);
}
