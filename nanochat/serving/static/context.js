// What of a conversation fits into the model's context: when it is full, the oldest exchanges leave.

import { lastAnswer, length, path } from "./conversation.js";

const ROOM = 0.25;      // of the context is left for the answer, or as much as an answer may have, if that is less

// How many tokens the branch shown has without its first `count` messages, by those of the newest answer that has figures
// and the characters that they were: one that was stopped has none. undefined where no answer has.
export function tokens(conversation, count) {
  const messages = shown(conversation);
  const counted = messages.findLast(({ figures }) => figures.tokens && figures.sent)?.figures;
  if (!counted) return undefined;
  const characters = length(messages.slice(count)) + (conversation.settings.system?.length ?? 0);
  return characters * (counted.prompt + counted.tokens) / counted.sent;
}

// How many messages at the beginning are left out of the next request.
export function omitted(conversation, context, longest) {
  const messages = shown(conversation);
  let count = lastAnswer(conversation)?.figures.omitted ?? 0;
  const limit = context - Math.min(context * ROOM, longest ?? Infinity);
  while (context && tokens(conversation, count) > limit) {
    const more = further(messages, count);
    if (more === count) break;
    count = more;
  }
  return count;
}

const shown = (conversation) => path(conversation).map((at) => conversation.messages[at]);

// The number of messages to leave out where one exchange more has to go; the same where there is no other.
export function further(messages, count) {
  const next = messages.findIndex((message, at) => at > count && message.role === "user");
  return next < 0 ? count : next;
}
