// Checks what comes out of a file or out of the browser's storage: conversations, with bounds for everything in them.

import { create, LIMITS } from "./conversation.js";
import { problem, SETTINGS } from "./settings.js";

const ROLES = ["user", "assistant"];
const KINDS = ["text", "python", "python_output"];
const FIGURES = ["prompt", "tokens", "first", "seconds", "omitted", "sent"];

// The conversation that `value` describes, with an id of its own; an Error that names the place where it is none.
export function conversationFrom(value, place) {
  object(value, place);
  const characters = { left: LIMITS.characters };
  const messages = list(value.messages, LIMITS.messages, `${place}.messages`).map((message, number, all) =>
    messageFrom(message, number, all, characters, `${place}.messages.${number}`));
  const leaf = whole(value.leaf, -1, messages.length - 1, `${place}.leaf`);
  need(leaf >= 0 || !messages.length, `${place}.leaf must name a message.`);
  return {
    ...create(),
    name: words(value.name, LIMITS.name, `${place}.name`),
    changed: whole(value.changed, 0, 8.64e15, `${place}.changed`),
    settings: settingsFrom(value.settings, `${place}.settings`),
    messages,
    leaf,
  };
}

function messageFrom(value, number, all, characters, place) {
  object(value, place);
  need(ROLES.includes(value.role), `${place}.role must be user or assistant.`);
  const parent = whole(value.parent, -1, number - 1, `${place}.parent`);
  const below = parent < 0 ? "assistant" : all[parent].role;
  need(value.role !== "assistant" || (parent >= 0 && below === "user"), `${place} must follow a question.`);
  const parts = list(value.parts, LIMITS.parts, `${place}.parts`).map((part, index) => {
    object(part, `${place}.parts.${index}`);
    need(KINDS.includes(part.type), `${place}.parts.${index}.type must be one of ${KINDS.join(", ")}.`);
    const textual = value.role === "assistant" || part.type === "text";
    need(textual, `${place}.parts.${index}.type must be text in a question.`);
    const text = words(part.text, characters.left, `${place}.parts.${index}.text`);
    characters.left -= text.length;
    return { type: part.type, text };
  });
  const note = words(value.note, 1000, `${place}.note`);
  return { parent, role: value.role, parts, note, figures: figuresFrom(value.figures, place) };
}

function figuresFrom(value, place) {
  object(value, `${place}.figures`);
  const figures = {};
  for (const name of FIGURES.filter((each) => each in value)) {
    const good = Number.isFinite(value[name]) && value[name] >= 0 && value[name] <= 1e9;
    need(good, `${place}.figures.${name} must be a number from 0 to 1e9.`);
    figures[name] = value[name];
  }
  if ("model" in value) figures.model = words(value.model, 200, `${place}.figures.model`);
  return figures;
}

function settingsFrom(value, place) {
  object(value, place);
  const settings = {};
  for (const setting of SETTINGS.filter(({ name }) => name in value)) {
    const wrong = problem(setting, value[setting.name]);
    need(!wrong, `${place}.${setting.name}: ${wrong}`);
    settings[setting.name] = value[setting.name];
  }
  return settings;
}

export function need(good, sentence) {
  if (!good) throw new Error(sentence);
}

export function object(value, place) {
  need(value !== null && typeof value === "object" && !Array.isArray(value), `${place} must be an object.`);
}

export function list(value, most, place) {
  const good = Array.isArray(value) && value.length <= most;
  need(good, `${place} must be a list of at most ${most.toLocaleString("en")}.`);
  return value;
}

function words(value, longest, place) {
  const good = typeof value === "string" && value.length <= longest;
  need(good, `${place} must be a text of at most ${longest.toLocaleString("en")} characters.`);
  return value;
}

function whole(value, least, most, place) {
  const good = Number.isSafeInteger(value) && value >= least && value <= most;
  need(good, `${place} must be a whole number from ${least} to ${most}.`);
  return value;
}
