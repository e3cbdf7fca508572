// Makes the pictures of the chat page in docs/pictures: `node tests/browser/screenshots.mjs`.

import { test } from "node:test";
import { ask, browse, open, serve } from "./browser.mjs";

const PICTURES = `${import.meta.dirname}/../../docs/pictures`;
const ANSWER = "A **prime** has two divisors: 1 and itself.\\n\\n```python\\ndef prime(n):\\n    return n > 1 and all(n % d for d in range(2, n))\\n```\\n\\n- 2, 3, 5 and 7 are primes\\n- 1 is none";

test("pictures", async () => {
  const [{ url }, browser] = await Promise.all([serve(), browse()]);
  const page = await open(browser, url, { viewport: { width: 1000, height: 720 } });
  await ask(page, "calculate");
  await page.locator("#name").fill("Six times seven");
  await page.locator("#fresh").click();
  await ask(page, `say: ${ANSWER}`);
  await page.locator("#name").fill("What is a prime?");
  await page.locator("#text").focus();
  await page.locator("#scroll").evaluate((view) => { view.scrollTop = view.scrollHeight; });
  await page.screenshot({ path: `${PICTURES}/chat.png` });
});
