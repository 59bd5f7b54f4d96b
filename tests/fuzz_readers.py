"""Readers of tables, graphs, gene sets and model files under atheris, guided by the lines that they reach.

    python tests/fuzz_readers.py -max_total_time=60        # `make fuzz`
    python tests/fuzz_readers.py crash-...                  # what a run found and wrote there, again

A reader gives what it reads, or a ValueError (or an ImportError for a compression without its extra) that
says something. Anything else ends the run and leaves the bytes in a file.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gsnn"]):
    from gsnn.data.tables import read_table
    from gsnn.graph import HeteroGraph
    from gsnn.io import load
    from gsnn.models.pathways import read_gmt

from public_world import World
from test_fuzz import read

#: The first byte of an input chooses the reader and the name of the file.
READERS = (
    (read_table, "x.tsv"),
    (read_table, "x.csv"),
    (HeteroGraph.from_tsv, "x.tsv"),
    (read_gmt, "x.gmt"),
    (load, "m.safetensors"),
)


def one_input(data: bytes) -> None:
    """Give the file to its reader."""
    if data:
        reader, name = READERS[data[0] % len(READERS)]
        read(reader, data[1:], name)


def seeds(folder: Path) -> None:
    """One whole file for each reader, to begin with."""
    world = World(folder)
    table, edges = world.files["x"].read_bytes(), world.files["edges"].read_bytes()
    wholes = (table, table.replace(b"\t", b","), edges, b"one\t-\tf0\tf1\n", world.model_file.read_bytes())
    for place, whole in enumerate(wholes):
        (folder / f"seed{place}").write_bytes(bytes([place]) + whole)


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    warnings.simplefilter("ignore")  # what a graph lacks
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        seeds(corpus)
        atheris.Setup([*sys.argv, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
