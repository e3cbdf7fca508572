// What of a conversation fits into the model's context: when it is full, the oldest exchanges leave.

import { lastAnswer, length, path } from "./conversation.js";

const ROOM = 0.25;      // of the context is left for the answer, or as much as an answer may have, if that is less

// How many messages at the beginning are left out of the next request, by how many characters the tokens so far were.
export function omitted(conversation, context, longest) {
  const messages = path(conversation).map((at) => conversation.messages[at]);
  const { sent, tokens, prompt, omitted: before = 0 } = lastAnswer(conversation)?.figures ?? {};
  let count = before;
  if (!context || !tokens) return count;
  const perCharacter = (prompt + tokens) / Math.max(1, sent);
  const limit = context - Math.min(context * ROOM, longest ?? Infinity);
  while (length(messages.slice(count)) * perCharacter > limit) {
    const more = further(messages, count);
    if (more === count) break;
    count = more;
  }
  return count;
}

// The number of messages to leave out where one exchange more has to go; the same where there is no other.
export function further(messages, count) {
  const next = messages.findIndex((message, at) => at > count && message.role === "user");
  return next < 0 ? count : next;
}
