"""The demo's world: generated things and facts, texts about them, questions with answers, and six tasks."""
