// Answers are Markdown, and nothing in them but that.

import assert from "node:assert/strict";
import { before, test } from "node:test";
import { accessible, ask, browse, open, serve } from "./browser.mjs";

let page;

before(async () => {
  const [{ url }, browser] = await Promise.all([serve(), browse()]);
  page = await open(browser, url);
});

test("Markdown becomes elements", async () => {
  const said = await ask(page, "say: # Title\\n\\n**bold** and `code`\\n\\n- one\\n- two\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |");
  assert.equal(await said.locator("h3").innerText(), "Title");
  assert.equal(await said.locator("strong").innerText(), "bold");
  assert.deepEqual(await said.locator("li").allInnerTexts(), ["one", "two"]);
  assert.deepEqual(await said.locator("td").allInnerTexts(), ["1", "2"]);
  await accessible(page);
});

test("code is coloured and copied", async () => {
  const said = await ask(page, "say: ```python\\ndef f():\\n    return 1\\n```");
  assert.deepEqual(await said.locator(".hljs-keyword").allInnerTexts(), ["def", "return"]);
  await said.locator("figure button").click();
  await said.getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "def f():\n    return 1");
  await accessible(page);
});

test("an answer is copied as it was written", async () => {
  const said = await ask(page, "say: **bold** and `code`");
  await said.locator("xpath=..").getByRole("button", { name: "Copy the answer" }).click();
  await said.locator("xpath=..").getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "**bold** and `code`");
});

test("a link says where it leads and tells that place nothing", async () => {
  const said = await ask(page, "say: [here](https://example.org/a) ## [](https://example.org/b)");
  const link = said.locator("a").first();
  assert.equal(await link.getAttribute("title"), "https://example.org/a");
  assert.equal(await link.getAttribute("target"), "_blank");
  assert.match(await link.getAttribute("rel"), /noopener noreferrer/);
  await accessible(page);
});

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg onload=alert(1)>",
  "<svg><script>alert(1)</script></svg>",
  "<iframe src=javascript:alert(1)></iframe>",
  "<iframe srcdoc='<script>alert(1)</script>'>",
  "<object data=/v1/models></object><embed src=/v1/models>",
  "<base href=https://evil.example/>",
  "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
  "<link rel=stylesheet href=https://evil.example/a.css>",
  "<style>*{display:none}</style>",
  "<form action=https://evil.example/><input name=a><button>go</button></form>",
  "<a href=javascript:alert(1)>a</a>",
  "<details open ontoggle=alert(1)>",
  "<video><source onerror=alert(1)></video>",
  "<body onload=alert(1)>",
  "<input autofocus onfocus=alert(1)>",
  "<div id=send></div><img name=getElementById>",
  "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
  "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
  "<template><script>alert(1)</script></template>",
  "<!--><img src=x onerror=alert(1)>-->",
  "<![CDATA[<img src=x onerror=alert(1)>]]>",
  "<dialog open>over all</dialog>",
  "<p style='position:fixed;inset:0;background:red'>over all</p>",
  "<p class='problem main' role=alert aria-label=x>a</p>",
  "[a](javascript:alert(1))",
  "[a](JaVaScRiPt:alert(1))",
  "[a](java&#x73;cript:alert(1))",
  "[a](&#1;javascript:alert(1))",
  "[a](data:text/html,<script>alert(1)</script>)",
  "[a](vbscript:msgbox(1))",
  "[a](file:///etc/passwd)",
  "[a](//evil.example/)",
  "[a](/v1/models)",
  "[a](https://a.example/ \"x' onclick='alert(1)\")",
  "![a](https://evil.example/a.png)",
  "![a](x\" onerror=\"alert(1))",
  "![a](javascript:alert(1))",
  "<javascript:alert(1)>",
  "[a]: javascript:alert(1)\\n\\n[a]",
  "```\"><img/src=x/onerror=alert(1)>\\ncode\\n```",
  "```html\\n<img src=x onerror=alert(1)>\\n```",
  "`<img src=x onerror=alert(1)>`",
  "| <img src=x onerror=alert(1)> | b |\\n|---|---|\\n| <script>alert(1)</script> | 2 |",
  "# <img src=x onerror=alert(1)>",
  "&lt;img src=x onerror=alert(1)&gt;",
  "**<b onmouseover=alert(1)>x</b>**",
  "- [ ] <input type=checkbox onclick=alert(1)>",
  ">".repeat(150) + " deep",
  "*".repeat(150) + "a",
  "[".repeat(150) + "a",
];
const ALLOWED = new Set(
  "DIV P BR STRONG EM DEL CODE PRE SPAN A UL OL LI BLOCKQUOTE HR TABLE THEAD TBODY TR TH TD H3 H4 H5 H6 FIGURE FIGCAPTION BUTTON".split(" "),
);

test(`${HOSTILE.length} hostile answers are only text`, async () => {
  for (const hostile of HOSTILE) {
    await page.locator("#fresh").click();
    const said = await ask(page, `say: ${hostile}`);
    const found = await said.evaluate((box) => [...box.querySelectorAll("*")].map((each) => [
      each.tagName,
      [...each.attributes].map(({ name, value }) => `${name}=${value}`),
      each.tagName === "A" ? each.protocol : "",
    ]));
    assert.notEqual(await said.innerText(), "", hostile);
    for (const [tag, attributes, protocol] of found) {
      assert(ALLOWED.has(tag), `${tag} of ${hostile}`);
      assert.doesNotMatch(attributes.join(" "), /\b(on\w+|style|src|id|name)=/, hostile);
      assert(["", "https:", "http:", "mailto:"].includes(protocol), `${protocol} of ${hostile}`);
      assert(!attributes.some((each) => each.startsWith("href=/")), hostile);
    }
  }
  assert.deepEqual(page.faults, []);
});

test("the browser refuses what would get past all that", async () => {
  const refused = await page.evaluate(() => {
    try {
      document.createElement("div").innerHTML = "<b>x</b>";
      return "";
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(refused, "TypeError");
  await page.evaluate(() => document.body.append(Object.assign(document.createElement("img"), { src: "/v1/models" })));
  await page.waitForFunction(() => true);
  assert(page.faults.splice(0).some((fault) => fault.startsWith("img-src")));
});
