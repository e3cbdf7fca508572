// One message as an article: what was said, the tool's calls as steps, figures, and what can be done with it.

import { siblings, text } from "./conversation.js";
import { button, copyButton, element } from "./dom.js";
import { render } from "./markdown.js";

// `actions` are {edit(number, text), again(number), select(number)}, or null; `running`: it is being written; `editor`:
// in which it is being edited, if it is.
export function article(conversation, number, { omitted, running, actions, editor }) {
  const message = conversation.messages[number];
  const made = element("article", { className: message.role + (omitted ? " omitted" : "") });
  const title = element("h2", { textContent: message.role === "user" ? "You" : "nanochat" });
  made.append(title, element("div", { className: "said" }));
  if (editor) made.querySelector(".said").append(editor);
  else say(made, message, running);
  if (omitted) made.append(note("The context is full: the model no longer sees this."));
  if (!running) made.append(below(made, conversation, number, actions));
  return made;
}

// Shows what the message says by now.
export function say(made, message, running) {
  const said = made.querySelector(".said");
  if (message.role === "user") said.textContent = text(message);
  else said.replaceChildren(...blocks(message.parts), ...(running && !message.parts.length ? [waiting()] : []));
}

function blocks(parts) {
  const made = [];
  for (const part of parts) {
    if (part.type === "text") made.push(render(part.text));
    else if (part.type === "python") made.push(step(part.text));
    else if (made.at(-1)?.className === "step") made.at(-1).append(" = ", element("code", { textContent: part.text }));
    else made.push(step(part.text));
  }
  return made;
}

const step = (call) => element("div", { className: "step" }, "Calculator: ", element("code", { textContent: call }));

const note = (textContent) => element("span", { className: "note", textContent });

function waiting() {
  const dots = [1, 2, 3].map(() => element("i"));
  return element("span", { className: "waiting" }, ...dots, " Waiting for the first word");
}

function below(made, conversation, number, actions) {
  const message = conversation.messages[number];
  const row = element("div", { className: "actions" });
  const all = siblings(conversation, number);
  const asked = message.role === "user";
  if (!asked) row.append(copyButton(() => text(message), "the answer"));
  if (actions && asked) row.append(button("Edit", () => edit(made, conversation, number, actions), { className: "change" }));
  if (actions && !asked) row.append(button("Regenerate", () => actions.again(number)));
  if (actions && all.length > 1) row.append(...branches(all, number, actions));
  row.append(note(figures(message)));
  return row;
}

function branches(all, number, actions) {
  const at = all.indexOf(number);
  const turn = (label, name, to) => {
    const made = button(label, () => actions.select(to), { disabled: to === undefined });
    made.setAttribute("aria-label", name);
    return made;
  };
  return [
    turn("‹", "The version before", all[at - 1]),
    note(`${at + 1} of ${all.length}`),
    turn("›", "The next version", all[at + 1]),
  ];
}

function figures({ role, note, figures: { model, tokens, first, seconds } }) {
  if (role === "user") return "";
  const rate = tokens > 1 && seconds > first ? `${((tokens - 1) / (seconds - first)).toFixed(1)} tokens/s` : "";
  const wait = first === undefined ? "" : `first word after ${first.toFixed(1)} s`;
  return [note, model, rate, wait].filter(Boolean).join(" · ");
}

function edit(made, conversation, number, actions) {
  const message = conversation.messages[number];
  const field = element("textarea", { value: text(message), rows: 2 });
  field.setAttribute("aria-label", "Your question");
  const send = () => field.value.trim() && actions.edit(number, field.value.trim());
  const close = () => {
    const shown = editor.closest("article");      // by now, for all may have been drawn anew
    say(shown, message, false);
    shown.querySelector(".change")?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const buttons = [button("Ask again", send, { className: "main" }), button("Cancel", close)];
  const row = element("div", { className: "row" }, ...buttons);
  const editor = element("div", { className: "edit", chat: conversation.id, number }, field, row);
  made.querySelector(".said").replaceChildren(editor);
  field.focus();
}
