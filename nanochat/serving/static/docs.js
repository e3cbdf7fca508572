// The API's page: Swagger UI over the server's own description of it.

/* global SwaggerUIBundle, trustedTypes */
import DOMPurify from "./vendor/purify.js";

// Swagger UI makes elements of texts; browsers that know trusted types let none through but by this.
globalThis.trustedTypes?.createPolicy("default", { createHTML: (text) => DOMPurify.sanitize(text) });

SwaggerUIBundle({
  dom_id: "#api",
  url: "/openapi.json",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,      // asks nobody whether the description is right
});
