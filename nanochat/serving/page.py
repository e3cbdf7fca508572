"""The chat page: one HTML file with its own script and style, allowed by their hashes and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources


def read_page() -> str:
    return resources.files("nanochat.serving").joinpath("page.html").read_text(encoding="utf-8")


def content_security_policy(page: str) -> str:
    """Only the page's own script and style work, and they can reach only its own server."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(page, 'script')}",
            f"style-src {_hashes(page, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(page: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
