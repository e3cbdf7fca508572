// The API's page: Swagger UI over the server's own description of it.

/* global SwaggerUIBundle, trustedTypes */
import DOMPurify from "./vendor/purify.js";

// Swagger UI makes elements of texts; browsers that know trusted types let none through but by this.
globalThis.trustedTypes?.createPolicy("default", { createHTML: (text) => DOMPurify.sanitize(text) });

SwaggerUIBundle({
  dom_id: "#api",
  url: "/openapi.json",
  defaultModelsExpandDepth: 0,
  validatorUrl: null,      // asks nobody whether the description is right
});

// What Swagger UI leaves without a name that can be heard, or with another one than is seen.
const NAMES = { ".close-modal": "Close", ".body-param__text": "Request body", ".auth-btn-wrapper button[aria-label]": "" };

new MutationObserver(() => {
  for (const [selector, name] of Object.entries(NAMES)) {
    for (const found of document.querySelectorAll(selector)) {
      if (name) found.setAttribute("aria-label", name);
      else found.removeAttribute("aria-label");      // its text says it
    }
  }
}).observe(document.body, { childList: true, subtree: true });
