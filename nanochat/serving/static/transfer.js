// Conversations as a file, and back.

import { json } from "./api.js";
import { element } from "./dom.js";
import { conversationFrom, list, need, object } from "./shape.js";

const FORMAT = "nanochat-conversations";
const MAX_BYTES = 16 << 20;
const MAX_CONVERSATIONS = 1000;

export function download(conversations) {
  const kept = conversations.map(({ id, ...rest }) => rest);
  const body = json({ format: FORMAT, version: 1, conversations: kept }, 1);
  const address = URL.createObjectURL(new Blob([body], { type: "application/json" }));
  element("a", { href: address, download: `nanochat-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// The conversations of a file, all or none; an Error that says what is wrong with it.
export async function read(file) {
  need(file.size <= MAX_BYTES, `${file.name} is larger than the ${MAX_BYTES >> 20} MiB that are read; split it.`);
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON; choose a file that Export made.`);
  }
  try {
    object(value, "The file");
    need(value.format === FORMAT && value.version === 1, `format must be ${FORMAT}, and version 1.`);
    const found = list(value.conversations, MAX_CONVERSATIONS, "conversations");
    return found.map((each, index) => conversationFrom(each, `conversations.${index}`));
  } catch (error) {
    throw new Error(`${file.name} was not imported: ${error.message}`);
  }
}
