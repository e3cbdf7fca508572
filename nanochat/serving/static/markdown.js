// A model's Markdown as elements. marked reads it, highlight.js colours its code, DOMPurify lets through nothing but
// the tags and attributes below: HTML that the model wrote is shown as the text that it is.

import hljs from "./vendor/highlight.js";
import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { copyButton, element } from "./dom.js";

const MAX_TEXT = 32_000;       // characters; what is longer is shown as plain text, for some of it is slow to read
const MAX_CODE = 20_000;       // characters of code that are coloured
const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) =>
  text.replace(/[&<>"']/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[sign]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  tokenizer: { list: (source) => (/^ *\d{1,9}[.)] *(?:\n|$)/.test(source) ? undefined : false) },   // "42." is a number
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,   // nothing is fetched
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }) {
      const language = (lang ?? "").split(/\s/)[0];
      const known = hljs.getLanguage(language);
      const coloured = known && text.length <= MAX_CODE;
      const inside = coloured ? hljs.highlight(text, { language, ignoreIllegals: true }).value : escaped(text);
      return `<pre><code class="${escaped(known?.name ?? "")}">${inside}</code></pre>`;
    },
  },
});

// The elements that a text makes; `number` tells its blocks of code apart for screen readers.
export function render(text) {
  const box = element("div", { className: "markdown" });
  if (text.length > MAX_TEXT) return plain(box, text);
  try {
    box.append(DOMPurify.sanitize(marked.parse(text), ALLOWED));
  } catch {      // nested deeper than the parser can go
    return plain(box, text);
  }
  box.querySelectorAll("pre > code").forEach(frame);
  box.querySelectorAll("a").forEach(link);
  box.querySelectorAll("table").forEach(scrollable);
  rank(box.querySelectorAll("h1, h2, h3, h4, h5, h6"));
  return box;
}

function plain(box, text) {
  box.replaceChildren(element("p", { textContent: text }));
  return box;
}

function frame(code, index) {
  const language = code.className;
  code.className = "hljs";
  const pre = code.parentElement;
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `Code ${index + 1}`);
  const copying = copyButton(() => code.textContent, `code ${index + 1}`);
  const caption = element("figcaption", {}, language || "Code", copying);
  const figure = element("figure", { className: "code" }, caption);
  pre.replaceWith(figure);
  figure.append(pre);
}

// Opens beside the chat, says where it leads, and tells that place nothing.
function link(anchor) {
  if (!anchor.hasAttribute("href")) return void anchor.replaceWith(...anchor.childNodes);
  if (!anchor.textContent.trim()) anchor.textContent = anchor.href;
  Object.assign(anchor, { target: "_blank", rel: "noopener noreferrer nofollow", title: anchor.href });
}

function scrollable(table) {
  const box = element("div", { className: "table", tabIndex: 0 });
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  table.replaceWith(box);
  box.append(table);
}

// Headings stand below the message's own, without a gap between two levels.
function rank(headings) {
  const above = [];
  for (const heading of headings) {
    const level = Number(heading.localName[1]);
    while (above.at(-1) >= level) above.pop();
    above.push(level);
    heading.replaceWith(element(`h${Math.min(6, 2 + above.length)}`, {}, ...heading.childNodes));
  }
}
