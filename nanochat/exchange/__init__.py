"""The way to other runtimes and back: a folder that transformers loads as NanoChatForCausalLM."""
