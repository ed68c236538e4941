"""Draws the README's two pictures: `python docs/figures/draw.py` writes method.svg and accuracy.svg next to itself.

method.svg is SHIKE's network on CIFAR100-LT, accuracy.svg the accuracy of each class of the published run. Both follow
the reader's light or dark colours.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
RUN = HERE.parent / "results" / "cifar100_lt_if100" / "seed0" / "results.json"
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f } .small { font-size: 11px } .middle { text-anchor: middle }
.end { text-anchor: end } .box { fill: #f3f5f8; stroke: #6e7781 }
.line { fill: none; stroke: #6e7781; stroke-width: 1.3 } .dash { stroke-dasharray: 4 3 } .grid { stroke: #d0d7de }
.group { fill: none; stroke: #8c959f; stroke-dasharray: 2 3 }
.many { fill: #4477aa } .medium { fill: #ccbb44 } .few { fill: #ee6677 }
.mean { fill: none; stroke: #24292f; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .box { fill: #21262d } .grid { stroke: #30363d }
.mean { stroke: #e6edf3 } .back { fill: #0d1117 } }
</style>"""


def svg(width: int, height: int, about: str, parts: list[str]) -> str:
    """A whole file."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{about}">'
    back = '<rect class="back" width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, STYLE, back, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, words: str, height: float = 30) -> str:
    """A box with words in its middle."""
    rect = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>'
    return rect + text(x + width / 2, y + height / 2 + 4.5, words)


def arrow(*points: tuple[float, float], kind: str = "line") -> str:
    """A line through points, with a head at its end."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{kind}" d="M{path}" marker-end="url(#head)"/>'


def method() -> str:
    """The shared stages, an expert's own last stage times an aligned shared one, and the experts' mean."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#6e7781"/></marker></defs>'
    )
    parts = [head, '<rect class="group" x="82" y="98" width="262" height="64" rx="8"/>']
    parts += [text(88, 92, "shared by all experts", "small")]
    parts += [
        box(8, 115, 58, "image"),
        box(94, 115, 62, "stem"),
        box(178, 115, 68, "stage 1"),
        box(268, 115, 68, "stage 2"),
    ]
    parts += [arrow((66, 130), (94, 130)), arrow((156, 130), (178, 130)), arrow((246, 130), (268, 130))]
    for expert, (y, depth) in enumerate(zip((30, 115, 200), (1, 2, 1), strict=True)):
        middle = y + 15
        parts += [box(392, y, 68, "stage 3"), box(508, y, 28, "×"), box(560, y, 88, "classifiers")]
        parts += [arrow((336, 130), (362, 130), (362, middle), (392, middle)), arrow((460, middle), (508, middle))]
        parts += [arrow((536, middle), (560, middle)), arrow((648, middle), (668, middle), (668, 130), (688, 130))]
        # The shared stage is brought to the last stage's shape by strided convolutions: one or two.
        above = y - 14 if expert < 2 else y + 44
        start = (212 if depth == 1 else 302, 115 if expert < 2 else 145)
        bend = (start[0], above)
        end = (522, y if expert < 2 else y + 30)
        parts += [arrow(start, bend, (522, above), end, kind="line dash")]
        parts += [text(430, above - 5 if expert < 2 else above + 14, f"align stage {depth}", "middle small")]
        parts += [text(604, y - 6, f"expert {expert + 1}", "middle small")]
    parts += [box(688, 115, 106, "mean of logits")]
    return svg(800, 262, "SHIKE: three experts over shared stages, each fused with an earlier stage", parts)


def accuracy() -> str:
    """A bar for each class, most training images first, and the divisions' means after both stages."""
    results = json.loads(RUN.read_text())
    counts, found = results["split"]["class_counts"], results["per_class"]
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    left, top, width, height = 40, 26, 740, 190
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = top + height * (1 - percent / 100)
        parts += [f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:g}" y2="{y:g}"/>']
        parts += [text(left - 6, y + 4, str(percent), "end small")]
    step = width / len(order)
    divisions: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for place, c in enumerate(order):
        division = "many" if counts[c] > 100 else "few" if counts[c] < 20 else "medium"
        divisions[division].append(place)
        size = height * found[c] / 100
        x, y = left + place * step, top + height - size
        parts += [f'<rect class="{division}" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{size:.1f}"/>']
    before, after = results["stages"]
    for division, places in divisions.items():
        ends = left + places[0] * step, left + (places[-1] + 1) * step
        for stage, kind in ((before, "mean dash"), (after, "mean")):
            y = top + height * (1 - stage[division] / 100)
            parts += [f'<path class="{kind}" d="M{ends[0]:.1f} {y:.1f} H{ends[1]:.1f}"/>']
        words = f"{division}: {before[division]:.1f} → {after[division]:.1f} %"
        parts += [text(sum(ends) / 2, 16, words)]
    most, least = counts[order[0]], counts[order[-1]]
    words = f"the 100 classes of CIFAR100-LT, {most} training images on the left to {least} on the right"
    parts += [text(left + width / 2, top + height + 20, words)]
    parts += [
        text(
            left + width / 2, top + height + 36, "means: dashed after stage one, solid after stage two", "middle small"
        )
    ]
    return svg(800, 266, "Accuracy of each class, before and after the classifier stage", parts)


if __name__ == "__main__":
    (HERE / "method.svg").write_text(method())
    (HERE / "accuracy.svg").write_text(accuracy())
