// The conversation that is open, and how much of the model's context it fills.

import { tokens } from "./context.js";
import { lastAnswer, path } from "./conversation.js";
import { at } from "./dom.js";
import { article, say } from "./message.js";

let due = 0;         // the frame in which an answer that is being written is shown again
let rested = 0;      // when that may be, in milliseconds

// The question's editor that is open in this conversation, if one is.
export function editor({ id }) {
  const found = at("log").querySelector(".edit");
  return found?.chat === id ? found : null;
}

// Draws all of it but an editor, which stays; `running` is the number of the message that is being written, if one is.
export function draw(conversation, running, actions) {
  cancelAnimationFrame(due);
  due = 0;
  const omitted = lastAnswer(conversation)?.figures.omitted ?? 0;
  const usable = running === undefined ? actions : null;
  const [edit, focused] = [editor(conversation), document.activeElement];
  const made = path(conversation).map((number, place) => article(conversation, number, {
    omitted: place < omitted, running: number === running, actions: usable, editor: edit?.number === number && edit,
  }));
  at("log").replaceChildren(...made);
  if (edit?.contains(focused)) focused.focus({ preventScroll: true });
  if (document.activeElement !== at("name")) at("name").value = conversation.name;
}

// Shows more of the last message, at most once a frame, and a fifth of the time at most.
export function grow(message) {
  due ||= requestAnimationFrame(() => {
    const begun = performance.now();
    due = 0;
    if (begun < rested) return grow(message);
    say(at("log").lastElementChild, message, true);
    scroll(false);
    rested = performance.now() + 4 * (performance.now() - begun);
  });
}

// Goes to the end; unless `always`, only where the end was about to be seen.
export function scroll(always) {
  const view = at("scroll");
  if (always || view.scrollHeight - view.scrollTop - view.clientHeight < 160) view.scrollTop = view.scrollHeight;
}

// Shows how many tokens are in use; without any figures only how many there may be.
export function measure(conversation, context) {
  const last = conversation.messages[conversation.leaf];
  const used = last ? tokens(conversation, lastAnswer(conversation)?.figures.omitted) : 0;
  at("full").hidden = !context;
  at("meter").hidden = used === undefined;
  Object.assign(at("meter"), { max: context || 1, high: context * 0.9, value: used ?? 0 });
  const about = !last || last.figures.sent ? "" : "about ";
  const part = used === undefined ? "" : `${about}${Math.round(used).toLocaleString("en")} of `;
  at("used").textContent = `${part}${context.toLocaleString("en")} tokens of context`;
}
