"""Measuring models: CORE, bits per byte, the chat tasks, and the sandbox for generated programs."""
