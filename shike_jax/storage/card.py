"""The model card `card.md` of every finished run: what the model is, how good, on what data, for what use."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shike_jax.common.atomic import write_text
from shike_jax.common.text import code, markdown, markdown_table, number, printable, some, to_json

Results = Mapping[str, Any]


def write_card(path: Path, results: Results) -> None:
    """Writes the card of what results.json holds into the work directory that `path` lies in."""
    head = (_head(results), _scores(results), _data(results), _training(results))
    sections = (*head, _use(results, path.parent), _limits(results), _details(results))
    write_text(path, "\n\n".join(sections) + "\n")


def example_of(known: Results, side: int) -> Mapping[str, Any]:
    """`shape` and `dtype` of what a network takes; pictures of so many pixels where nothing else is known."""
    return known.get("example") or {"shape": (side, side, 3), "dtype": "uint8"}


def is_picture(example: Mapping[str, Any]) -> bool:
    """Whether an example is an RGB picture, uint8 [S,S,3]."""
    return example["dtype"] == "uint8" and len(example["shape"]) == 3 and example["shape"][-1] == 3


def named(example: Mapping[str, Any], *before: str) -> str:
    """What an array is, for people, with axes `before` its own: `float32 [N, 64]`."""
    return f"{example['dtype']} [{', '.join(map(str, (*before, *example['shape'])))}]"


def _head(results: Results) -> str:
    split = results["split"]
    model, data = results["config"]["model"], results["config"]["data"]
    side = data["image_size"]
    example = example_of(results, side)
    seen = f"{side} x {side} px RGB" if is_picture(example) else f"arrays {named(example)}"
    size = f"{results['num_parameters']:,} parameters"
    if len(model["depths"]) > 1:
        fusion = "with" if model["fusion"] else "without"
        network = (
            f"{len(model['depths'])} experts on a {model['backbone']} ({size}) {fusion} depth-wise knowledge fusion"
        )
        prediction = " The prediction averages the experts' logits (SHIKE, CVPR 2023)."
    else:
        fusion = ", its last stage fused with an earlier one" if model["fusion"] else ""
        network, prediction = f"A single {model['backbone']} ({size}){fusion}", ""
    return (
        f"# {markdown(results['name'])}: a classifier of {len(split['class_names'])} classes for long-tailed data\n\n"
        f"{network}, trained on {markdown(split['name'])}; input {seen}.{prediction}"
    )


def _scores(results: Results) -> str:
    split = results["split"]
    part = results["part"]
    images = results["stages"][-1].get("examples", split["sizes"][part])
    rows = [(f"{about['long']}, {about['unit']}", results[name]) for name, about in results["scores"].items()]
    rows += [(f"expert {m + 1} alone, top-1, %", value) for m, value in enumerate(results["experts"])]
    lines = [
        f"## Results\n\nOn {images:,} images of part {code(part)}, after the last epoch.\n",
        *markdown_table(("measure", "value"), [(name, number(value)) for name, value in rows]),
    ]
    if part == "val" and "test" in split["sizes"]:
        place = "`python -m shike_jax evaluate --part=test`"
        lines.insert(1, f"These were held out of training; the test images were not looked at ({place} does).\n")
    if len(results["stages"]) > 1:
        names = ("top1", *split["divisions"])
        of_stages = [(markdown(one["name"]), *(number(one[name]) for name in names)) for one in results["stages"]]
        lines += [
            "",
            *markdown_table(("after stage", *names), of_stages),
            "",
            "Each row was measured at the end of its stage. Scored again with the final weights, the classifiers of an "
            "earlier stage may differ a little: later stages move the running averages of batch normalisation.",
        ]
    return "\n".join(lines)


def _data(results: Results) -> str:
    split = results["split"]
    counts = split["class_counts"]
    bounds = {"shots": "many > 100 training images, few < 20", "h2t": "H2T's class ranges"}
    order = sorted(range(len(counts)), key=lambda c: counts[c])[::-1]
    parts = ", ".join(f"{name} {size:,}" for name, size in split["sizes"].items())
    ends = [f"{markdown(split['class_names'][c])} ({counts[c]:,})" for c in (order[0], order[-1])]
    divisions = ", ".join(f"{name} {len(classes)}" for name, classes in split["divisions"].items())
    bad = results["bad_images"]
    first = f", the first {markdown(bad['list'][0]['name'])}; all in results.json" if bad["count"] else ""
    return "\n".join(
        [
            "## Data\n",
            f"- {markdown(split['name'])}: {markdown(split['rule'])}",
            f"- images: {parts}",
            f"- left out because they could not be read: {bad['count']}{first}",
            f"- training images of a class: from {ends[0]} down to {ends[1]}",
            f"- classes by division ({bounds[split['division_rule']]}): {divisions}",
            f"- split hash (SHA-256 of rule, members and labels): `{split['hash']}`",
        ]
    )


def _training(results: Results) -> str:
    stages, devices, seconds = results["config"]["stages"], results["devices"], results["seconds"]
    columns, rows = ("stage", "epochs", "batch", "peak learning rate", "losses", "what trains"), []
    for found in results["stages"]:
        stage = stages[found["name"]]
        losses = " + ".join(map(_loss, results["losses"][found["name"]]))
        trains = ", ".join(code(pattern) for pattern in stage["train"])
        rule = stage.get("lr_scaling", "none")
        peak = f"{stage['lr']:g}" + (f" for {stage['base_batch_size']}, {rule} scaling" if rule != "none" else "")
        sizes = str(found["epochs"]), str(stage["batch_size"])
        rows.append((markdown(found["name"]), *sizes, peak, losses, trains))
    averages = {
        "none": "the weights after the last epoch",
        "ema": "the exponential average of the weights",
        "uniform": "the mean of the weights over the last epochs",
    }
    average = stages[results["stages"][-1]["name"]].get("average", "none")
    spent = ", ".join(f"{name.replace('_', '-')} {value:,.0f} s" for name, value in seconds.items())
    lines = [
        "## Training\n",
        *markdown_table(columns, rows),
        "",
        f"{devices['count']} x {devices['kind']}, seed {results['seed']}; {spent}. No model was selected on "
        f"the evaluated images: these are {averages.get(average, f'an average of the weights ({average})')}.",
    ]
    return "\n".join(lines)


def _loss(one: Mapping[str, Any]) -> str:
    """Weight, name and parameters of a loss: `10 nt (form official)`."""
    parameters = ", ".join(f"{name} {value}" for name, value in one["parameters"].items())
    return f"{one['weight']:g} {one['name']}" + (f" ({parameters})" if parameters else "")


def _use(results: Results, workdir: Path) -> str:
    own = "".join(f" --config={shlex.quote(printable(file))}" for file in results.get("files_to_use", ()))
    num_classes, place = len(results["split"]["class_names"]), shlex.quote(printable(workdir.name))
    pictures = is_picture(example_of(results, results["config"]["data"]["image_size"]))
    what, given = ("pictures", "PICTURES") if pictures else ("arrays", "ARRAYS.npy")
    return (
        f"## Use\n\nMeant for {what} like those it was trained on, each of one of the {num_classes} "
        "classes. With this package (`pip install .` in a clone of it), in the folder that holds this run:\n\n"
        f"    python -m shike_jax predict --checkpoint={place} --images={given} --output=predictions.csv{own}\n"
        f"    python -m shike_jax evaluate --checkpoint={place}{own}\n"
        f"    python -m shike_jax export --checkpoint={place} --output=exported{own}\n\n"
        "JAX promises to read an exported function for six months after the release that wrote it;\n"
        "`python -m shike_jax export --again=exported` makes it again with the JAX that is installed. Weights and\n"
        "checkpoints do not age."
    )


def _limits(results: Results) -> str:
    split = results["split"]
    few = split["divisions"]["few"]
    lines = [
        "## Limits\n",
        "- It always answers with one of its classes, even for something else.",
        "- Its probabilities are off from frequencies by the calibration error above, on average.",
    ]
    if few and results["few"] is not None:
        lines.append(
            f"- {len(few)} classes had fewer training images than the few-shot bound; their mean accuracy is "
            f"{results['few']:.1f} %, and that of a single class rests on few test images."
        )
    scores = zip(split["class_names"], results["per_class"], strict=True)
    if untested := [markdown(name) for name, value in scores if value is None]:
        lines.append(f"- Not measured, for want of test images: {some(untested, 5)}.")
    return "\n".join(lines)


def _details(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    config = to_json(results["config"], indent=1)
    return f"## Versions\n\n{versions}\n\n## Configuration\n\n```json\n{config}\n```"
