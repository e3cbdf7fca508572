// A conversation: a tree of messages, of which one branch is shown.
//
// `messages` only grows. A message's number is its place in it, `parent` the number of the one before it (-1: none),
// `leaf` that of the last one of the branch that is shown. Edited questions and answers written again are siblings.

export const LIMITS = { name: 200, messages: 2048, parts: 10_000, characters: 1_000_000 };

export function create() {
  const id = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16).padStart(8, "0")).join("");
  return { id, name: "", changed: Date.now(), settings: {}, messages: [], leaf: -1 };
}

// Adds a message below `parent`, shows its branch, and returns its number.
export function add(conversation, parent, role, parts) {
  if (conversation.messages.length >= LIMITS.messages) {
    throw new Error(`This chat has ${LIMITS.messages} messages, which is the most; begin a new one.`);
  }
  const characters = length(conversation.messages) + length([{ parts }]);
  if (characters > LIMITS.characters / 2) {      // answers come on top
    throw new Error("This chat would have more than 500,000 characters, which is the most; begin a new one.");
  }
  conversation.messages.push({ parent, role, parts, note: "", figures: {} });
  conversation.leaf = conversation.messages.length - 1;
  conversation.changed = Date.now();
  if (role === "user" && !conversation.name) conversation.name = firstWords(text({ parts }));
  return conversation.leaf;
}

const firstWords = (question) => [...question.trim().split("\n")[0]].slice(0, 60).join("");

// Takes back the message that was added last.
export function takeBack(conversation) {
  conversation.leaf = conversation.messages.pop().parent;
}

// The numbers of the messages that are shown, the first one first.
export function path(conversation) {
  const numbers = [];
  for (let at = conversation.leaf; at >= 0; at = conversation.messages[at].parent) numbers.unshift(at);
  return numbers;
}

// The numbers of the messages that stand where this one does.
export function siblings(conversation, number) {
  const { parent } = conversation.messages[number];
  return [...conversation.messages.keys()].filter((at) => conversation.messages[at].parent === parent);
}

// Shows the newest branch through a message.
export function select(conversation, number) {
  let leaf = number;
  conversation.messages.forEach((message, at) => { if (message.parent === leaf) leaf = at; });
  conversation.leaf = leaf;
}

export const text = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");

// How many characters messages have.
export function length(messages) {
  return messages.reduce((sum, { parts }) => parts.reduce((more, part) => more + part.text.length, sum), 0);
}

// The newest answer of the branch that is shown.
export function lastAnswer(conversation) {
  return path(conversation).map((at) => conversation.messages[at]).findLast((message) => message.role === "assistant");
}
