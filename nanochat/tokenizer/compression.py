"""The compression table: bytes a token of this vocabulary beside GPT-2's and GPT-4's.

    table = compression_table(tokenizer, texts | {"train": ..., "validation": ...}, encodings=folder)

A peer whose vocabulary could not be had is in the table as missing, with the reason.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken

from nanochat.tokenizer.tokenizer import Tokenizer

SAMPLES: Mapping[str, str] = {
    "news": (
        "The city council voted on Tuesday evening to reopen the old harbour railway, eleven years after the last "
        "train left it. Supporters, many of whom had waited outside since noon, cheered when the result was read: "
        "seven in favour, four against. \"We've argued about this line for longer than some of our children have "
        'been alive," said Councillor Marta Lindqvist. The first 3.2 kilometres are to be ready by June 2027, at a '
        "cost of $48.5 million, two thirds of which the regional government has promised to pay. Critics say that "
        "the estimate is too low and that buses would do as well.\n"
    ),
    "korean": (
        "오늘 아침에는 비가 조금 내렸지만 오후부터는 맑은 하늘을 볼 수 있겠습니다. 우리 동네 도서관은 "
        "매주 토요일마다 아이들을 위한 이야기 시간을 엽니다. 지난주에는 서른두 명이 모여 함께 책을 읽고 "
        "그림을 그렸습니다. 다음 모임에서는 바다에 사는 동물에 대해 배울 예정이니 관심 있는 분은 누구나 "
        "참여해 주세요.\n"
    ),
    "code": (
        "def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:\n"
        '    """Merge overlapping half-open intervals."""\n'
        "    merged: list[tuple[int, int]] = []\n"
        "    for start, end in sorted(intervals):\n"
        "        if merged and start <= merged[-1][1]:\n"
        "            merged[-1] = (merged[-1][0], max(merged[-1][1], end))\n"
        "        else:\n"
        "            merged.append((start, end))\n"
        "    return merged\n\n\n"
        'if __name__ == "__main__":\n'
        "    assert merge_intervals([(5, 8), (1, 3), (2, 4)]) == [(1, 4), (5, 8)]\n"
    ),
    "math": (
        "\\begin{theorem}\nLet $f \\colon [a, b] \\to \\mathbb{R}$ be continuous and differentiable on $(a, b)$. "
        "Then there is a $\\xi \\in (a, b)$ with\n\\[\n  f'(\\xi) = \\frac{f(b) - f(a)}{b - a}.\n\\]\n"
        "\\end{theorem}\n\\begin{proof}\nApply Rolle's theorem to $g(x) = f(x) - \\frac{f(b) - f(a)}{b - a}(x - a)$, "
        "for which $g(a) = g(b) = f(a)$.\n\\end{proof}\nFor example $\\sum_{k=1}^{n} k^2 = \\frac{n(n+1)(2n+1)}{6}$, "
        "so that for $n = 24$ the sum is $4900 = 70^2$.\n"
    ),
    "science": (
        "Chlorophyll absorbs mostly red (about 660 nm) and blue light, which is why leaves look green. The energy "
        "excites an electron that is handed along a chain of proteins in the thylakoid membrane, and the protons "
        "that are pumped on the way drive ATP synthase. Splitting two molecules of water replaces four electrons "
        "and releases one molecule of O2; in the Calvin cycle the enzyme RuBisCO then fixes CO2, and three turns "
        "yield one molecule of glyceraldehyde-3-phosphate.\n"
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Peer:
    """A published vocabulary to compare with."""

    name: str
    file: str
    pattern: str


PEERS = (
    Peer(
        "gpt2",
        "r50k_base.tiktoken",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
    Peer(
        "gpt4",
        "cl100k_base.tiktoken",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
        r"\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
)


def compression_table(
    tokenizer: Tokenizer, texts: Mapping[str, str], *, encodings: Path | None, missing: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Bytes and tokens of each text for this vocabulary and its peers.

    {"vocabSize": {peer: n}, "missing": {peer: why},
     "texts": [{"name", "bytes", "tokens": {"ours": n, "gpt2": n, ...}}]}
    `encodings` is the folder with the peers' files, None where there is none; `missing` says why a file is not there.
    """
    sizes, without = {"ours": tokenizer.vocab_size}, {}
    encoders = {"ours": tokenizer.encode}
    for peer in PEERS:
        path = encodings / peer.file if encodings else None
        if path is None or not path.is_file():
            why = (missing or {}).get(peer.file)
            without[peer.name] = "its vocabulary could not be had" + (f": {why}" if why else "")
            continue
        ranks = read_ranks(path)
        encoders[peer.name] = tiktoken.Encoding(
            peer.name, pat_str=peer.pattern, mergeable_ranks=ranks, special_tokens={}
        ).encode_ordinary
        sizes[peer.name] = len(ranks)
    rows = [
        {
            "name": name,
            "bytes": len(text.encode()),
            "tokens": {peer: len(encode(text)) for peer, encode in encoders.items()},
        }
        for name, text in texts.items()
        if text
    ]
    return {"vocabSize": sizes, "texts": rows, "missing": without}


def read_ranks(path: Path) -> dict[bytes, int]:
    """The ranks of a .tiktoken file: on each line a token in base64 and its rank. ValueError where it is not one."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    if len(ranks) < 256 or sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path.name} is no whole vocabulary")
    return ranks
