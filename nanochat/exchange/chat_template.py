"""The chat template: conversations as the text that the exported tokenizer turns into the ids of `tokenizer.chat`.

A special token is written as MARK and its name, which the tokenizer alone reads; no message becomes one, whatever it
says. Between two parts of an answer stands SEAM, for the parts are encoded one by one. A text in which MARK stands
before a name is refused.
"""

from __future__ import annotations

MARK = "\ufdd0"  # a character that Unicode keeps for a program's own use, and that no text has
SEAM = f"{MARK}<||>"

# One line, for line breaks of a template are text. `messages` are {"role", "content"}; a content is a text or a list of
# {"type", "text"}, with the types python and python_output in what the assistant said.
CHAT_TEMPLATE = "".join(
    line.strip()
    for line in r"""
    {%- macro special(name) -%}{{ "\ufdd0<|" ~ name ~ "|>" }}{%- endmacro -%}
    {%- macro say(text) -%}
        {%- if text is not string -%}{{ raise_exception("a content must be text or a list of parts") }}{%- endif -%}
        {%- if "\ufdd0<|" in text -%}
            {{ raise_exception("a message holds U+FDD0 before '<|', with which this template writes special tokens") }}
        {%- endif -%}
        {{ text }}
    {%- endmacro -%}
    {%- macro words(content) -%}
        {%- if content is string or content is not iterable -%}{{ say(content) }}
        {%- else -%}
            {%- for part in content -%}
                {%- if part["type"] != "text" -%}{{ raise_exception("the user says text alone") }}{%- endif -%}
                {{ say(part["text"]) }}
            {%- endfor -%}
        {%- endif -%}
    {%- endmacro -%}
    {%- macro parts(content) -%}
        {%- if content is string or content is not iterable -%}{{ say(content) }}
        {%- else -%}
            {%- for part in content -%}
                {%- if part["type"] == "text" -%}{{ say(part["text"]) }}{{ "\ufdd0<||>" }}
                {%- elif part["type"] == "python" -%}
                    {{ special("python_start") }}{{ say(part["text"]) }}{{ special("python_end") }}
                {%- elif part["type"] == "python_output" -%}
                    {{ special("output_start") }}{{ say(part["text"]) }}{{ special("output_end") }}
                {%- else -%}{{ raise_exception("a part has the type text, python or python_output") }}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
    {%- endmacro -%}
    {%- set first = 1 if messages and messages[0]["role"] == "system" else 0 -%}
    {%- if messages | length == first -%}{{ raise_exception("there is no message of the user") }}{%- endif -%}
    {{ special("bos") }}
    {%- for message in messages[first:] -%}
        {%- set expected = "assistant" if loop.index0 % 2 else "user" -%}
        {%- if message["role"] != expected -%}
            {{ raise_exception("user and assistant must alternate, and the user begins") }}
        {%- endif -%}
        {%- if expected == "assistant" -%}
            {{ special("assistant_start") }}{{ parts(message["content"]) }}{{ special("assistant_end") }}
        {%- else -%}
            {{ special("user_start") }}
            {%- if first and loop.first -%}{{ words(messages[0]["content"]) }}{{ "\n\n" }}{%- endif -%}
            {{ words(message["content"]) }}{{ special("user_end") }}
        {%- endif -%}
    {%- endfor -%}
    {%- if add_generation_prompt -%}{{ special("assistant_start") }}{%- endif -%}
    """.strip().splitlines()
)
