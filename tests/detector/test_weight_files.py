"""Foreign files of weights: what is in them is read, and nothing in them is executed."""

import argparse
import os
import pickle
import shutil
import struct
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch

from risf_core.detector.checkpoints import read_checkpoint
from risf_core.detector.pretrained import read_pretrained
from risf_core.detector.weight_files import ADMITTED, PickledArray, find_weights, read_weight_file
from risf_core.errors import CheckpointError

ARRAYS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big": np.arange(3, dtype=">f8"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.ones(2, dtype=np.float16),
    "int": np.array(7, dtype=np.int64),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), dtype=np.float32),
}


def check_arrays(weights):
    assert set(weights) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert weights[key].shape == array.shape
        assert np.array_equal(weights[key].numpy(), array)
        weights[key].zero_()  # may be written to


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_from_every_pickle_protocol(tmp_path, protocol):
    path = tmp_path / "weights.pkl"
    content = {
        "model": OrderedDict(ARRAYS),
        "__author__": "somebody",
        "epoch": np.float64(2.5),
        "bytes": b"\xff",
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_weight_file(path)
    assert (read["__author__"], read["epoch"]) == ("somebody", 2.5)
    assert read["bytes"] in (b"\xff", "\xff")
    weights, others = find_weights(read)
    check_arrays(weights)
    assert others == ()


def test_an_array_as_python_2_wrote_it(tmp_path):
    """Opcodes by hand: old module name, content as a byte string, which Python 3 reads as text."""
    raw = struct.pack("<2f", 1.5, -2.0)
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02t" + dtype
    array += b"\x89U" + bytes([len(raw)]) + raw + b"tb"
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x07conv1_w" + array + b"ss.")
    weights, _ = find_weights(read_weight_file(path))
    assert weights["conv1_w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_with_numpy_arrays_and_counters(tmp_path, zipped):
    path = tmp_path / "model.pth"
    content = {
        "model": {
            "a": torch.ones(2),
            "b": np.arange(3.0),
            "c": torch.nn.Parameter(torch.zeros(1)),
            "note": "x",
        },
        "iteration": np.int64(9),
        "scheduler": {"milestones": Counter([3])},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_weight_file(path)
    assert read["iteration"] == 9
    weights, others = find_weights(read)
    assert weights["b"].tolist() == [0.0, 1.0, 2.0] and weights["a"].sum() == 2
    assert not weights["c"].requires_grad and others == ("note",)


def test_foreign_classes_beside_the_weights_are_left_empty(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, path)
    read = read_weight_file(path)
    assert set(find_weights(read)[0]) == {"a"}
    assert not isinstance(read["args"], argparse.Namespace)


class _Config(dict):
    """Like yacs' CfgNode: a dictionary with attributes."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__["__immutable__"] = False


class _Names(list):
    pass


class _Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


@pytest.mark.parametrize(
    "beside",
    [_Config(lr=0.1, inner=_Config(a=torch.ones(1))), defaultdict(list, a=[1]), defaultdict(dict), _Slots()],
    ids=["config", "defaultdict of lists", "defaultdict of dicts", "slots"],
)
def test_what_trainers_leave_beside_the_weights_hides_none(tmp_path, beside):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(1)}, "cfg": beside}, path)
    read = read_weight_file(path)
    assert set(find_weights(read)[0]) == {"a"} and type(read["cfg"]) is not type(beside)


def test_a_class_that_cannot_be_read_is_named_without_torchs_advice(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(1)}, "names": _Names(["x"])}, path)
    with pytest.raises(CheckpointError, match=r"test_weight_files\._Names") as caught:
        read_weight_file(path)
    assert "file an issue" not in str(caught.value)


# --- hostile files --------------------------------------------------------------------------------------------------


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles(folder):
    """Kinds of attack by name; those that could act would make ``folder``."""
    name = str(folder)
    code = f"__import__('os').mkdir({name!r})"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(tR"
    dtype = b"cnumpy\ndtype\n(Vf8\ntR"
    return {
        "call": pickle.dumps({"model": _Call(os.mkdir, name)}),
        "eval": pickle.dumps({"model": _Call(eval, code)}, protocol=0),
        "call of what a call gives": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVmkdir\ntR(V"
        + name.encode()
        + b"\ntR.",
        "system": pickle.dumps({"model": {"a": _Call(os.system, f"mkdir {name}")}}),
        "old opcode": b"(S'" + name.encode() + b"'\nios\nmkdir\n.",
        "attribute of an admitted name": b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93\x8c\x01x\x85R.",
        "function of numpy": b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x01x\x85R.",
        "array of objects": pickle.dumps({"a": np.array([_Call(os.mkdir, name)], dtype=object)}),
        "array of records": pickle.dumps({"a": np.zeros(1, dtype=[("x", "O")])}),
        # Bytes that numpy would take for pointers, were the type changed after its check.
        "type turned into objects": b"(" + dtype + b"(I3\nV|\nN(Vx\nt}I-1\nI-1\nI63\ntbt.",
        "too few bytes": array + b"(I1\n(I9\nt" + dtype + b"I00\nVab\ntb.",
        "a count for content": array
        + b"(I1\n(I3000000\nt"
        + b"cnumpy\ndtype\n(Vu1\ntR"
        + b"I00\nI3000000\ntb.",
        "change of a stand-in": b"cnumpy\nndarray\n(N}V__init__\nI1\nstb.",
        "change of a stand-in without state": b"cnumpy.core.multiarray\nscalar\n(N}V__new__\nI1\nstb.",
        "change of a container": b"ccollections\nOrderedDict\n(N}Vx\nI1\nstb.",
    }


@pytest.mark.parametrize("kind", hostile_pickles("x"))
def test_hostile_pickles_are_refused_and_nothing_happens(tmp_path, kind):
    path = tmp_path / "weights.pkl"
    path.write_bytes(hostile_pickles(tmp_path / "executed")[kind])
    before = {name: dict(vars(stand_in)) for name, stand_in in ADMITTED.items()}
    with pytest.raises(CheckpointError, match=r"weights\.pkl.*Nothing in it was executed"):
        read_weight_file(path)
    assert not (tmp_path / "executed").exists()
    assert before == {name: dict(vars(stand_in)) for name, stand_in in ADMITTED.items()}


def test_the_attacks_are_real(tmp_path):
    """Plain pickle would act on them, so that the test above tests something."""
    for kind in ("call", "eval", "call of what a call gives", "system", "old opcode"):
        folder = tmp_path / kind
        pickle.loads(hostile_pickles(folder)[kind])
        assert folder.is_dir()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", ["mkdir", "eval", "getattr"])
def test_hostile_torch_files_are_refused(tmp_path, zipped, function):
    folder = tmp_path / "executed"
    call = {
        "mkdir": _Call(os.mkdir, str(folder)),
        "eval": _Call(eval, f"__import__('os').mkdir({str(folder)!r})"),
        "getattr": _Call(getattr, torch.zeros(1), "shape"),
    }[function]
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}, "x": call}, path, _use_new_zipfile_serialization=zipped)
    for read in (read_weight_file, read_checkpoint):
        with pytest.raises(CheckpointError, match="Nothing in it was executed") as caught:
            read(path)
        name = {"mkdir": "posix.mkdir"}.get(function, function)
        assert name in str(caught.value) and "weights_only" not in str(caught.value)  # no advice to trust it
    assert not folder.exists()


def test_methods_that_a_file_hides_are_not_called(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"ccollections\nOrderedDict\n(tR}(Vget\nI1\nVitems\nI1\nub.")
    assert find_weights(read_weight_file(path)) == ({}, ())
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_pretrained(path)


def test_a_foreign_function_in_a_torch_file_is_not_called(tmp_path):
    """Names outside the blocked modules become empty objects; theirs is no weight."""
    path = tmp_path / "weights.pth"
    victim = tmp_path / "victim"
    victim.mkdir()
    torch.save({"model": {"a": torch.ones(1), "b": _Call(shutil.rmtree, str(victim))}}, path)
    weights, others = find_weights(read_weight_file(path))
    assert victim.is_dir() and set(weights) == {"a"} and others == ("b",)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", pickle.dumps([1, 2])])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pkl"):
        read_weight_file(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_weight_file(tmp_path / "absent.pkl")


def test_an_array_that_never_got_content_is_no_weight(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"}Va\ncnumpy.core.multiarray\n_reconstruct\n(tRs.")
    read = read_weight_file(path)
    assert isinstance(read["a"], PickledArray)
    assert find_weights(read) == ({}, ("a",))
