"""The command: files written, HTML whole and self-contained, missing pieces named."""

import base64
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from shike_jax.commands.report import main
from shike_jax.errors import UserError
from shike_jax.evaluation.checkpoint import save
from shike_jax.report.evaluations import evaluation
from shike_jax.report.runs import Run
from shike_jax.storage.weights import load_weights
from tests import tiny
from tests.report.made import results, summary, write_run

VOID = {"meta", "link", "img", "br"}
PLAIN = (
    "model.depths=(1,)",
    "model.fusion=False",
    "stages.representation.loss.mu=0.0",
    "stages.representation.loss.nt=0.0",
)


class Page(HTMLParser):
    """Checks that tags nest, and collects references and texts."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.text, self.count = [], [], [], {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """SHIKE with all its files; a single network that has nothing but its results."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "runs" / "shike" / "seed0", config="cifar_lt.py:official,epochs=4,classifier_epochs=2")
    write_run(
        folder / "runs" / "<plain>",
        curve=False,
        evaluation=False,
        changes=PLAIN,
        config="cifar_lt.py:official,epochs=4,classifier_epochs=2",
        top1=45.0,
    )
    main(
        [
            f"--runs={folder / 'runs' / 'shike'}",
            str(folder / "runs" / "<plain>"),
            f"--output={folder / 'out'}",
            "--no-evaluate",
        ]
    )
    return folder / "out"


def test_html_is_whole_and_refers_to_nothing_outside(report):
    page = Page()
    text = (report / "report.html").read_text()
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(ref.startswith(("#", "data:")) for ref in page.references)
    assert "url(" not in text
    assert "@import" not in text
    pictures = [ref for ref in page.references if ref.startswith("data:image/svg+xml;base64,")]
    assert len(pictures) == page.count["img"] == 6
    for picture in pictures:
        assert b"<svg" in base64.b64decode(picture.partition(",")[2])[:500]
    # Results, stages, experts and cost; of the evaluated run divisions, pairs of classes, experts and all classes.
    assert page.count["table"] == 9
    titles = [title for title in ("Training curves.", "Accuracy by training images.") if title in page.text]
    assert [page.text.index(title) for title in titles] == sorted(page.text.index(title) for title in titles)
    assert "56.34" in page.text


def test_names_from_outside_write_no_markup(tmp_path):
    write_run(
        tmp_path / "runs" / "a",
        evaluation=False,
        config="digits_lt.py",
        data="digits",
        changes=("name=<script>alert(1)",),
    )
    path = tmp_path / "runs" / "a" / "results.json"
    results = json.loads(path.read_text())
    results["split"]["name"] = "<img src=x>|\x1b[2J"
    path.write_text(json.dumps(results))
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
    markdown, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert "<script" not in markdown and page.count("<script") == 1  # the page's own, which sorts tables
    assert "<img src=x" not in markdown + page
    assert "\x1b" not in markdown + page
    assert "&lt;script&gt;" in markdown and "&lt;script&gt;" in page
    assert len({line.replace("\\|", "").count("|") for line in markdown.splitlines() if "alert" in line}) <= 3


MEASURE = """<script>
document.querySelectorAll("details").forEach(e => e.open = true);
document.title = Array.from(document.querySelectorAll("body, .scroll")).map(e => e.scrollWidth - e.clientWidth) + " of "
  + Array.from(document.querySelectorAll("td:not(.none)")).filter(e => e.scrollWidth > e.clientWidth).length;
</script></body>"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to draw the page")
@pytest.mark.parametrize("width", [400, 800, 1400])
def test_nothing_is_cut_off_or_needs_scrolling(width, tmp_path):
    """Long labels, and means with deviations in every column."""
    for seed, lr, name in ((0, 0.1, "x"), (1, 0.1, "x"), (0, 0.2, "y")):
        changes = (f"stages.representation.lr={lr}", f"name={name}_of_a_setting_with_quite_a_long_name")
        write_run(tmp_path / "runs" / f"{name}{seed}", changes=changes, seed=seed, top1=50.0 + 9 * seed)
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
    page = tmp_path / "out" / "measured.html"
    page.write_text((tmp_path / "out" / "report.html").read_text().replace("</body>", MEASURE))
    title = title_of(page, width, tmp_path)
    assert set(title.replace(" of ", ",").split(",")) == {"0"}, title


def title_of(page, width, tmp_path):
    """The title that a page's script has set, in a frame of that width: a window is at least 500 pixels wide."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="{page.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "window.onload = () => { document.title = document.getElementById('f').contentDocument.title; }</script>"
    )
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    arguments += ["--window-size=1600,1000", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    found = subprocess.run([BROWSER, *arguments, frame.as_uri()], capture_output=True, text=True, timeout=120).stdout
    title = found.partition("<title>")[2].partition("</title>")[0]
    assert title, found[-500:]
    return title


SORT = """<script>
const sheet = document.querySelector("table.sorts"), head = [...sheet.tHead.rows[0].cells].map(c => c.textContent);
const column = head.indexOf("accuracy"), first = () => sheet.tBodies[0].rows[0].cells[column].textContent;
sheet.tHead.rows[0].cells[column].click(); const best = first();
sheet.tHead.rows[0].cells[column].click(); document.title = best + " " + first();
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to draw the page")
def test_a_click_sorts_the_classes(report, tmp_path):
    page = tmp_path / "sorted.html"
    page.write_text((report / "report.html").read_text().replace("</body>", SORT))
    best, worst = title_of(page, 1400, tmp_path).split()
    with np.load(report.parent / "runs" / "shike" / "seed0" / "evaluation.npz") as file:
        label, predicted = file["label"], file["classifier/predicted"]
    accuracy = [100 * np.mean(predicted[label == c] == c) for c in range(100)]
    assert (best, worst) == (f"{max(accuracy):.1f}", f"{min(accuracy):.1f}")


def test_missing_pieces_are_named(report):
    for name in ("report.html", "report.md"):
        text = (report / name).read_text()
        assert "plain network, seed 0: no figures of its predictions: not evaluated (--no-evaluate)" in text


def test_data_sets_of_similar_names_have_figures_of_their_own(tmp_path):
    """Names that differ in their signs, and beyond the length of a file's name, alone."""
    long = "birds_of_the_northern_hemisphere_and_the_islands_around_it_seen_in_winter"
    names = ("birds!", "birds?", f"{long}_one", f"{long}_two")
    for place, name in enumerate(names):
        found = write_run(tmp_path / "runs" / str(place), evaluation=False, config="digits_lt.py", data="digits")
        found["split"]["name"] = name
        (tmp_path / "runs" / str(place) / "results.json").write_text(json.dumps(found))
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    places = [line.partition("](")[2] for line in lines if line.startswith("![Training curves]")]
    assert len(set(places)) == len(names)


def test_markdown_shows_the_same_pictures(report):
    text = (report / "report.md").read_text()
    places = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(places) == 6 and "training" in places[0]
    for place in places:
        assert (report / place).read_text().count("<path") > 10


def test_runs_without_weights_say_so(tmp_path):
    write_run(tmp_path / "runs", evaluation=False, config="digits_lt.py", data="digits")
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "no stage has been finished yet" in text or "neither a work directory" in text
    assert "Accuracy by training images" in text
    assert "figure 4" not in text


def test_an_evaluation_of_other_data_is_refused(tmp_path):
    write_run(tmp_path / "runs" / "a", config="digits_lt.py", data="digits")
    path = tmp_path / "runs" / "a" / "results.json"
    path.write_text(path.read_text().replace('"hash": "digits"', '"hash": "other"'))
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
    assert "of another split than the run" in (tmp_path / "out" / "report.md").read_text()


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    """The weights' digest is taken over their arrays: an evaluation of the same data by another network has another."""
    found = write_run(tmp_path / "runs" / "a", config="digits_lt.py", data="digits")
    weights = tiny.write_checkpoint(tmp_path / "runs" / "a" / "weights" / "classifier")
    about = summary(found)

    def report():
        main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
        return (tmp_path / "out" / "report.md").read_text()

    about["checkpoint"]["digest"] = "0" * 64
    save(tmp_path / "runs" / "a" / "evaluation.npz", about, {})
    assert "of other weights (000000000000) than the run's" in report()
    about["checkpoint"]["digest"] = load_weights(weights)[1]["digest"]
    save(tmp_path / "runs" / "a" / "evaluation.npz", about, {})
    text = report()
    assert "of other weights" not in text and "calibration and agreement of the experts" in text


def test_a_name_does_not_lead_out_of_the_output(tmp_path):
    run = Run(tmp_path / "run", results(config="digits_lt.py", data="digits") | {"name": "../../outside"})
    (tmp_path / "out" / "evaluations").mkdir(parents=True)
    looked_at = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: looked_at.append(path))
        with pytest.raises(UserError, match="not evaluated"):
            evaluation(run, tmp_path / "out" / "evaluations", compute=False)
    assert looked_at[1].parent.resolve() == tmp_path / "out" / "evaluations"
    assert looked_at[1].name.startswith("outside-seed0-")


DAMAGE = {
    "no stages": lambda results: results | {"stages": []},
    "a text for a number": lambda results: results | {"seconds": {"train": "long"}},
    "no devices": lambda results: {k: v for k, v in results.items() if k != "devices"},
    "a seed that is no number": lambda results: results | {"seed": "zero"},
    "experts missing": lambda results: results | {"stages": [s | {"experts": []} for s in results["stages"]]},
}


def test_one_damaged_run_does_not_stop_the_report_of_all(tmp_path, capsys):
    good = write_run(tmp_path / "runs" / "good", config="digits_lt.py", data="digits")
    for name, damage in DAMAGE.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "results.json").write_text(json.dumps(damage(good)))
    late = tmp_path / "runs" / "an epoch too many"
    write_run(late, config="digits_lt.py", data="digits", evaluation=False)
    (late / "metrics.jsonl").write_text('{"stage": "classifier", "epoch": 500, "epoch_loss": 1.0}\n')
    torn = tmp_path / "runs" / "torn evaluation"
    write_run(torn, config="digits_lt.py", data="digits", changes=("model.head_scale=20.0",))
    save(torn / "evaluation.npz", summary(good) | {"heads": {"classifier": {}}}, {})
    main([f"--runs={tmp_path / 'runs'}", f"--output={tmp_path / 'out'}", "--no-evaluate"])
    text, said = (tmp_path / "out" / "report.md").read_text(), capsys.readouterr().out
    assert "2 finished runs" in text
    for name in (*DAMAGE, late.name):
        [line] = [line for line in said.splitlines() if f"runs/{name}" in line]
        assert "damaged" in line or "not the results of a run" in line
    assert "head_scale=20.0, seed 0: no figures of its predictions: KeyError" in text
    assert "Accuracy by training images" in text


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main([f"--runs={tmp_path / 'absent'}", f"--output={tmp_path / 'out'}"])
    with pytest.raises(UserError, match=r"no results\.json below"):
        main([f"--runs={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
