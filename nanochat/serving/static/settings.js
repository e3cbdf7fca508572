// The settings of a conversation: which there are, within which bounds, and their fields.

import { element } from "./dom.js";

const MOST = Number.MAX_SAFE_INTEGER;
export const SETTINGS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2, step: 0.1, usual: 0.8 },
  { name: "top_k", label: "Top k (0: all)", least: 0, most: 1_000_000, step: 1, usual: 50 },
  { name: "top_p", label: "Top p", least: 0, most: 1, step: 0.01, usual: 1 },
  { name: "max_tokens", label: "Longest answer, tokens", least: 1, most: 1_000_000, step: 1, usual: 512 },
  { name: "seed", label: "Seed (empty: random)", least: 0, most: MOST, step: 1 },
  { name: "system", label: "System message", longest: 100_000 },
];

// Says what is wrong with the value of a setting, or nothing; `undefined` is the server's own choice.
export function problem({ label, least, most, step, longest }, value) {
  const name = label.replace(/ \(.*/, "");
  if (value === undefined) return "";
  if (longest) {
    const good = typeof value === "string" && value.length <= longest;
    return good ? "" : `${name} must be a text of at most ${longest.toLocaleString("en")} characters.`;
  }
  const whole = step === 1;
  const good = (whole ? Number.isSafeInteger(value) : Number.isFinite(value)) && value >= least && value <= most;
  const bounds = `from ${least} to ${most.toLocaleString("en")}`;
  return good ? "" : `${name} must be a ${whole ? "whole number" : "number"} ${bounds}.`;
}

export function usual() {
  return Object.fromEntries(SETTINGS.filter((setting) => "usual" in setting).map(({ name, usual }) => [name, usual]));
}

// The fields, in `place`; `changed(name, value)` hears of good values.
export class SettingFields {
  constructor(place, changed) {
    this.fields = SETTINGS.map((setting) => this.field(place, setting, changed));
  }

  field(place, setting, changed) {
    const { name, label, least, most, step, longest } = setting;
    const input = element("input", { id: name, autocomplete: "off", type: longest ? "text" : "number" });
    if (!longest) Object.assign(input, { min: least, max: most, step });
    const wrong = element("span", { id: `${name}-problem`, className: "problem", hidden: true });
    input.setAttribute("aria-describedby", wrong.id);
    place.append(element("label", { className: longest ? "wide" : "" }, label, input, wrong));
    const given = () => (input.value === "" ? undefined : longest ? input.value : Number(input.value));
    const check = () => {
      const value = input.validity.badInput ? NaN : given();
      wrong.textContent = problem(setting, value);
      wrong.hidden = !wrong.textContent;
      input.setAttribute("aria-invalid", String(!wrong.hidden));
      if (wrong.hidden) changed(name, value);
      return wrong.hidden;
    };
    input.addEventListener("input", check);
    return { name, input, check };
  }

  show(values) {
    for (const { name, input, check } of this.fields) {
      input.value = values[name] ?? "";
      check();
    }
  }

  // The first field with a wrong value, or nothing.
  wrong() {
    return this.fields.find(({ input }) => input.getAttribute("aria-invalid") === "true")?.input;
  }
}
