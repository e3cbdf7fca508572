// The page: what is open, and what the user does with it. Each of the other modules has one part.

import { answer } from "./answering.js";
import { list } from "./chats.js";
import { Connection } from "./connection.js";
import { add, create, lastAnswer, path, select, text } from "./conversation.js";
import { at } from "./dom.js";
import { offer } from "./examples.js";
import { listen } from "./keyboard.js";
import { draw, editor, grow, measure, scroll } from "./log.js";
import { SettingFields, usual } from "./settings.js";
import { apiKey, forget, keep, load, watch } from "./store.js";
import { download, read } from "./transfer.js";

const chats = new Map();      // by id, those that have a message, a name or settings of their own
let open = fresh();           // the one that is shown
let running = null;           // {controller, done, number} of the answer that is being written

const connection = new Connection({ found: () => running || redraw(), trouble });
const fields = new SettingFields(at("fields"), (name, value) => {
  if (open.settings[name] === value) return;
  open.settings[name] = value;
  save(open);
});

function fresh() {
  return { ...create(), settings: usual() };
}

// Says what went wrong; `retry` does it again.
function trouble(sentence, retry = null) {
  at("said").textContent = sentence;
  at("trouble").hidden = !sentence;
  at("retry").hidden = !retry;
  at("retry").onclick = retry;
}

function save(conversation) {
  chats.set(conversation.id, conversation);
  const lost = "This browser has no room for the chat: it is shown here and will be lost. Export it, or delete others.";
  if (!keep(conversation)) trouble(lost);
  show();
}

function show() {
  list([...chats.values()], open.id, { open: enter, remove });
}

function redraw() {
  draw(open, running?.number, { edit, again: regenerate, select: turn });
  offer(path(open).length ? [] : connection.questions, (question) => running || ask(open.leaf, question));
  measure(open, connection.context);
  at("send").hidden = Boolean(running);
  at("stop").hidden = !running;
  const asked = path(open).length > 0 && open.messages[open.leaf].role === "user";
  if (asked && !running && at("trouble").hidden) trouble("This question has no answer yet.", again);
}

async function enter(id) {
  while (running) await stop();
  open = chats.get(id) ?? fresh();
  document.body.classList.remove("chats-open");
  at("toggle").setAttribute("aria-expanded", "false");
  trouble("");
  fields.show(open.settings);
  redraw();
  show();
  scroll(true);
  at("text").focus();
}

async function remove(id) {
  if (id === open.id) await enter("");
  chats.delete(id);
  forget(id);
  show();
  at("text").focus();
}

// Ends the answer that is being written, and waits until what came of it is kept.
async function stop() {
  while (running) {
    running.controller.abort();
    await running.done;
  }
}

// Whether all settings are good; the first that is not gets the focus.
function settled() {
  const wrong = fields.wrong();
  at("settings").open ||= Boolean(wrong);
  wrong?.focus();
  return !wrong;
}

function again() {
  if (!running && settled()) reply();
}

async function reply() {
  trouble("");
  running = { controller: new AbortController(), number: -1 };
  running.done = written(open, running);
  await running.done;
}

async function written(conversation, { controller }) {
  save(conversation);
  try {
    const key = apiKey();
    await answer(conversation, { context: connection.context, key, signal: controller.signal, changed });
    at("announced").textContent = text(lastAnswer(conversation));
  } catch (error) {
    if (error.status === 401) connection.refuse();
    else trouble(error.message, again);
    if (!error.status) connection.look();
  }
  running = null;
  save(conversation);
  redraw();
  scroll(false);
}

function changed(number) {
  if (running.number === number) return grow(open.messages[number]);
  running.number = number;
  at("announced").textContent = "nanochat is writing.";
  redraw();
  scroll(true);
}

// Puts a question into the chat; false where that has no room for it.
function put(parent, question) {
  try {
    add(open, parent, "user", [{ type: "text", text: question }]);
    return true;
  } catch (error) {
    trouble(error.message);
    return false;
  }
}

async function ask(parent, question) {
  if (!settled()) return;
  while (running) await stop();
  if (put(parent, question)) await reply();
}

function edit(number, question) {
  return ask(open.messages[number].parent, question);
}

async function regenerate(number) {
  if (!settled()) return;
  while (running) await stop();
  const [conversation, before] = [open, open.leaf];
  open.leaf = open.messages[number].parent;
  await reply();
  if (conversation !== open || open.messages[open.leaf].role === "assistant") return;
  open.leaf = before;      // nothing came: the answer that there was is shown again
  save(open);
  redraw();
  trouble(at("said").textContent, () => regenerate(number));
}

async function turn(number) {
  while (running) await stop();
  select(open, number);
  save(open);
  redraw();
}

async function send() {
  const question = at("text").value.trim();
  if (!question || running || !settled() || !put(open.leaf, question)) return;
  at("text").value = "";
  at("text").focus();
  await reply();
}

async function take(file) {
  try {
    const found = await read(file);
    for (const each of found) chats.set(each.id, each);
    const lost = found.filter((each) => !keep(each)).length;
    show();
    const imported = `Imported chats: ${found.length}`;
    const room = `This browser has room for ${found.length - lost} of them; shown only until the page is closed: ${lost}.`;
    if (lost) trouble(`${imported}. ${room}`);
    else at("announced").textContent = `${imported}.`;
  } catch (error) {
    trouble(error.message);
  }
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
at("stop").addEventListener("click", stop);
at("fresh").addEventListener("click", () => enter(""));
at("search").addEventListener("input", show);
at("export").addEventListener("click", () => download([...chats.values()]));
at("import").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async ({ target }) => {
  if (target.files[0]) await take(target.files[0]);
  target.value = "";
});
at("name").addEventListener("change", () => { open.name = at("name").value.trim(); save(open); });
at("toggle").addEventListener("click", () => {
  at("toggle").setAttribute("aria-expanded", String(document.body.classList.toggle("chats-open")));
});
addEventListener("pagehide", () => running && keep(open));
listen({ stop, send, fresh: () => enter(""), edit: () => [...document.querySelectorAll(".change")].at(-1)?.click() });
watch((id, conversation) => {
  if (conversation) chats.set(id, conversation);
  else chats.delete(id);
  if (id === open.id && !running && conversation) {
    const edited = editor(open)?.number;
    open = conversation;
    if (open.messages[edited]?.role === "user" && !path(open).includes(edited)) select(open, edited);
    fields.show(open.settings);
    redraw();
  }
  show();
});

const { conversations, problem } = load();
for (const conversation of conversations) chats.set(conversation.id, conversation);
const newest = conversations.sort((one, other) => other.changed - one.changed)[0];
await enter(newest?.id ?? "");
if (problem) trouble(problem);
await connection.look();
