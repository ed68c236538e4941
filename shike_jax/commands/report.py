"""`python -m shike_jax report`: tables and figures from finished runs, next to the paper's numbers."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shike_jax.common import buckets
from shike_jax.common.buckets import place
from shike_jax.common.extras import optional
from shike_jax.common.parser import Parser
from shike_jax.common.quiet import quiet_third_parties
from shike_jax.common.text import markdown, say, slug
from shike_jax.common.version import __version__
from shike_jax.config import own_files
from shike_jax.config.loading import checkpoint_config
from shike_jax.data.datasets import load_data
from shike_jax.data.held_out import evaluated_part
from shike_jax.errors import UserError, naming
from shike_jax.evaluation.checkpoint import meta_of
from shike_jax.report import curves, html, predictions, tables
from shike_jax.report.evaluations import evaluation
from shike_jax.report.runs import Group, Run, by_dataset, collect, families, main_group, single_group

_EPILOG = """\
example:
  python -m shike_jax report --runs runs/if100 runs/if50 --output=report --reference=official_20_8.csv

Written: report.md, report.html (one file, pictures inside), figures/*.svg, evaluations/*.npz. Every results.json below
the folders counts; runs that differ in nothing but the seed are one row, in which each seed counts once. The figures of
the experts, of the hardest negatives and of calibration, tables of confused classes, comparisons of two runs and
example images need an evaluation of the lowest seed of each setting:
RUN/evaluation.npz if it is there (python -m shike_jax evaluate --checkpoint=RUN --output=RUN/evaluation.npz), else
computed where the run's weights and data are available; what is missing is said in the report.
"""
CURVES_AT_MOST = 8
FAMILIES_AT_MOST = 4


class _Section(html.Section):
    """One data set, whose figures are drawn here; what cannot be drawn is noted."""

    def __init__(self, number: int, dataset: str, groups: Sequence[Group], output: Path, compute: bool) -> None:
        """Evaluates the first run of each group."""
        super().__init__(dataset)
        self.number, self.groups, self.output = number, groups, output
        self.evaluated: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, predictions.Predictions] = {}
        for group in groups:
            try:
                found, arrays = evaluation(group.first, output / "evaluations", compute)
                tables.experts_table(dataset, {group.label: found})
                known = predictions.Predictions.of(found, arrays)
                if known is not None:
                    predictions.tables({group.label: known})
                    self.predictions[group.label] = known
                self.evaluated[group.label] = found
            except Exception as error:  # a file from elsewhere can fail in any way; go on
                about = f"{group.label}, seed {group.first.seed}: no figures of its predictions"
                self.missing.append(f"{about}: {_reason(error)}")

    def show_images(self, group: Group) -> None:
        """Test images of a group's first run, where its data are there."""
        found = self.predictions.get(group.label)
        if found is None:
            return
        try:
            config = checkpoint_config(meta_of(group.first.path))
            data = load_data(config)
            part = {"val": data.val, "train": data.train}.get(evaluated_part(config.data), data.test)
            if part is None:
                raise UserError("its data have no part that it was evaluated on")
            if not np.array_equal(part.labels, found.labels):
                raise UserError("its evaluation leaves images out that could not be read")
            shown = []
            for place, right, caption in predictions.examples(found):
                content = io.BytesIO()
                Image.fromarray(part.images[place]).save(content, "PNG")
                shown.append(html.Example(content.getvalue(), right, caption))
            self.examples[group.label] = shown
        except Exception as error:  # data that are not here, of older code, or not images: the report goes on
            self.missing.append(f"{group.label}: no example images: {_reason(error)}")

    def draw(self, name: str, title: str, caption: str, function: Callable[[Path], Path]) -> None:
        """Draws one figure into figures/NUMBER_DATASET_NAME.svg; the number tells data sets of similar names apart."""
        path = self.output / "figures" / f"{slug(f'{self.number} {self.title[:40]} {name}')}.svg"
        try:
            self.pictures.append(html.Picture(function(path), title, caption))
        except (ValueError, KeyError, TypeError, IndexError) as error:  # numbers that do not fit together
            self.missing.append(f"{title}: {_reason(error)}")

    def family(self, groups: Sequence[Group], name: str) -> None:
        """The figures of one family of runs: those of its main setting, and of its single network next to it."""
        from shike_jax.report import figures

        main, single = main_group(groups), single_group(groups)
        about = f"{main.label}, seed {main.first.seed}"
        model, summary = main.first.config["model"], self.evaluated.get(main.label)
        self.draw(
            f"{name} accuracy by count",
            "Accuracy by training images",
            f"Each class of {about}, per expert and for the ensemble. Dotted: the limits of many, medium and few.",
            lambda path: figures.accuracy_by_count(main.first.results, path),
        )
        if summary and len(main.first.depths) > 1:
            self.draw(
                f"{name} best expert",
                "Best expert of each class (figures 1 and 3a)",
                f"The highest accuracy among the experts of {about}, class by class; hollow: several experts are best.",
                lambda path: figures.best_expert_per_class(summary, model, path),
            )
            self.draw(
                f"{name} expert shares",
                "Where each expert is best (figure 3b)",
                f"Share of the classes of each division that each expert of {about} is best at; ties are divided.",
                lambda path: figures.best_expert_shares(summary, model, path),
            )
        shown = [main] if single is None or single is main else [single, main]
        found = {group.label: self.evaluated[group.label] for group in shown if group.label in self.evaluated}
        if found:
            alone = "" if single else " No single network is among the runs to compare with."
            self.draw(
                f"{name} hardest negatives",
                "Hardest negatives (figure 4)",
                "How probable the likeliest wrong class is. Left: share of the test images in each bin (logarithmic); "
                f"right: share above a probability.{alone}",
                lambda path: figures.hardest_negatives(found, path),
            )
            self.draw(
                f"{name} reliability",
                "Reliability",
                "Accuracy in 15 bins of confidence (softmax of the averaged logits); below, the images in each bin.",
                lambda path: figures.reliability(found, path),
            )

    def training(self, references: Sequence[curves.Curve]) -> None:
        """Training curves of all settings, and of the references as long as the runs."""
        from shike_jax.report import figures

        ours = [curve for curve in map(curves.of_group, self.groups) if curve is not None]
        lengths = {len(curve.epochs) for curve in ours}
        shown = ours[:CURVES_AT_MOST] + [curve for curve in references if len(curve.epochs) in lengths]
        if not ours:
            self.missing.append("no training curves: none of the runs has kept its metrics.jsonl")
            return
        if len(ours) > CURVES_AT_MOST:
            self.missing.append(f"training curves of {len(ours) - CURVES_AT_MOST} more settings")
        self.draw(
            "training",
            "Training curves",
            "Means over seeds, their range shaded; dotted: the next stage, whose loss is another one, begins.",
            lambda path: figures.training_curves(shown, path),
        )

    def tabulate(self) -> None:
        """All tables."""
        dataset, groups = self.title, self.groups
        self.tables += [tables.results_table(dataset, groups), *tables.ablation_tables(dataset, groups)]
        self.tables.append(tables.stages_table(dataset, groups))
        if self.evaluated:
            self.tables.append(tables.experts_table(dataset, self.evaluated))
        self.tables += predictions.tables(self.predictions)
        self.tables.append(tables.cost_table(dataset, groups))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def sound(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs of which tables and curves can be made, and one line for each of the others.

    One damaged run must not stop the report of all: each is reported alone first, and nothing is written.
    """
    good, problems = [], []
    for run in runs:
        try:
            [(dataset, groups)] = by_dataset([run]).items()
            for table in (tables.results_table, tables.stages_table, tables.cost_table, tables.ablation_tables):
                table(dataset, groups)
            curves.of_group(groups[0])
            good.append(run)
        except Exception as error:  # what somebody else wrote can fail in any way
            problems.append(f"{run.path}: left out, its results or metrics are damaged ({_reason(error)})")
    return good, problems


def write(
    datasets: Mapping[str, Sequence[Group]],
    output: Path,
    compute: bool,
    references: Sequence[curves.Curve] = (),
    remarks: Sequence[str] = (),
) -> list[html.Section]:
    """Writes report.md, report.html and figures/ into `output`, with the remarks at the top.

    The references are curves to draw with those of runs of the same length; `compute`: runs without an evaluation get
    one.
    """
    (output / "figures").mkdir(parents=True, exist_ok=True)
    sections: list[html.Section] = []
    for dataset, groups in datasets.items():
        section = _Section(len(sections) + 1, dataset, groups, output, compute)
        section.training(references)
        together = families(groups)
        for number, family in enumerate(together[:FAMILIES_AT_MOST]):
            section.family(family, str(number + 1) if len(together) > 1 else "")
        if len(together) > FAMILIES_AT_MOST:
            section.missing.append(f"figures of {len(together) - FAMILIES_AT_MOST} more families of settings")
        if compute:
            section.show_images(main_group(groups))
        section.tabulate()
        sections.append(section)
    count = sum(len(group.runs) for groups in datasets.values() for group in groups)
    introduction = [f"{count} finished runs, read by shike_jax {__version__}.", *remarks]
    title = "Results"
    (output / "report.html").write_text(html.page(title, introduction, sections), encoding="utf-8")
    (output / "report.md").write_text(_markdown(title, introduction, sections, output), encoding="utf-8")
    return sections


def _markdown(title: str, introduction: Sequence[str], sections: Sequence[html.Section], output: Path) -> str:
    parts = [f"# {title}", "", *(f"{markdown(text)}\n" for text in introduction)]
    for section in sections:
        short = [table for table in section.tables if not table.sortable]  # all classes are on the page alone
        parts += [f"## {markdown(section.title)}", "", *map(tables.to_markdown, short)]
        for picture in section.pictures:
            place = picture.path.relative_to(output)
            parts += [f"### {picture.title}", "", f"![{picture.title}]({place})", "", markdown(picture.caption), ""]
        if section.missing:
            parts += ["Not shown:", "", *(f"- {markdown(text)}" for text in section.missing), ""]
    return "\n".join(parts)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = Parser("python -m shike_jax report", "Collects finished runs into tables and figures.", _EPILOG)
    several: dict[str, Any] = {"type": place, "nargs": "+", "action": "extend", "metavar": "DIR"}
    about = "folders with work directories, at any depth; repeatable"
    parser.add_argument("--runs", required=True, help=about, **several)
    parser.add_argument("more", type=place, nargs="*", metavar="DIR", help=argparse.SUPPRESS)  # --runs=a b
    parser.add_argument("--output", type=place, required=True, metavar="DIR", help="folder to write to")
    own_files.add_option(parser)
    parser.add_argument("--no-evaluate", action="store_true", help="compute nothing; use evaluations that exist")
    about = "a curve drawn with runs as long: seed, epoch, stage, train_loss, test_top1"
    parser.add_argument("--reference", type=Path, action="append", default=[], metavar="CSV", help=about)
    args = parser.parse_args(argv)
    own_files.register(args.config)
    optional("matplotlib", "report")  # before the work: figures come last
    quiet_third_parties("info")
    folders = [*args.runs, *args.more]
    for folder in folders:
        if not folder.is_dir():  # of a bucket: nothing below
            raise UserError(f"--runs={folder}: no such folder")
    runs, unreadable = collect(folders)
    runs, damaged = sound(runs)
    problems = [*unreadable, *damaged]
    for line in problems:
        say(line)
    if not runs:
        raise UserError(f"--runs={' '.join(map(str, folders))}: no results.json below; expected finished runs")
    references = [curves.of_csv(path) for path in args.reference]
    with naming(f"--output={args.output}"), contextlib.ExitStack() as held:
        folder = args.output
        if buckets.in_bucket(folder):
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="shike_jax-")))
        sections = write(by_dataset(runs), folder, not args.no_evaluate, references, problems)
        if folder != args.output:
            buckets.upload(folder, args.output)
    for section in sections:
        say(tables.to_markdown(section.tables[0]))
        for text in section.missing:
            say(f"not shown: {text}")
    say(f"written: {args.output / 'report.html'}, {args.output / 'report.md'}")
