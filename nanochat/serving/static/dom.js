// Elements by hand. A text is never read as HTML here: `element` sets properties and appends texts.

export const at = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function button(label, action, properties = {}) {
  const made = element("button", { type: "button", textContent: label, ...properties });
  made.addEventListener("click", action);
  return made;
}

// Copies a text; a page that came over plain HTTP has no clipboard of its own.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

// A button that copies what `text()` is, and says that it did; `what` names that for screen readers.
export function copyButton(text, what) {
  const made = button("", () => copy(text()).then(() => show("Copied"), () => show("Not copied")));
  const show = (label) => {
    made.textContent = label;
    made.setAttribute("aria-label", `${label} ${what}`);
    if (label !== "Copy") setTimeout(show, 2000, "Copy");
  };
  show("Copy");
  return made;
}
