"""State dicts from PyTorch's own files (tests/golden/make_torch_files.py: ramps only) and from files built by hand."""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from shike_jax.convert.reader import read_state_dict, write_state_dict
from shike_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
TRAINER = ("torch_trainer.pth", "torch_trainer_older.pth.tar")
UNUSUAL = ("torch_unusual.pth", "torch_unusual_older.pth.tar")


def ramp(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


SIX = ramp(6).tobytes()


def assert_same(read, expected):
    assert sorted(read) == sorted(expected)
    for name, array in expected.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read[name], array, err_msg=name)


@pytest.mark.parametrize("name", TRAINER)
def test_nested_state_dict_of_a_wrapped_network(name):
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    expected = {"conv.weight": ramp(3, 2, 3, 2), "bn.weight": ones, "bn.bias": zeros}
    assert_same(read_state_dict(GOLDEN / name), expected | {"bn.running_mean": zeros, "bn.running_var": ramp(3) + 0.5})


@pytest.mark.parametrize("name", UNUSUAL)
def test_strides_shared_storage_and_dtypes(name):
    base = ramp(5, 6)
    expected = {
        "base": base,
        "slice": base[1:4, ::2],
        "transposed": ramp(3, 4).T,
        "channels_last": ramp(1, 2, 2, 3),
        "expanded": np.full((2, 3), 7, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5),
        "parameter": ramp(4),
        "half": np.array([0, 0.25, 0.5], np.float16),
        "bfloat16": np.array([0, 0.25, 0.5], ml_dtypes.bfloat16),
        "int64": np.array([-1, 0, 1]),
        "bool": np.array([True, False, True]),
        "uint16": np.arange(3, dtype=np.uint16),
        "numpy": np.arange(6.0).reshape(2, 3).T,
    }
    read = read_state_dict(GOLDEN / name)
    assert_same(read, expected)
    read["base"][:] = -1  # each array owns its values: no writing through shared storages
    assert read["slice"][0, 0] == 6


@pytest.mark.parametrize("name", TRAINER + UNUSUAL)
def test_every_truncation_is_a_user_error(name, tmp_path):
    data = (GOLDEN / name).read_bytes()
    for length in range(0, len(data) - 1, 13):
        path = tmp_path / name
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match=name):
            read_state_dict(path)


@pytest.mark.parametrize("name", TRAINER + UNUSUAL)
def test_damaged_bytes_never_raise_anything_but_user_error(name, tmp_path):
    data, rng = bytearray((GOLDEN / name).read_bytes()), np.random.RandomState(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.randint(0, len(data), 3):
            damaged[at] = rng.randint(256)
        path = tmp_path / name
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except UserError:
            refused += 1
    assert refused > 100


class Asks:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def older_file(path, content, *rest):
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, [], *rest)
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    return path


def zip_file(path, content, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
        for name, data in records.items():
            archive.writestr(f"toy/{name}", data)
    return path


@pytest.mark.parametrize("build", [older_file, zip_file])
@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("open('{}', 'w')",), r"builtins\.eval"),
        (open, ("{}", "w"), r"(io|_io)\.open"),
        (getattr, ({}, "keys"), r"builtins\.getattr"),
        (pathlib.PurePosixPath, ("{}",), r"PurePosixPath"),
    ],
)
def test_forbidden_globals_are_named_and_not_called(build, function, args, named, tmp_path):
    touched = tmp_path / "touched"
    args = [arg.format(touched) if isinstance(arg, str) else arg for arg in args]
    path = build(tmp_path / "evil.pth", {"state_dict": {"w": Asks(function, *args)}})
    with pytest.raises(UserError, match=named) as caught:
        read_state_dict(path)
    assert "evil.pth" in str(caught.value)
    assert not touched.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI%d\ntQ"


def tensor_pickle(numel=6, offset=0, shape=b"(I2\nI3\nt", stride=b"(I3\nI1\nt"):
    """A pickle {"w": tensor} in protocol 0, as text."""
    return b"(dS'w'\n" + TENSOR % numel + b"I%d\n" % offset + shape + stride + b"I00\n(dtRs."


def test_tensor_written_by_hand(tmp_path):
    path = zip_file(tmp_path / "w.pth", tensor_pickle(), **{"data/0": ramp(6).tobytes(), "byteorder": "little"})
    assert_same(read_state_dict(path), {"w": ramp(2, 3)})


def test_the_number_of_a_remembered_object_takes_no_memory(tmp_path):
    """A table up to that number, as Python's unpickler in C makes it, would have 32 GiB."""
    remembered = b"(dr" + struct.pack("<I", 2**31)  # the dictionary, by a number of four bytes
    pickled = tensor_pickle().replace(b"(d", remembered, 1)
    path = zip_file(tmp_path / "w.pth", pickled, **{"data/0": SIX, "byteorder": "little"})
    assert_same(read_state_dict(path), {"w": ramp(2, 3)})


@pytest.mark.parametrize(
    ("pickled", "records", "problem"),
    [
        (tensor_pickle(), {}, "storage 0 is missing"),
        (tensor_pickle(numel=7), {}, "24 bytes, 28 expected"),
        (tensor_pickle(offset=1), {}, "outside its storage"),
        (tensor_pickle(offset=-1), {}, "offset -1"),
        (tensor_pickle(stride=b"(I4\nI1\nt"), {}, "outside its storage"),
        (tensor_pickle(stride=b"(I-1\nI1\nt"), {}, "strides"),
        (tensor_pickle(stride=b"(I1\nt"), {}, "strides"),
        (tensor_pickle(shape=b"(L%dL\nI9\nt" % 10**15, stride=b"(I0\nI0\nt"), {}, "too often"),
        (tensor_pickle(), {"byteorder": b"big"}, "big-endian"),
        (b"(dS'epoch'\nI3\ns.", {}, "no tensors inside"),
        (b"I3\n.", {}, "no tensors inside"),
        (tensor_pickle()[:-1] + b"b.", {}, "damaged"),
    ],
)
def test_inconsistent_zip_files(pickled, records, problem, tmp_path):
    values = {} if "missing" in problem else {"data/0": SIX}
    path = zip_file(tmp_path / "bad.pth", pickled, **values, **records)
    with pytest.raises(UserError, match=problem) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def bomb(path, *members):
    """A zip archive whose members unpack to zeros: (name, megabytes)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, megabytes in members:
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(megabytes):
                    member.write(bytes(2**20))
    return path


@pytest.mark.parametrize("name", ["toy/data.pkl", "toy/byteorder", "toy/data/0", "toy/unused"])
def test_a_zip_bomb_is_refused_by_its_directory(name, tmp_path, monkeypatch):
    path = bomb(tmp_path / "bomb.pth", (name, 100))
    if name != "toy/data.pkl":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("toy/data.pkl", tensor_pickle(numel=25 * 2**20))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"unpacks to 104,857,\d{3}; taken for a decompression bomb"):
        read_state_dict(path)


def test_many_members_are_added_up_and_npz_is_checked_too(tmp_path):
    path = bomb(tmp_path / "bomb.npz", *((f"{i}.npy", 10) for i in range(10)))
    with pytest.raises(UserError, match="unpacks to 104,857,600; taken for a decompression bomb"):
        read_state_dict(path)


def test_a_compressed_file_of_sensible_size_is_read(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/data.pkl", tensor_pickle())
        archive.writestr("toy/data/0", SIX)
    assert_same(read_state_dict(path), {"w": ramp(2, 3)})


def test_a_storage_of_another_size_is_not_unpacked(tmp_path, monkeypatch):
    path = zip_file(tmp_path / "w.pth", tensor_pickle(), **{"data/0": bytes(2**20)})
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: pytest.fail("unpacked") if "data/0" in name else read(self, name)
    )
    with pytest.raises(UserError, match="1048576 bytes, 24 expected"):
        read_state_dict(path)


def test_one_value_repeated_to_gigabytes_is_refused(tmp_path):
    pickled = tensor_pickle(shape=b"(I100000\nI100000\nt", stride=b"(I0\nI0\nt")
    path = zip_file(tmp_path / "w.pth", pickled, **{"data/0": SIX})
    with pytest.raises(UserError, match="repeats 24 bytes too often"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "stand_in",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"cnumpy\nndarray\n",
    ],
)
def test_a_pickle_cannot_alter_the_stand_ins(stand_in, tmp_path):
    state = b"(N(dS'_function'\nI1\nsS'dtype'\nI1\nsS'__setstate__'\nI1\nst"
    path = zip_file(tmp_path / "evil.pth", b"(dS'w'\n" + stand_in + state + b"bs.")
    with pytest.raises(UserError):
        read_state_dict(path)
    assert_same(read_state_dict(GOLDEN / TRAINER[0]), read_state_dict(GOLDEN / TRAINER[1]))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_write_then_read(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    arrays = {"a.weight": ramp(2, 3), "b": np.array(3.0), "c": ramp(4, dtype=np.float16), "d": np.zeros((0, 2), int)}
    write_state_dict(path, arrays)
    assert_same(read_state_dict(path), arrays)
    assert os.listdir(tmp_path) == [path.name]
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write_state_dict(path, {"a": ramp(1)})
    assert path.read_bytes() == before


def test_bfloat16_goes_to_safetensors_only(tmp_path):
    arrays = {"a": ramp(3).astype(ml_dtypes.bfloat16)}
    write_state_dict(tmp_path / "w.safetensors", arrays)
    assert_same(read_state_dict(tmp_path / "w.safetensors"), arrays)
    with pytest.raises(UserError, match=r"a has dtype bfloat16.*safetensors"):
        write_state_dict(tmp_path / "w.npz", arrays)
    assert os.listdir(tmp_path) == ["w.safetensors"]  # no half-written file stays behind


def test_written_names_are_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="unknown suffix"):
        write_state_dict(tmp_path / "w.pth", {"a": ramp(1)})
    with pytest.raises(UserError, match="absent"):
        write_state_dict(tmp_path / "absent" / "w.npz", {"a": ramp(1)})


def test_prefixes_counters_and_collisions(tmp_path):
    same = {"module.w": ramp(3), "w": ramp(3), "module.bn.num_batches_tracked": np.array(7)}
    np.savez(tmp_path / "same.npz", **same)
    assert_same(read_state_dict(tmp_path / "same.npz"), {"w": ramp(3)})
    np.savez(tmp_path / "other.npz", **same | {"w": ramp(3) + 1})
    with pytest.raises(UserError, match=r"other\.npz: two different tensors are called w$"):
        read_state_dict(tmp_path / "other.npz")


ENCODER = {"conv1.weight": ramp(2), "layer1.0.bn1.weight": ramp(3)}


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "backbone.", "model.", "model.backbone.", "module.encoder_q."]
)
def test_a_network_inside_another_module_is_read_under_its_own_names(prefix, tmp_path):
    """As torch.compile, DINO, Lightning and MoCo name it; what lies next to the network is not part of it."""
    inner = {f"{prefix}{name}": array for name, array in ENCODER.items()}
    outer = {} if "_orig_mod" in prefix else {"module.encoder_k.conv1.weight": ramp(2) + 1, "queue": ramp(4)}
    np.savez(tmp_path / "w.npz", **inner, **outer)
    assert_same(read_state_dict(tmp_path / "w.npz"), ENCODER)


@pytest.mark.parametrize(("raw", "averaged"), [("model", "model_ema"), ("state_dict", "ema"), ("student", "teacher")])
def test_of_raw_and_averaged_weights_it_is_said_which_are_taken(raw, averaged, tmp_path):
    path = older_file(tmp_path / "both.pyth", {raw: {"w": ramp(2)}, averaged: {"w": ramp(2) + 5}, "epoch": 3})
    said = []
    assert_same(read_state_dict(path, tell=said.append), {"w": ramp(2) + 5})
    [line] = said
    assert f"the averaged ones ({averaged}) are taken; the raw ones ({raw}): " in line and "--weights=raw" in line
    for kind, expected in (("averaged", ramp(2) + 5), ("raw", ramp(2))):
        assert_same(read_state_dict(path, kind, said.append), {"w": expected})
    assert len(said) == 1
    alone = older_file(tmp_path / "one.ckpt", {averaged: {"w": ramp(2)}})
    assert_same(read_state_dict(alone, tell=said.append), {"w": ramp(2)})
    with pytest.raises(UserError, match=f"no raw weights inside, only {averaged}"):
        read_state_dict(alone, "raw")
    assert len(said) == 1


def test_suffixes_of_trainers_in_any_case(tmp_path):
    for name in ("a.PTH", "a.ckpt", "a.Pyth", "a.pkl"):
        assert_same(read_state_dict(older_file(tmp_path / name, {"network": {"w": ramp(2)}})), {"w": ramp(2)})
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": {"w": ramp(2)}}, protocol=2))
    assert_same(read_state_dict(tmp_path / "plain.pkl"), {"w": ramp(2)})


def test_split_state_dicts_are_merged(tmp_path):
    content = {"epoch": 1, "state_dict_model": {"module.w": ramp(2)}, "state_dict_classifier": {"module.fc": ramp(3)}}
    path = older_file(tmp_path / "split.pth.tar", content)
    assert_same(read_state_dict(path), {"w": ramp(2), "fc": ramp(3)})


def test_missing_unknown_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_state_dict(tmp_path / "absent.npz")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown suffix"):
        read_state_dict(tmp_path / "w.onnx")
    (tmp_path / "w.npz").write_bytes((tmp_path / "w.onnx").read_bytes())
    with pytest.raises(UserError, match="not a readable"):
        read_state_dict(tmp_path / "w.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="not a readable"):
        read_state_dict(tmp_path / "objects.npz")
    whole = io.BytesIO()
    np.savez(whole, a=ramp(100))
    (tmp_path / "cut.npz").write_bytes(whole.getvalue()[:-30])
    with pytest.raises(UserError, match="not a readable"):
        read_state_dict(tmp_path / "cut.npz")


def safetensors_bytes(header, values=SIX):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + values


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_safetensors_written_by_hand(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"b": entry(shape=[4], offsets=[8, 24]), "a": entry(shape=[2], offsets=[0, 8])}
    path.write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}} | tensors))
    assert_same(read_state_dict(path), {"a": ramp(2), "b": ramp(6)[2:]})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x01\x02", "not a whole safetensors file"),
        (struct.pack("<Q", 10**9) + b"{}", "not a whole"),
        (safetensors_bytes("{nonsense"), "not a whole"),
        (safetensors_bytes({"w": entry(dtype="F31")}), "not a whole"),
        (safetensors_bytes({"w": entry(dtype="F8_E8M0", shape=(24,))}), "element type F8_E8M0; expected one of F16"),
        (safetensors_bytes({"w": entry()}, b"\0" * 20), "not a whole"),
        (safetensors_bytes({"w": entry()}, b"\0" * 25), "not a whole"),
        (safetensors_bytes({}, b""), "no tensors inside"),
    ],
)
def test_damaged_safetensors(data, problem, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=problem) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
