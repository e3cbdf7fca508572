// Which model the server has, asked for until there is one: again every few seconds while it does not answer.

import { model } from "./api.js";
import { at } from "./dom.js";
import { apiKey, keepApiKey } from "./store.js";

const AGAIN = 3000;      // milliseconds

export class Connection {
  // `found()` when there is a model; `trouble(sentence)` while there is none, and with "" when that is over.
  constructor({ found, trouble }) {
    Object.assign(this, { found, trouble, model: null, lost: false, timer: 0 });
    addEventListener("online", () => this.look());
    addEventListener("offline", () => this.miss("This device is offline."));
    at("key").value = apiKey();
    at("key").addEventListener("change", () => {
      keepApiKey(at("key").value.trim());
      this.look();
    });
  }

  get context() {
    return this.model?.context_length ?? 0;
  }

  get questions() {
    return this.model?.questions ?? [];
  }

  async look() {
    clearTimeout(this.timer);
    try {
      this.model = await model(apiKey());
    } catch (error) {
      if (error.status === 401) return this.refuse();
      return this.miss(error.message);
    }
    at("keyed").hidden = !apiKey();
    const { id, version } = this.model;
    at("model").textContent = version ? `${id}, version ${version}` : id;
    if (this.lost) this.trouble("");
    this.lost = false;
    this.found();
  }

  // The server wants another key.
  refuse() {
    this.lost = true;
    const unknown = "The server does not know this API key; enter another.";
    this.trouble(apiKey() ? unknown : "The server asks for an API key; enter it.");
    at("keyed").hidden = false;
    at("key").focus();
  }

  miss(sentence) {
    this.lost = true;
    this.trouble(`${sentence} The page tries again by itself.`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), AGAIN);
  }
}
