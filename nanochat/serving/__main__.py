"""`python -m nanochat.serving` sets the process up before PyTorch comes in, then runs `nanochat.serving.command`."""

from __future__ import annotations

import sys

from nanochat.runtime.threads import settle

if __name__ == "__main__":
    settle()
    from nanochat.serving.command import main

    sys.exit(main())
