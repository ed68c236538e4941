"""Paths as users write them: a tilde, a comma, links, dot-files, subfolders, folders that must not be read."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from shike_jax import config as schema
from shike_jax.common import paths
from shike_jax.common.parser import Parser
from shike_jax.config import parse_arguments
from shike_jax.config.loading import parse_config
from shike_jax.data import lists, pictures, sources
from shike_jax.errors import UserError
from shike_jax.storage.workdir import examine

CONFIG = "--config=configs/folder_lt.py"


def photographs(root, suffix=".png", names=("train/ant", "train/bee", "test/ant", "test/bee"), count=2):
    for name in names:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(np.full((12, 12, 3), 20 * i, np.uint8)).save(folder / f"{i}{suffix}")
    return root


def load(root, **changes):
    data = schema.base().data
    data.update({"source": "folder", "root": str(root), "profile": "natural", **changes})
    return sources.load(data)


def train_members(root):
    return load(root).split.parts["train"].members.tolist()


def test_dot_files_are_no_images_anywhere(tmp_path):
    photographs(tmp_path)
    expected = train_members(tmp_path)
    for name in ("train/ant/._0.png", "test/bee/.hidden.jpg"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "train" / "ant" / ".thumbnails").mkdir()
    (tmp_path / "train" / "ant" / ".thumbnails" / "0.png").write_bytes(b"")
    assert train_members(tmp_path) == expected
    assert len(pictures.find([str(tmp_path)])) == 8
    assert schema.count_images(str(tmp_path / "train")) == 4


def test_linked_class_folders_count_in_training_prediction_and_size_rule(tmp_path):
    photographs(tmp_path / "store", names=("cat",), count=3)
    root = photographs(tmp_path / "photos")
    (root / "train" / "cat").symlink_to(tmp_path / "store" / "cat")
    (root / "train" / "cat" / "back").symlink_to(root / "train" / "cat")  # a circle
    assert [m for m in train_members(root) if "cat" in m] == [f"train/cat/{i}.png" for i in range(3)]
    assert len(pictures.find([str(root / "train")])) == 7
    assert schema.count_images(str(root / "train")) == 7


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".avif"])
def test_further_formats(tmp_path, suffix):
    from PIL import features

    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    photographs(tmp_path, suffix)
    source = load(tmp_path)
    assert len(source.split.parts["train"]) == 4
    assert len(pictures.find([str(tmp_path)])) == 8
    skipped: dict[str, str] = {}
    found = pictures.batches(pictures.find([str(tmp_path)]), 8, 8, 8, skipped)
    assert sum(len(images) for _, images in found) == 8 and not skipped


def test_images_one_level_deeper_are_found(tmp_path):
    photographs(tmp_path, names=("train/ant/a", "train/ant/b", "train/bee", "test/ant/c", "test/bee"))
    assert train_members(tmp_path)[:3] == ["train/ant/a/0.png", "train/ant/a/1.png", "train/ant/b/0.png"]


def test_a_class_of_foreign_files_names_the_endings(tmp_path):
    photographs(tmp_path)
    photographs(tmp_path, ".ppm", names=("train/cow",))
    with pytest.raises(UserError, match=r"train/cow holds no image, also not in its subfolders.*\.jpg.*\.tif"):
        load(tmp_path)


def test_a_class_folder_that_must_not_be_read_is_one_line(tmp_path, monkeypatch):
    photographs(tmp_path)
    scandir, closed = os.scandir, str(tmp_path / "train" / "bee")

    def guarded(folder):
        if str(folder) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read everything, so permissions alone show nothing
    with pytest.raises(UserError, match=rf"{closed}: Permission denied"):
        load(tmp_path)
    with pytest.raises(UserError, match=rf"{closed}: Permission denied"):
        pictures.find([str(tmp_path)])


@pytest.mark.parametrize(("member", "reason"), [("x" * 5000, "5000 characters"), ("a\0b.jpg", "no NUL")])
def test_impossible_paths_in_lists_are_one_line(tmp_path, member, reason):
    (tmp_path / "train.txt").write_text(f"ok.jpg 0\n{member} 1\n")
    with pytest.raises(UserError, match=rf"train\.txt:2: .*{reason}") as caught:
        lists.parse_list(str(tmp_path / "train.txt"))
    assert len(str(caught.value)) < 400
    (tmp_path / "paths.txt").write_text(f"{member}\n")
    files = pictures.find([str(tmp_path / "paths.txt")])
    skipped: dict[str, str] = {}
    assert list(pictures.batches(files, 8, 8, 8, skipped)) == [] and list(skipped) == [member]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    photographs(tmp_path)
    (tmp_path / "train.txt").write_text("train/ant/0.png 0\n", encoding="utf-8-sig")
    assert lists.parse_list(str(tmp_path / "train.txt")).members.tolist() == ["train/ant/0.png"]
    (tmp_path / "paths.txt").write_text("train/ant/0.png\n", encoding="utf-8-sig")
    assert pictures.find([str(tmp_path / "paths.txt")]) == [str(tmp_path / "train/ant/0.png")]


def test_deeply_nested_json_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"a":' + "[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json: not valid JSON \(nested too deeply\)"):
        examine(tmp_path, {"a": 1})
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    assert examine(tmp_path, {"a": 1}) is None


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photographs(tmp_path / "photos")
    home = str(tmp_path / "photos")
    assert parse_config([f"{CONFIG}:root=~/photos"])[0].data.root == home
    assert parse_config([CONFIG, "--config.data.root=~/photos"])[0].data.root == home
    assert parse_config([CONFIG, "--config.init_from=~/weights"])[0].init_from == str(tmp_path / "weights")
    parser = Parser("p", "d", "e")
    parser.add_argument("--images", nargs="+")
    parser.add_argument("--workdir", type=paths.Path)
    found = parser.parse_args(["--images", "~/a", "b", "--workdir=~/x"])
    assert found.images == [str(tmp_path / "a"), "b"]
    assert found.workdir == tmp_path / "x"


def test_a_comma_in_a_path_stands_in_quotes():
    assert parse_arguments('root="a, b",size=3', root="", size=0) == {"root": "a, b", "size": 3}
    assert parse_arguments("root=it's", root="") == {"root": "it's"}  # a mark inside a value is a character
    with pytest.raises(UserError, match="in quotes"):
        parse_arguments("root=a, b", root="")
    with pytest.raises(UserError, match="not closed"):
        parse_arguments('root="a, b', root="")


def test_the_size_rule_looks_at_the_root_that_is_used(tmp_path):
    root = tmp_path / "large, very"
    for part in ("train/a", "test/a"):
        (root / part).mkdir(parents=True)
    for i in range(20_001):
        (root / "train" / "a" / f"{i}.jpg").touch()
    assert parse_config([CONFIG])[0].model.backbone == "resnet18"
    for arguments in ([f'{CONFIG}:root="{root}"'], [CONFIG, f"--config.data.root={root}"]):
        config = parse_config(arguments)[0]
        assert (config.model.backbone, config.data.root) == ("resnet50", str(root))
