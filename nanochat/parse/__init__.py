"""Reading what others wrote: JSON, YAML and addresses, each by one function with bounds.

What can't be read raises `Malformed`, whose text is a phrase for a sentence that names the file, field or option.
"""

from __future__ import annotations


class Malformed(ValueError):
    """A text that is not what it has to be; its message says why, and where in the text."""
