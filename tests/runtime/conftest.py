from tests.runtime.ranks import run_ranks

__all__ = ["run_ranks"]
