"""The one inference engine, its settings and the tool: used by chat, serving, evaluation and RL rollouts."""

from nanochat.inference.engine import Engine
from nanochat.inference.errors import ContextTooLong
from nanochat.inference.reply import Piece
from nanochat.inference.request import Completion, Event, Request
from nanochat.inference.sampling import Sampling, TokenLogprob

__all__ = ["Completion", "ContextTooLong", "Engine", "Event", "Piece", "Request", "Sampling", "TokenLogprob"]
