// One answer, from the question to the last word: it is written into the conversation as it comes.

import { chat } from "./api.js";
import { further, omitted } from "./context.js";
import { add, length, path, takeBack } from "./conversation.js";

// Answers the question that ends the branch shown. `changed(number)` hears of each step. Throws where nothing came, and
// the question is the last message again; what came before an error stays, with a note.
export async function answer(conversation, { context, key, signal, changed }) {
  const messages = path(conversation).map((at) => conversation.messages[at]);
  const { system, ...sampling } = conversation.settings;
  let left = omitted(conversation, context, sampling.max_tokens);
  const number = add(conversation, conversation.leaf, "assistant", []);
  const message = conversation.messages[number];
  for (;;) {
    message.figures = { omitted: left };
    changed(number);
    const body = { messages: spoken(messages.slice(left), system), ...sampling };
    try {
      await listen(message, chat(body, key, signal), () => changed(number));
      message.figures.sent = length(messages.slice(left)) + (system?.length ?? 0) + length([message]);
      return;
    } catch (error) {
      const more = further(messages, left);
      if (error.code === "context_length_exceeded" && more > left) {
        left = more;
        continue;
      }
      if (!end(conversation, message, error)) throw error;
      return;
    }
  }
}

// Notes on a message why it ended early; false where there is nothing of it to keep.
function end(conversation, message, error) {
  if (error.name === "AbortError") message.note = "stopped";
  else if (message.parts.length) message.note = `interrupted: ${error.message}`.slice(0, 1000);
  else takeBack(conversation);
  return message.note !== "";
}

function spoken(messages, system) {
  const said = messages.map(({ role, parts }) => {
    const plain = parts.every(({ type }) => type === "text");
    return { role, content: plain ? parts.map(({ text }) => text).join("") : parts };
  });
  return system ? [{ role: "system", content: system }, ...said] : said;
}

async function listen(message, chunks, changed) {
  const begun = performance.now();
  const seconds = () => (performance.now() - begun) / 1000;
  for await (const { choices: [choice], usage, model } of chunks) {
    message.figures.model = model.slice(0, 200);
    if (usage) {
      const { prompt_tokens: prompt, completion_tokens: tokens } = usage;
      Object.assign(message.figures, { prompt, tokens, seconds: seconds() });
    }
    if (choice?.finish_reason === "length") message.note = "cut at the token limit";
    const part = choice?.delta.content ? { type: "text", text: choice.delta.content } : choice?.delta.part;
    if (!part) continue;
    message.figures.first ??= seconds();
    const last = message.parts.at(-1);
    if (last?.type === part.type) last.text += part.text;
    else message.parts.push({ ...part });
    changed();
  }
}
