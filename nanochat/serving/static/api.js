// The server: which model it has, and answers as they are written.

export class ApiError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    Object.assign(this, { status, code });
  }
}

// JSON with U+FFFD for each half of a surrogate pair: a server and other readers refuse those.
export function json(value, indent) {
  return JSON.stringify(value, (_, each) => (typeof each === "string" ? each.toWellFormed() : each), indent);
}

const authorization = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// {id, version, context_length, ...}; ApiError where there is none.
export async function model(key) {
  const response = await request("/v1/models", { headers: authorization(key) });
  return (await response.json()).data[0];
}

// The chunks of an answer.
export async function* chat(body, key, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(key) },
    body: json({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code });
    yield chunk;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait > 0 ? ` It asks to wait ${wait} ${wait === 1 ? "second" : "seconds"}.` : "";
  const sentence = error?.message ?? `The server answered ${response.status}.`;
  throw new ApiError(sentence + later, { status: response.status, code: error?.code });
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new ApiError("The connection was lost before the answer's end.");
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (block === "data: [DONE]") return;
      if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
    }
  }
}
