// Conversations in this browser's local storage, one entry each; the browser bounds them all, most often at 5 MB.

import { conversationFrom } from "./shape.js";

const PREFIX = "nanochat.chat.";
const KEY = "nanochat.key";

// {conversations, problem}: those kept, and a sentence where some could not be read.
export function load() {
  let names;
  try {
    names = Object.keys(localStorage).filter((each) => each.startsWith(PREFIX));
  } catch {
    return { conversations: [], problem: "This browser keeps nothing for this page: chats are lost with it." };
  }
  const conversations = names.map(read).filter(Boolean);
  const damaged = names.length - conversations.length;
  const problem = damaged ? `${damaged} of the chats kept here can't be read; they are left as they are.` : "";
  return { conversations, problem };
}

function read(name) {
  try {
    return { ...conversationFrom(JSON.parse(localStorage.getItem(name)), name), id: name.slice(PREFIX.length) };
  } catch {
    return null;
  }
}

// Whether there is room.
export function keep({ id, ...rest }) {
  try {
    localStorage.setItem(PREFIX + id, JSON.stringify(rest));
    return true;
  } catch {
    return false;
  }
}

export function forget(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // where nothing is kept there is nothing to forget
  }
}

// `heard(id, conversation)` when another tab has kept a conversation; null: it was deleted.
export function watch(heard) {
  addEventListener("storage", ({ key, newValue }) => {
    if (key?.startsWith(PREFIX)) heard(key.slice(PREFIX.length), newValue === null ? null : read(key));
  });
}

// The API key, for this tab alone; where the browser keeps nothing, until the page is loaded again.
let held = "";

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? held;
  } catch {
    return held;
  }
}

export function keepApiKey(key) {
  held = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // it is held above
  }
}
