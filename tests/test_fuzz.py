"""Readers of tables and model files given anything: they read it, or say in a ValueError what is wrong."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_world import World

from gsnn.data.tables import read_table
from gsnn.graph import GraphWarning, HeteroGraph
from gsnn.io import load
from gsnn.models.pathways import read_gmt

patient = [HealthCheck.too_slow]  # of a loaded machine
bounded = settings(max_examples=50, deadline=None, suppress_health_check=patient)
ODD = ["", "nan", "1e999", "-1", "1", '"', '"a""', "#", "\ufeff", "\x00"]
CELLS = st.sampled_from([*ODD, "a", "f0", "input->function"])
TABLES = st.lists(st.lists(CELLS, max_size=4).map("\t".join), max_size=5).map("\n".join).map(str.encode)
BYTES = st.one_of(TABLES, st.binary(max_size=60), TABLES.map(lambda text: b"source\ttarget\tetype\n" + text))
# Byte order marks, and how compressed files begin.
MARKS = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"BZh9", b"PK\3\4", b"\xfd7zXZ\0"])


def read(reader, content, name="x.tsv"):
    """What the reader makes of a file, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return reader(path)
        except (ValueError, ImportError) as error:
            assert str(error), "an error must say something"
            return error


@bounded
@given(MARKS, BYTES)
def test_tables(mark, content):
    found = read(read_table, mark + content)
    assert isinstance(found, Exception) or found.shape[0] >= 1


@bounded
@given(MARKS, BYTES)
@pytest.mark.filterwarnings("ignore::gsnn.graph.GraphWarning")
def test_edges(mark, content):
    assert issubclass(GraphWarning, UserWarning)
    found = read(HeteroGraph.from_tsv, mark + content)
    assert isinstance(found, HeteroGraph | ValueError)


@bounded
@given(BYTES)
def test_gene_sets(content):
    assert isinstance(read(read_gmt, content, "x.gmt"), dict | ValueError)


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory):
    return World(tmp_path_factory.mktemp("model")).model_file.read_bytes()


@bounded
@given(st.data())
def test_model_files(model_bytes, data):
    """Cut anywhere, changed anywhere, or with another header."""
    how = data.draw(st.sampled_from(["cut", "change", "header"]))
    at = data.draw(st.integers(0, len(model_bytes) - 1))
    if how == "cut":
        content = model_bytes[:at]
    elif how == "change":
        changed = bytes([model_bytes[at] ^ data.draw(st.integers(1, 255))])
        content = model_bytes[:at] + changed + model_bytes[at + 1 :]
    else:
        text = st.text(max_size=3)
        header = json.dumps(data.draw(st.dictionaries(text, text, max_size=2))).encode()
        content = len(header).to_bytes(8, "little") + header + model_bytes[-at:]
    assert isinstance(read(load, content, "m.safetensors"), ValueError)
