"""The HTTP API, as OpenAI's chat completions, and the chat page, over one inference engine."""
