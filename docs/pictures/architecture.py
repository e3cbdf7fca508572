"""The picture of the architecture, docs/pictures/architecture.svg: `make generate` writes it.

Boxes are placed by hand on a card of WIDTH x HEIGHT pixels. The card has its own background, so that it can be read on
light and dark pages. A test fails when the picture is stale, or a file that it names is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

FILE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT = 980, 640
STYLE = """
text { font: 14px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, "DejaVu Sans", sans-serif; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.box { fill: #f6f8fa; stroke: #818b98; }
.made { fill: #ddf4ff; stroke: #54aeff; }
.stage { fill: #ffffff; stroke: #818b98; }
.title { font-weight: 600; font-size: 15px; }
.title, .text { fill: #1f2328; }
.file { font: 12px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.file, .label { fill: #59636e; }
.label { font-size: 13px; }
.line { fill: none; stroke: #59636e; stroke-width: 1.5; }
.head { fill: #59636e; }
@media (prefers-color-scheme: dark) {
.card { fill: #0d1117; stroke: #3d444d; }
.box { fill: #151b23; stroke: #656c76; }
.made { fill: #121d2f; stroke: #1f6feb; }
.stage { fill: #0d1117; stroke: #656c76; }
.title, .text { fill: #f0f6fc; }
.file, .label { fill: #9198a1; }
.line { stroke: #9198a1; }
.head { fill: #9198a1; }
}
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of the system: a title, lines about it, and the file or folder that it lies in."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    file: str = ""
    style: str = "box"

    def svg(self) -> str:
        middle, y = self.x + self.width // 2, self.y + 25
        parts = [_rect(self.x, self.y, self.width, self.height, self.style), _text(middle, y, self.title, "title")]
        parts += [_text(middle, y + 22 * number, line, "text") for number, line in enumerate(self.lines, start=1)]
        if self.file:
            parts.append(_text(middle, self.y + self.height - 12, self.file, "file"))
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line through points, with a head at its end (`both`: at its start too) and words at (x, y), from there on."""

    points: tuple[tuple[int, int], ...]
    label: str = ""
    at: tuple[int, int] = (0, 0)
    both: bool = False

    def svg(self) -> str:
        path = " ".join(f"{x},{y}" for x, y in self.points)
        heads = ' marker-end="url(#head)"' + ' marker-start="url(#head)"' * self.both
        line = f'<polyline class="line" points="{path}"{heads}/>'
        return line + ("\n" + _text(*self.at, self.label, "label", anchor="start") if self.label else "")


BOXES = (
    Box(310, 20, 360, 64, "One YAML file: a ChatPipeline", ("data, model, stages, gates",)),
    Box(20, 130, 300, 120, "A laptop", ("nanochat run", "starts processes"), "nanochat/pipeline/local.py"),
    Box(
        365,
        130,
        250,
        120,
        "The planner",
        ("(spec, observed, now)", "→ actions, status"),
        "nanochat/pipeline/planner.py",
    ),
    Box(
        660,
        130,
        300,
        120,
        "kind or GPU pools",
        ("nanochat submit, kubectl apply", "the controller makes PyTorchJobs"),
        "operators/reconciler.py",
    ),
    Box(
        20,
        300,
        820,
        150,
        "An attempt of a stage",
        ("launcher → torchrun → stage: ends with one outcome",),
        "nanochat/stages/",
    ),
    Box(20, 500, 300, 100, "The store", ("a folder, or a bucket",), "nanochat/storage/", "made"),
    Box(365, 500, 250, 100, "MLflow", ("runs; versions, one is champion",), "nanochat/tracking/", "made"),
    Box(660, 500, 300, 100, "The chat API", ("OpenAI's protocol, a chat page",), "nanochat/serving/", "made"),
)
STAGES = ("dataset", "tokenizer", "tokens", "base", "mid", "sft", "rl", "eval", "report", "release")
ARROWS = (
    Arrow(((400, 84), (400, 107), (170, 107), (170, 126))),
    Arrow(((580, 84), (580, 107), (810, 107), (810, 126))),
    Arrow(((324, 190), (361, 190)), both=True),
    Arrow(((619, 190), (656, 190)), both=True),
    Arrow(((170, 250), (170, 296)), "processes", (180, 278)),
    Arrow(((720, 250), (720, 296)), "pods", (730, 278)),
    Arrow(((170, 454), (170, 496)), "artifacts, checkpoints, logs", (180, 480), both=True),
    Arrow(((490, 450), (490, 496)), "metrics, versions", (500, 480)),
    Arrow(((890, 250), (890, 496)), "rolls out", (898, 380)),
    Arrow(((170, 600), (170, 622), (810, 622), (810, 604)), "weights", (465, 617)),
)


def text() -> str:
    """The picture as SVG."""
    width, gap = 74, 7
    stages = []
    for number, name in enumerate(STAGES):
        x = 21 + gap + number * (width + gap)
        stages += [_rect(x, 368, width, 36, "stage"), _text(x + width // 2, 390, name, "text")]
    title = "One file runs on a laptop and on Kubernetes; both keep what they make in one store."
    head = '<path class="head" d="M0,0 L8,4 L0,8 z"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto-start-reverse" '
            f'markerUnits="userSpaceOnUse">{head}</marker></defs>',
            _rect(1, 1, WIDTH - 2, HEIGHT - 2, "card"),
            *(arrow.svg() for arrow in ARROWS),
            *(box.svg() for box in BOXES),
            *stages,
            "</svg>\n",
        ]
    )


def _rect(x: int, y: int, width: int, height: int, style: str) -> str:
    return f'<rect class="{style}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'


def _text(x: int, y: int, words: str, style: str, *, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
