"""Grouping and tables from hand-made results."""

import dataclasses
import statistics

import pytest
from etils import epath

from shike_jax.config import paper
from shike_jax.report import tables
from shike_jax.report.runs import Group, by_dataset, collect, main_group, single_group, spread
from tests.report.made import write_run

ROWS = {
    "plain": (
        "model.depths=(1,)",
        "model.fusion=False",
        "stages.representation.loss.mu=0.0",
        "stages.representation.loss.nt=0.0",
    ),
    "moe_dkf_mu": ("stages.representation.loss.nt=0.0",),
    "shike": (),
}
TOP1 = {"plain": (50.0, 51.0), "moe_dkf_mu": (55.0,), "shike": (56.0, 57.0, 55.0)}


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in ROWS.items():
        for seed, top1 in enumerate(TOP1[name]):
            # The number of steps per call and the batch of evaluation do not make another setting.
            free = (f"train.steps_per_call={seed}", f"eval.batch_size={100 + seed}")
            place = folder / name / f"seed{seed}"
            write_run(place, curve=False, evaluation=False, changes=(*changes, *free), top1=top1, seed=seed)
    (folder / "other").mkdir()
    (folder / "other" / "results.json").write_text("{}")
    runs, problems = collect([folder])
    assert len(runs) == 6
    assert len(problems) == 1
    assert "not the results of a run" in problems[0]
    return by_dataset(runs)


def row(table, name):
    [found] = [r for r in table.rows if r[0] == name]
    return dict(zip(table.header, found, strict=True))


def test_runs_are_grouped_over_seeds_and_known_by_their_data(groups):
    assert list(groups) == ["CIFAR100-LT, IF 100"]
    found = groups["CIFAR100-LT, IF 100"]
    assert {g.label: [run.seed for run in g.runs] for g in found} == {
        "plain network": [0, 1],
        "MoE + DKF + mu": [0],
        "SHIKE (all)": [0, 1, 2],
    }
    assert main_group(found).label == "SHIKE (all)"
    assert single_group(found).label == "plain network"


def test_mean_and_standard_deviation():
    assert spread([]) == "-"
    assert spread([55.0]) == "55.00"
    assert spread([55.0, 56.0, 57.0]) == "56.00 ± 1.00"  # sample deviation: sqrt((1 + 0 + 1) / 2)
    assert spread([50.0, 51.0]) == f"50.50 ± {statistics.stdev([50, 51]):.2f}"


def test_a_seed_counts_once_and_its_other_runs_are_named(tmp_path):
    for name, seed, top1 in (("a/first", 0, 50.0), ("a/again", 0, 54.0), ("b/again", 0, 58.0), ("b/other", 1, 52.0)):
        write_run(tmp_path / name, curve=False, evaluation=False, top1=top1, seed=seed)
    [(dataset, [group])] = by_dataset(collect([tmp_path])[0]).items()
    assert [run.path.name for run in group.runs] == ["again", "other"]
    table = tables.results_table(dataset, [group])
    ours = row(table, group.label)
    assert (ours["top-1"], ours["seeds"]) == (f"53.00 ± {statistics.stdev([54, 52]):.2f}", "2")
    assert "± is the sample standard deviation over distinct seeds" in table.note
    assert f"{group.label}, seed 0: first repeats again and is not counted" in table.note
    assert f"{group.label}, seed 0: b/again repeats a/again and is not counted" in table.note


def test_runs_from_different_weights_are_different_settings(tmp_path):
    """Seeds of 40 and 60 % from different warm starts are two rows, not one of 50 with a spread of 14."""
    for seed, (weights, top1) in enumerate((("a/weights", 40.0), ("b/weights", 60.0))):
        changes = (f"init_from={weights}", f"data.root=disk{seed}", f"train.log_every_steps={seed}")
        write_run(tmp_path / str(seed), curve=False, evaluation=False, changes=changes, top1=top1, seed=seed)
    [(dataset, groups)] = by_dataset(collect([tmp_path])[0]).items()
    assert [group.label for group in groups] == [
        "cifar100_lt_if100, init_from=a/weights",
        "cifar100_lt_if100, init_from=b/weights",
    ]
    table = tables.results_table(dataset, groups)
    assert [row(table, group.label)["top-1"] for group in groups] == ["40.00", "60.00"]


def test_two_runs_of_one_seed_have_no_spread(tmp_path):
    for name, top1 in (("x", 50.0), ("y", 54.0)):
        write_run(tmp_path / name, curve=False, evaluation=False, top1=top1)
    [(dataset, [group])] = by_dataset(collect([tmp_path])[0]).items()
    text = tables.to_markdown(tables.results_table(dataset, [group]))
    assert "±" not in text
    assert "seed 0: y repeats x and is not counted" in text


def test_results_stand_beside_published_ones(groups):
    table = tables.results_table("CIFAR100-LT, IF 100", groups["CIFAR100-LT, IF 100"])
    ours = row(table, "SHIKE (all)")
    assert (ours["top-1"], ours["seeds"], ours["epochs"], ours["few"]) == (
        "56.00 ± 1.00",
        "3",
        "180 + 20",
        "46.00 ± 1.00",
    )
    assert row(table, "SHIKE (paper, table 1)")["top-1"] == "56.30"
    log = row(table, "SHIKE (authors' log)")
    assert (log["top-1"], log["top-5"]) == ("56.34", "83.60")
    assert row(table, "SHIKE (public PyTorch run, seed 0)")["epochs"] == "20 + 8"
    assert not [r for r in table.rows if "H2T" in r[0]]
    assert {table.rows[i][0] for i in table.ours} == {"plain network", "MoE + DKF + mu", "SHIKE (all)"}


def test_table_4(groups):
    [table] = tables.ablation_tables("CIFAR100-LT, IF 100", groups["CIFAR100-LT, IF 100"])
    assert [r[0] for r in table.rows] == [r.title for r in paper.TABLE4]
    assert [r[table.header.index("paper")] for r in table.rows] == [
        "50.04",
        "54.23",
        "55.26",
        "55.59",
        "55.79",
        "54.82",
        "56.34",
    ]
    plain = row(table, "plain network")
    assert (plain["MoE"], plain["DKF"], plain["top-1"], plain["seeds"]) == ("", "", "50.50 ± 0.71", "2")
    partial = row(table, "MoE + DKF + mu")
    assert (partial["MoE"], partial["DKF"], partial["L_mu"], partial["L_nt"]) == ("x", "x", "x", "")
    assert (row(table, "MoE")["top-1"], row(table, "MoE")["seeds"]) == ("-", "0")
    assert "compare the order" not in table.note


def test_a_table_of_components_holds_one_weight_of_each_loss(tmp_path):
    """A row of nt 5 beside one of nt 10 would show what two changes do as if it were one."""
    for name, top1, changes in (
        ("plain", 50.0, ROWS["plain"]),
        ("mu", 55.0, ROWS["moe_dkf_mu"]),
        ("nt10", 56.0, ()),
        ("nt5", 58.0, ("stages.representation.loss.nt=5.0",)),
    ):
        write_run(tmp_path / name, curve=False, evaluation=False, changes=changes, top1=top1)
    [(dataset, groups)] = by_dataset(collect([tmp_path])[0]).items()
    found = {row(table, "SHIKE (all)")["top-1"]: table for table in tables.ablation_tables(dataset, groups)}
    assert set(found) == {"56.00", "58.00"}
    for top1, weight in {"56.00": "10.0", "58.00": "5.0"}.items():
        assert f"representation.loss.nt={weight}" in found[top1].note
        assert [row(found[top1], name)["top-1"] for name in ("plain network", "MoE + DKF + mu")] == ["50.00", "55.00"]


def test_a_row_is_of_one_setting_and_the_others_are_named(tmp_path):
    """Two single networks with an aligned stage fit one row of table 5 and of table 4 each."""
    for name, top1, seed, changes in (
        ("one", 50.0, 0, ROWS["plain"]),
        ("one again", 51.0, 1, ROWS["plain"]),
        ("deep", 60.0, 0, ("model.depths=(2,)", *ROWS["plain"][1:])),
        ("all", 55.0, 0, ()),
    ):
        write_run(tmp_path / name, curve=False, evaluation=False, changes=changes, top1=top1, seed=seed)
    [(dataset, groups)] = by_dataset(collect([tmp_path])[0]).items()
    [table] = tables.ablation_tables(dataset, groups)
    assert row(table, "plain network")["top-1"].startswith("50.50")
    assert "Further runs of a row that is there already: plain network, B." in table.note


def test_a_seed_repeated_in_a_bucket_is_named_by_both_places(tmp_path):
    write_run(tmp_path / "run", curve=False, evaluation=False)
    [run] = collect([tmp_path])[0]
    group = Group([run], "x", [dataclasses.replace(run, path=epath.Path("gs://runs/x"))])
    assert group.repeated() == [f"x, seed 0: gs://runs/x repeats {run.path} and is not counted"]


def test_table_5_and_other_data_are_named(tmp_path):
    terms_off = ("stages.representation.loss.mu=0.0", "stages.representation.loss.nt=0.0")
    for name, depths, changes in (("A", "(1,)", terms_off), ("AB", "(1,2)", ()), ("BAB", "(2,1,2)", ())):
        changes = (f"model.depths={depths}", *changes)
        write_run(tmp_path / name, curve=False, evaluation=False, config="digits_lt.py", changes=changes, data="digits")
    [(dataset, groups)] = by_dataset(collect([tmp_path])[0]).items()
    assert dataset == "digits_lt"
    found = tables.ablation_tables(dataset, groups)
    table = found[-1]
    assert table.title.startswith("Table 5")
    assert row(table, "AB")["paper"] == "57.39"
    assert row(table, "AB")["top-1"] == "55.00"
    assert row(table, "ABCC")["seeds"] == "0"
    assert row(table, "BAB")["paper"] == "-"
    assert "compare the order, not the numbers" in table.note


def test_settings_that_differ_are_the_labels(tmp_path):
    for lr in ("0.1", "0.2"):
        write_run(tmp_path / lr, curve=False, evaluation=False, changes=(f"stages.representation.lr={lr}",))
    [groups] = by_dataset(collect([tmp_path])[0]).values()
    assert [g.label for g in groups] == [
        "cifar100_lt_if100, representation.lr=0.1",
        "cifar100_lt_if100, representation.lr=0.2",
    ]
    assert tables.ablation_tables("x", groups) == []


def test_settings_of_a_stage_that_not_all_runs_have_tell_runs_apart(tmp_path):
    for exchange in ("0.3", "0.0"):
        changes = ("run=('h2t',)", f"stages.h2t.exchange={exchange}")
        place = tmp_path / f"exchange{exchange}"
        write_run(place, curve=False, evaluation=False, config="h2t_cifar.py", changes=changes)
    write_run(tmp_path / "mixup", curve=False, evaluation=False, config="h2t_cifar.py", changes=("run=('mixup',)",))
    [groups] = by_dataset(collect([tmp_path])[0]).values()
    labels = [group.label for group in groups]
    assert len(set(labels)) == 3
    assert sum("h2t.exchange=0.3" in label for label in labels) == 1


def test_missing_stage_is_told_by_the_list_of_stages(tmp_path):
    for name, changes in {"both": (), "second": ("run=('classifier',)",)}.items():
        write_run(tmp_path / name, curve=False, evaluation=False, changes=changes)
    [groups] = by_dataset(collect([tmp_path])[0]).values()
    assert {g.label for g in groups} == {
        "cifar100_lt_if100, run=(representation,classifier)",
        "cifar100_lt_if100, run=(classifier)",
    }


def test_stages_and_costs(groups):
    found = groups["CIFAR100-LT, IF 100"]
    stages = tables.stages_table("x", found)
    assert row(stages, "SHIKE (all): representation")["top-1"] == "48.0 ± 1.0"
    assert row(stages, "plain network: classifier")["expert 2"] == ""
    assert row(tables.cost_table("x", found), "SHIKE (all)")["parameters"] == "1,277,008"


def test_markdown_is_a_table(groups):
    table = tables.results_table("CIFAR100-LT, IF 100", groups["CIFAR100-LT, IF 100"])
    lines = [line for line in tables.to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


def test_published_numbers_are_those_of_the_reference(shared):
    """The numbers in the module against the text that they were taken from."""
    text = (shared / "reference.md").read_text()
    line4 = next(line for line in text.splitlines() if line.startswith("Table 4"))
    assert [float(part.split()[-1].rstrip(".")) for part in line4.split(";")] == [r.top1 for r in paper.TABLE4]
    line5 = next(line for line in text.splitlines() if line.startswith("Table 5"))
    for arrangement, top1 in paper.TABLE5.items():
        assert f"{arrangement} {top1:.2f}" in line5
