// Questions of the model's own card, as buttons in a chat that is empty.

import { at, button, element } from "./dom.js";

// `ask(question)` when one is chosen; without questions there is nothing to see.
export function offer(questions, ask) {
  at("examples").hidden = !questions.length;
  const made = questions.map((question) => element("li", {}, button(question, () => ask(question))));
  at("examples").querySelector("ul").replaceChildren(...made);
}
