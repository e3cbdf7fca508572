// Clients in JavaScript, each in its own words: `node node_clients.mjs URL` prints what each of them got.

import { readFileSync } from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const baseURL = `${process.argv[2]}/v1`;
const QUESTION = "What is six times seven?";
const NEXT = "How do you know?";
const PICTURE =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const NULLS = { n: null, stop: null, logit_bias: null, logprobs: null, response_format: null, metadata: null };

const user = (content) => ({ role: "user", content });

function withOpenAI() {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
  const ask = (messages, options = {}) => client.chat.completions.create({ model: "nanochat", messages, ...options });
  const said = async (answer) => (await answer).choices[0].message.content;
  return {
    plain: () => said(ask([user(QUESTION)])),
    stream: async () => {
      let text = "";
      const stream = await ask([user(QUESTION)], { stream: true, stream_options: { include_usage: true } });
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
      return text;
    },
    responses: async () => (await client.responses.create({ model: "nanochat", input: QUESTION })).output_text,
    "responses, in a stream": async () => {
      const stream = client.responses.stream({ model: "nanochat", input: QUESTION });
      return (await stream.finalResponse()).output_text;
    },
    "own answer": async () => {
      const { message } = (await ask([user(QUESTION)])).choices[0];
      return said(ask([user(QUESTION), message, user(NEXT)]));
    },
    nulls: () => said(ask([user(QUESTION)], { temperature: null, tools: null, seed: null, ...NULLS })),
    "empty tools": () => said(ask([user(QUESTION)], { tools: [], tool_choice: "none" })),
    image: () =>
      ask([user([{ type: "image_url", image_url: { url: `data:image/png;base64,${PICTURE}` } }])]),
  };
}

// `nulls` are what providerOptions pass on in that case, others in all; a provider that checks them takes fewer.
function withVercel(model, nulls, providerOptions = {}) {
  const ask = (options) => generateText({ model, maxRetries: 0, providerOptions, ...options });
  const said = async (answer) => (await answer).text;
  return {
    plain: () => said(ask({ system: "Be brief.", prompt: QUESTION })),
    stream: async () => {
      let text = "";
      const stream = streamText({ model, maxRetries: 0, prompt: QUESTION, onError: ({ error }) => { throw error; } });
      for await (const part of stream.textStream) text += part;
      return text;
    },
    "own answer": async () => {
      const { response } = await ask({ prompt: QUESTION });
      return said(ask({ messages: [user(QUESTION), ...response.messages, user(NEXT)] }));
    },
    nulls: () => said(ask({ prompt: QUESTION, temperature: null, stopSequences: null, providerOptions: nulls })),
    "empty tools": () => said(ask({ prompt: QUESTION, tools: {}, toolChoice: "none" })),
    image: () => ask({ messages: [user([{ type: "image", image: Buffer.from(PICTURE, "base64") }])] }),
  };
}

const compatible = createOpenAICompatible({ name: "nanochat", baseURL, apiKey: "none", includeUsage: true });
const WHOLE = { openai: { store: false } }; // else it refers to answers by their ids
const CLIENTS = {
  openai: withOpenAI(),
  "@ai-sdk/openai": withVercel(createOpenAI({ baseURL, apiKey: "none" }).chat("nanochat"), { openai: {} }),
  "@ai-sdk/openai, responses": withVercel(createOpenAI({ baseURL, apiKey: "none" })("nanochat"), WHOLE, WHOLE),
  "@ai-sdk/openai-compatible": withVercel(compatible("nanochat"), { nanochat: NULLS }),
};

const versionOf = (name) => JSON.parse(readFileSync(`${import.meta.dirname}/node_modules/${name}/package.json`)).version;

const found = {};
for (const [name, cases] of Object.entries(CLIENTS)) {
  const outcomes = {};
  for (const [label, run] of Object.entries(cases)) {
    try {
      outcomes[label] = String(await run());
    } catch (error) {
      outcomes[label] = `${error.name}: ${error.message}`;
    }
  }
  const by = name.startsWith("@ai-sdk") ? ` with ai ${versionOf("ai")}` : "";
  found[name] = { version: versionOf(name.split(",")[0]) + by, cases: outcomes };
}
console.log(JSON.stringify(found));
