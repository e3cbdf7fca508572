// The keys of the page; those of a field are its own.

import { at } from "./dom.js";

// `actions` are {stop(), edit(), fresh(), send()}.
export function listen(actions) {
  const field = at("text");
  field.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) actions.send();
    else if (event.key === "ArrowUp" && !field.value) actions.edit();
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || at("keys").open) return;
    const typing = event.target.matches("input, textarea");
    if (event.key === "Escape") return void actions.stop();
    if (event.altKey && event.code === "KeyN") actions.fresh();
    else if (event.key === "/" && !typing) field.focus();
    else if (event.key === "?" && !typing) at("keys").showModal();
    else return;
    event.preventDefault();
  });
  at("help").addEventListener("click", () => at("keys").showModal());
}
