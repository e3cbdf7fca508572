// The list of chats: the newest first, those that a search finds.

import { text } from "./conversation.js";
import { at, button, element } from "./dom.js";

// `actions` are {open(id), remove(id)}.
export function list(conversations, openId, actions) {
  const sought = at("search").value.trim().toLowerCase();
  const found = conversations.filter((each) => !sought || has(each, sought));
  found.sort((one, other) => other.changed - one.changed);
  at("list").replaceChildren(...found.map((each) => item(each, each.id === openId, actions)));
  at("none").hidden = found.length > 0 || !sought;
}

function has({ name, messages }, sought) {
  return [name, ...messages.map(text)].some((each) => each.toLowerCase().includes(sought));
}

function item({ id, name }, current, actions) {
  const title = name || "New chat";
  const open = button(title, () => actions.open(id), { title });
  if (current) open.setAttribute("aria-current", "true");
  const remove = button("✕", () => confirm(`Delete the chat "${title}"?`) && actions.remove(id));
  remove.setAttribute("aria-label", `Delete ${title}`);
  return element("li", {}, open, remove);
}
