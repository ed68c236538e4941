"""Tables of a report: measured results next to the published ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shike_jax.common.text import aligned, markdown, number
from shike_jax.config import paper
from shike_jax.evaluation.metrics import scores_of
from shike_jax.report.runs import Group, families, main_group, spread, weights_of


@dataclasses.dataclass(frozen=True)
class Table:
    """Text cells; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    ours: frozenset[int] = frozenset()  # rows (by position) that hold measured results, not published ones
    sortable: bool = False  # the page sorts it by any column


def to_markdown(table: Table) -> str:
    """The table with aligned columns, its title as a heading and its note below."""
    rows = [[markdown(cell) for cell in row] for row in (table.header, *table.rows)]
    for i in table.ours:
        rows[i + 1][0] = f"**{rows[i + 1][0]}**"
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(width) for c, width in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    note = ["", markdown(table.note)] if table.note else []
    return "\n".join([f"### {markdown(table.title)}", "", *lines, *note, ""])


def score_columns(groups: Sequence[Group], kind: str) -> dict[str, str]:
    """Titles of the scores of these runs by name: those shown as a `column` of tables, or in the `log` of an epoch."""
    known: dict[str, Any] = {}
    for group in groups:
        known |= scores_of(group.first.results)  # scores that a user registered are known to their runs alone
    used = {name: about for name, about in known.items() if any(group.values(name) for group in groups)}
    return {name: about["title"] for name, about in used.items() if about[kind]}


def results_table(dataset: str, groups: Sequence[Group]) -> Table:
    """Every group of a data set, below what is published for it."""
    columns = score_columns(groups, "column")
    methods = {"h2t" if group.first.is_h2t else "shike" for group in groups}
    known = [r for r in paper.REFERENCES if r.dataset == dataset]
    backbones = {group.first.config["model"]["backbone"] for group in groups}
    known = [r for r in known if not r.backbone or r.backbone in backbones]
    # Published context belongs to the paper's table; the other system's rows only next to its runs.
    known = [r for r in known if r.method != "h2t" or "h2t" in methods]
    rows = [
        (_source(r), _epochs(r.epochs), "", *(number(getattr(r, key, None)) for key in columns))
        for r in sorted(known, key=lambda r: (r.method in methods, r.top1))
    ]
    first = len(rows)
    for group in groups:
        scores = [spread(group.values(key)) for key in columns]
        rows.append((group.label, _epochs(group.first.epochs), str(len(group.runs)), *scores))
    note = "Percent of the test set at the last epoch; many, medium and few are means over classes. "
    if any(len(group.runs) > 1 for group in groups):
        note += "± is the sample standard deviation over distinct seeds. "
    note += "Rows in bold were measured with this code."
    if repeated := [line for group in groups for line in group.repeated()]:
        note += f" Runs of a seed that is there already: {'; '.join(repeated)}."
    header = ("result", "epochs", "seeds", *columns.values())
    return Table(f"{dataset}: results", header, rows, note, frozenset(range(first, len(rows))))


def stages_table(dataset: str, groups: Sequence[Group]) -> Table:
    """What each stage ended with, and each expert alone."""
    experts, columns = max(len(group.first.depths) for group in groups), score_columns(groups, "log")
    rows = []
    for group in groups:
        for index, stage in enumerate(group.first.results["stages"]):
            alone = [
                spread([run.results["stages"][index]["experts"][m] for run in group.runs], 1)
                if m < len(group.first.depths)
                else ""
                for m in range(experts)
            ]
            scores = [spread(group.values(key, index), 1) for key in columns]
            rows.append((f"{group.label}: {stage['name']}", str(stage["epochs"]), *scores, *alone))
    header = ("stage", "epochs", *columns.values(), *(f"expert {m + 1}" for m in range(experts)))
    return Table(f"{dataset}: at the end of each stage", header, rows)


def ablation_tables(dataset: str, groups: Sequence[Group]) -> list[Table]:
    """Tables 4 and 5 of each family of runs that differ in their components, or in the depths of their experts."""
    made, rows = [], {row.components: row for row in paper.TABLE4}
    for family in families(groups):
        # One group per row: table 4's experts are those of most of the family.
        usual = max((g.first.depths for g in family), key=lambda d: (sum(d == g.first.depths for g in family), len(d)))
        alike = [g for g in family if g.first.depths == usual or not g.first.components[0]]
        known = [g for g in alike if g.first.components in rows]
        rows4, others = _one_each(known, lambda g: rows[g.first.components])
        if len(rows4) > 1:
            made.append(_table4(dataset, rows4, others))
        fused = [g for g in family if g.first.components[1] and (not g.first.components[0] or all(g.first.components))]
        rows5, others = _one_each(fused, lambda g: paper.letters(g.first.depths))
        if len(rows5) > 1:
            made.append(_table5(dataset, rows5, others))
    return made


def _one_each(groups: Sequence[Group], row: Callable[[Group], Any]) -> tuple[dict[Any, Group], list[str]]:
    """By row the group with the most seeds, the first of them, and the labels of the others."""
    chosen: dict[Any, Group] = {}
    for group in sorted(groups, key=lambda g: -len(g.runs)):
        chosen.setdefault(row(group), group)
    return chosen, [group.label for group in groups if chosen[row(group)] is not group]


def _table4(dataset: str, measured: Mapping[paper.Ablation, Group], others: Sequence[str]) -> Table:
    rows = []
    for row in paper.TABLE4:
        group = measured.get(row)
        marks = ["x" if on else "" for on in row.components]
        rows.append((row.title, *marks, f"{row.top1:.2f}", *_measured(group)))
    header = ("components", "MoE", "DKF", "L_mu", "L_nt", "paper", "top-1", "many", "medium", "few", "seeds")
    note = _setting(paper.TABLE4_DATASET, dataset, list(measured.values()), others)
    return Table(f"Table 4: components, {dataset}", header, rows, note)


def _table5(dataset: str, measured: Mapping[str, Group], others: Sequence[str]) -> Table:
    rows = []
    for arrangement in [*paper.TABLE5, *(a for a in measured if a not in paper.TABLE5)]:
        group, published = measured.get(arrangement), paper.TABLE5.get(arrangement)
        rows.append((arrangement, str(len(arrangement)), number(published), *_measured(group)))
    header = ("depths", "experts", "paper", "top-1", "many", "medium", "few", "seeds")
    note = _setting(paper.TABLE5_DATASET, dataset, list(measured.values()), others)
    return Table(f"Table 5: experts by depth, {dataset}", header, rows, note)


def _measured(group: Group | None) -> list[str]:
    """The scores and the number of seeds, the last columns of both tables."""
    if group is None:
        return [*"----", "0"]
    return [*(spread(group.values(key)) for key in ("top1", "many", "medium", "few")), str(len(group.runs))]


def _setting(published: str, dataset: str, groups: Sequence[Group], others: Sequence[str]) -> str:
    """Says what was measured, and on what the paper's column was when that is something else; names the `others`."""
    first, weights = groups[0].first, weights_of(main_group(groups))
    parts = [dataset, first.config["model"]["backbone"], f"{_epochs(first.epochs)} epochs"]
    parts += [f"{field.removeprefix('stages.')}={value}" for field, value in weights.items()]
    note = f"Measured: {', '.join(parts)}."
    if dataset != published or first.epochs != (180, 20):
        note += f" The paper's column is {published}, 180 + 20 epochs: compare the order, not the numbers."
    return note + (f" Further runs of a row that is there already: {'; '.join(others)}." if others else "")


def experts_table(dataset: str, evaluated: Mapping[str, Mapping[str, Any]]) -> Table:
    """Calibration and diversity: {label: evaluation summary}."""
    rows = []
    for label, summary in evaluated.items():
        for heads, scores in summary["heads"].items():
            shares = scores["agreement"]
            cells = [scores["top1"], scores["macro_f1"], scores["ece"], shares["disagreement"], shares["oracle"]]
            cells += [shares["none_right"], scores["hardest_negative"]["above_half"]]
            rows.append((f"{label}: {heads} heads", *map(number, cells)))
    header = ("run", "top-1", "macro F1", "ECE", "pairs differ", "any right", "none right", "p(hardest wrong) > 0.5")
    note = "In percent, lowest seed of each setting. ECE: 15 bins, softmax of the averaged logits. Pairs differ: "
    note += "images on which two experts predict differently, mean over pairs. Any right: at least one expert is."
    return Table(f"{dataset}: calibration and agreement of the experts", header, rows, note)


def cost_table(dataset: str, groups: Sequence[Group]) -> Table:
    """Parameters and time."""
    rows = []
    for group in groups:
        first = group.first.results
        seconds = {k: [run.results["seconds"][k] for run in group.runs] for k in first["seconds"]}
        times = [spread(seconds.get(k, []), 1) for k in ("start_up", "compile", "train", "evaluate")]
        devices = f"{first['devices']['count']} x {first['devices']['kind']}"
        rows.append((group.label, f"{first['num_parameters']:,}", *times, devices, first["versions"].get("jax", "-")))
    header = ("run", "parameters", "start-up s", "compile s", "train s", "evaluate s", "devices", "jax")
    return Table(f"{dataset}: size and time", header, rows)


def _source(reference: paper.Reference) -> str:
    method = {"shike": "SHIKE", "h2t": "H2T"}.get(reference.method, reference.method)
    backbone = f", {reference.backbone}" if reference.backbone else ""
    return f"{method}{backbone} ({reference.source})"


def _epochs(epochs: Sequence[int]) -> str:
    return " + ".join(map(str, epochs)) or "-"


def stage_table(results: Mapping[str, Any]) -> str:
    """Accuracies (percent) at the end of each stage, the ensemble and each expert, as aligned text."""
    experts = [f"{m + 1}" if m else "expert 1" for m in range(len(results["experts"]))]
    columns = [name for name, about in scores_of(results).items() if about["column"]]
    rows = [["after stage", *columns, *experts]]
    for stage in results["stages"]:
        rows.append([stage["name"], *map(number, [*(stage.get(name) for name in columns), *stage["experts"]])])
    return "\n".join(aligned(rows))
