"""One file per model: what comes back is what was saved, and damage is noticed."""

import json
import os
import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gsnn
from gsnn import io
from gsnn.models.GSNN import GSNN
from gsnn.train import Scaling, fit, predict


def small_model(**options):
    dtype = options.pop("dtype", torch.float32)
    edges = {
        ("input", "to", "function"): torch.tensor([[0, 1, 1], [0, 1, 2]]),
        ("function", "to", "function"): torch.tensor([[2, 0, 1, 3, 0], [3, 1, 2, 0, 0]]),
        ("function", "to", "output"): torch.tensor([[3, 2, 3], [0, 1, 1]]),
    }
    names = {"input": ["ä b", "in"], "function": ["p", "q", "r", "s"], "output": ["p", "o"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GSNN(edges, names, **{"channels": 3, "layers": 3, **options}).to(dtype)
        for parameter in model.parameters():  # biases and scales would else be 0 and 1
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(model, n=6):
    dtype = next(model.parameters()).dtype
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_layers": False, "norm": "groupbatch", "dropout": 0.2},
        {"norm": "batch", "node_mlp": True, "node_mlp_hidden": 5},
        {"norm": "rms", "nonlin": torch.nn.GELU, "bias": False, "dtype": torch.float64},
        {"norm": "softmax", "residual": False, "norm_first": False, "share_layers": False},
        {"norm": "none", "add_function_self_edges": False, "learn_residual": False},
        {"dtype": torch.bfloat16, "affine": False},
    ],
)
def test_round_trip(path, options):
    model = small_model(**options)
    x = batch(model)
    model.train()(x)  # moves running statistics
    model.eval()
    io.save(model, path)
    state = torch.get_rng_state()
    loaded = io.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config and loaded.graph == model.graph
    assert next(loaded.parameters()).dtype == next(model.parameters()).dtype
    assert not loaded.training
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    assert os.listdir(path.parent) == [path.name]


def test_shared_layers_stay_shared_and_are_stored_once(path):
    model = small_model(layers=7)
    io.save(model, path)
    stored = [name for name in load_file(path) if name.endswith("lin_in.values")]
    assert stored == ["ResBlocks.0.lin_in.values"]
    loaded = io.load(path)
    assert loaded.ResBlocks[0].lin_in.values is loaded.ResBlocks[6].lin_in.values
    assert torch.equal(loaded(batch(model)), model.eval()(batch(model)))


@pytest.mark.parametrize("share_layers", [True, False])
def test_pruned_model(path, share_layers):
    model = small_model(share_layers=share_layers).eval()
    assert model.prune(0.2) > 0
    io.save(model, path)
    loaded = io.load(path)
    assert torch.equal(loaded(batch(model)), model(batch(model)))
    ours: Any
    theirs: Any
    for ours, theirs in zip(loaded.ResBlocks, model.ResBlocks, strict=True):
        assert torch.equal(ours.lin_in.indices, theirs.lin_in.indices)
        assert torch.equal(ours.lin_out.indices, theirs.lin_out.indices)


def test_loaded_model_trains_on(path):
    model = small_model(share_layers=False)
    io.save(model, path)
    loaded = io.load(path)
    x = batch(model, 20).numpy()
    y = np.column_stack([x[:, 0], x[:, 1]])
    a = fit(model, x, y, epochs=2, seed=0, verbose=False)
    b = fit(loaded, x, y, epochs=2, seed=0, verbose=False)
    assert a == b or repr(a) == repr(b)  # val_loss is NaN, which equals nothing


def test_a_fresh_process_predicts_bit_for_bit(path, tmp_path):
    model = small_model(share_layers=False, norm="groupbatch")
    x = batch(model, 30).numpy()
    fit(model, x, 100 * x + 3, standardize=True, epochs=2, seed=0, verbose=False)
    io.save(model, path)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, gsnn; folder = sys.argv[1];"
        "model = gsnn.load(folder + '/model.safetensors');"
        "np.save(folder + '/out.npy', gsnn.predict(model, np.load(folder + '/x.npy')))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), predict(model, x))


def test_scaling_and_extra_travel_along(path):
    model = small_model()
    scaling = Scaling((0.1, 2.0), (1 / 3, 1e-30), (5.0, 6.0), (7.0, 1e300))
    io.save(model, path, scaling=scaling, extra={"note": ["from", 1, None]})
    assert io.load(path).scaling == scaling
    header = io.read_header(path)
    assert header["extra"] == {"note": ["from", 1, None]}
    assert header["node_names"]["input"] == ["ä b", "in"]
    assert set(header["versions"]) == {"gsnn", "torch", "safetensors"}
    io.save(model, path)
    assert io.load(path).scaling is None


def test_file_holds_no_pickle_and_is_plain_safetensors(path):
    io.save(small_model(), path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header["__metadata__"]["gsnn"])["config"]["nonlin"] == "ELU"


@pytest.mark.parametrize("part", ["length", "header", "tensors"])
def test_every_flipped_byte_is_noticed(path, part):
    io.save(small_model(), path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = {
        "length": range(8),
        "header": [8, 20, start - 1, *rng.integers(8, start, 60)],
        "tensors": [start, len(whole) - 1, *rng.integers(start, len(whole), 60)],
    }[part]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(7))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"truncated|damaged|no gsnn header|format version|checksum"):
            io.load(path)
        with pytest.raises(ValueError, match=r"truncated|damaged|no gsnn header|format version|checksum"):
            io.read_header(path)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_file(path, keep):
    io.save(small_model(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"not a whole safetensors file .*truncated"):
        io.load(path)


def rewrite(path, **changes):
    """Change the header and leave everything else, checksum included, as it was."""
    tensors = load_file(path)
    with io.container.safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["gsnn"]) | changes
    save_file(tensors, path, {**metadata, "gsnn": json.dumps(header)})


def test_changed_header_is_noticed(path):
    io.save(small_model(), path)
    rewrite(path, node_names={"input": ["in", "ä b"], "function": ["p", "q", "r", "s"], "output": ["p", "o"]})
    with pytest.raises(ValueError, match=r"damaged or was changed .* checksum does not match"):
        io.load(path)


def test_other_format_version(path):
    io.save(small_model(), path)
    rewrite(path, format_version=99, versions={"gsnn": "7.0"})
    with pytest.raises(
        ValueError, match=r"has format version 99, this gsnn .* reads version 1; it was written by gsnn 7\.0"
    ):
        io.load(path)
    for strange in (None, "1", [1], 1.5):
        rewrite(path, format_version=strange, versions=[1])
        with pytest.raises(ValueError, match=r"has format version .* written by gsnn unknown"):
            io.load(path)


def forge(path, change=lambda header: None, tensors=lambda tensors: None):
    """As somebody who also puts the checksum right, or as a later version that writes other things."""
    state = load_file(path)
    with io.container.safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["gsnn"])
    change(header)
    tensors(state)
    text = json.dumps(header)
    save_file(state, path, {"gsnn": text, "sha256": io.container.checksum(text, state)})


def test_a_forged_file_is_read_where_it_makes_sense(path):
    model = small_model()
    io.save(model, path)
    forge(path, tensors=lambda state: state["ResBlocks.0.lin_in.values"].zero_())
    block: Any = io.load(path).ResBlocks[0]
    assert not block.lin_in.values.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["config"].update(attention=True), "unknown arguments of GSNN: 'attention'"),
        (lambda h: h["config"].update(norm="newest"), "norm must be one of"),
        (lambda h: h["config"].update(channels="3"), "channels must be a positive int, got '3'"),
        (
            lambda h: h["config"].update(nonlin="Newest"),
            "nonlinearity 'Newest', which torch.nn does not have",
        ),
        (lambda h: h["config"].update(nonlin=3), "nonlinearity 3"),
        (lambda h: h.update(config=[1]), "config must be a dict, got list"),
        (lambda h: h.update(config=None), "config must be a dict, got NoneType"),
        (lambda h: h.update(dtype="float3"), "dtype must name a type of torch, got 'float3'"),
        (lambda h: h.update(dtype="load"), "dtype must name a type of torch, got 'load'"),
        (lambda h: h.update(dtype=[]), r"dtype must name a type of torch, got \[\]"),
        (lambda h: h.update(node_names=3), "node_names"),
        (lambda h: h["node_names"].update(function=["p"]), "function"),
        (lambda h: h["edge_index"].update({"input->function": "ab"}), ""),
        (lambda h: h["edge_index"].update({"a->b": [[0], [0]]}), "no 'a->b'"),
        (lambda h: h.update(edge_index=[]), "edge_index must be a dict, got list"),
        (lambda h: h.update(edge_weight={"input->function": [1.0]}), ""),
        (lambda h: h["ties"].update(x="y"), "no 'y'"),
        (lambda h: h.update(ties=None), "ties must be a dict, got NoneType"),
        (lambda h: h.update(scaling={"x_mean": [0.0, 0.0]}), "no 'x_scale'"),
        (lambda h: h.update(scaling=7), ""),
    ]
    + [
        (lambda h, key=key: h.pop(key), f"no '{key}'")
        for key in ("config", "dtype", "node_names", "edge_index", "edge_weight", "ties", "scaling")
    ],
)
def test_headers_that_describe_no_model(path, change, message):
    io.save(small_model(), path)
    forge(path, change)
    with pytest.raises(
        ValueError, match=rf"does not describe a model that this gsnn .* written by .*{message}"
    ):
        io.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("ResBlocks.0.lin_in.values"),
        lambda state: state.update(more=torch.zeros(2)),
        lambda state: state.update({"ResBlocks.0.lin_in.values": torch.zeros(1)}),
    ],
)
def test_tensors_that_fit_no_model(path, change):
    io.save(small_model(), path)
    forge(path, tensors=change)
    with pytest.raises(ValueError, match="does not describe a model .*(lin_in.values|more)"):
        io.load(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"x"', "{}", "{", "[1, 2]"])
def test_headers_that_are_no_json_object(path, text):
    state = {"w": torch.zeros(2)}
    save_file(state, path, {"gsnn": text, "sha256": io.container.checksum(text, state)})
    with pytest.raises(ValueError, match="is damaged: its gsnn header cannot be read"):
        io.load(path)


def test_files_of_others(path, tmp_path):
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"not one that gsnn\.save wrote"):
        io.load(path)
    torch.save(small_model().state_dict(), tmp_path / "pickle")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for content in (
        b"",
        b"hello",
        b"a,b\n1,2\n" * 99,
        b"\xff" * 500,
        (tmp_path / "pickle").read_bytes(),
        (tmp_path / "arrays.npz").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file .* another kind of file"):
            io.load(path)
    with pytest.raises(FileNotFoundError, match="no model file at"):
        io.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no model file at"):
        io.load(tmp_path)


class Own(torch.nn.Module):
    def forward(self, x):
        return x.sin()


class ELU(torch.nn.Module):  # the name of one of torch's, but not that one
    def forward(self, x):
        return x.cos()


@pytest.mark.parametrize("nonlin", [Own, ELU, lambda: torch.nn.ReLU()])
def test_own_nonlinearity_cannot_be_saved(path, nonlin):
    with pytest.raises(ValueError, match=r"nonlin must be an activation class of torch\.nn to be saved"):
        io.save(small_model(nonlin=nonlin), path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["Linear", "Module", "os", "__name__", "MultiheadAttentionX"])
def test_a_file_cannot_name_any_other_class(name):
    with pytest.raises(ValueError, match="nonlinearity"):
        io.model._nonlin_class(name)


def test_only_a_gsnn_and_only_json(path):
    with pytest.raises(TypeError, match="model must be a GSNN, got Linear"):
        io.save(cast(Any, torch.nn.Linear(2, 2)), path)
    with pytest.raises(TypeError, match="extra must be plain JSON data"):
        io.save(small_model(), path, extra={"x": object()})
    assert not path.exists()


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    io.save(small_model(), path)
    old = path.read_bytes()

    def full(name, data):
        name.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("gsnn.io.container._write", full)
    with pytest.raises(OSError, match="disk full"):
        io.save(small_model(channels=4), path)
    assert path.read_bytes() == old and os.listdir(path.parent) == [path.name]


def test_files_get_the_users_usual_permissions(path):
    plain = path.parent / "plain"
    plain.write_text("")
    io.save(small_model(), path)
    assert path.stat().st_mode == plain.stat().st_mode


SAVED = """
import sys
import torch, gsnn
from gsnn.simulate.scenarios import converging_tiers
graph = converging_tiers(width=4).full
torch.manual_seed(0)
model = gsnn.GSNN(graph.edge_index_dict, graph.node_names_dict, channels=2, layers=3)
gsnn.fit(model, torch.randn(20, 4), torch.randn(20, 4), epochs=2, seed=0, standardize=True, verbose=False,
         checkpoint_path=sys.argv[2])
gsnn.save(model, sys.argv[1], extra={"Ä": ["ö\\n", 1]})
"""


def test_the_same_run_writes_the_same_bytes(tmp_path):
    """In other processes, where dictionaries and sets of the libraries have another order."""
    files = []
    for number in range(6):
        names = [str(tmp_path / f"{kind}{number}.safetensors") for kind in ("model", "fit")]
        if number < 2:
            subprocess.run([sys.executable, "-c", SAVED, *names], check=True)
        else:  # a process that writes again
            model = gsnn.load(tmp_path / "model0.safetensors")
            gsnn.save(model, names[0], extra={"Ä": ["ö\n", 1]})
        files.append((tmp_path / f"model{number}.safetensors").read_bytes())
    assert len(set(files)) == 1
    assert len({(tmp_path / f"fit{number}.safetensors").read_bytes() for number in range(2)}) == 1
    length = int.from_bytes(files[0][:8], "little")
    assert length % 8 == 0
    assert list(json.loads(files[0][8 : 8 + length])["__metadata__"]) == ["gsnn", "sha256"]
    assert io.read_header(tmp_path / "model1.safetensors")["extra"] == {"Ä": ["ö\n", 1]}
