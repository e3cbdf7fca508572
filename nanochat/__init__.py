"""nanochat: a whole ChatGPT from one declared pipeline."""
