"""The stored notebooks: complete, executed in order, clean, and fit to be read as they are.

That they still run is checked with nbmake at small size; that they still print the same, by
`tutorials/check_outputs.py`.
"""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NAMES = (
    "01_first_model",
    "02_your_own_tables",
    "03_simulating_data",
    "04_from_a_database",
    "05_scikit_learn",
    "11_pathway_regularization",
    "13_post_hoc_edge_inference",
    "14_online_edge_inference",
    "15_complete_and_verify",
    "16_comparing_methods",
    "17_link_prediction",
    "18_real_data",
    "19_why_does_it_predict_this",
    "20_unknown_targets",
)
MOST_BYTES = 400_000
LONGEST_CELL = 60
# Each would differ from run to run or from machine to machine, or is not meant for readers.
UNWANTED = {
    "a path of one machine": r"(?<![\w./])/(tmp|root|work|opt|home|Users|usr|mnt)/",
    "an address in memory": r" at 0x[0-9a-f]{6,}",
    "a progress bar": r"it/s\]|s/it\]|\d+%\|",
    "a warning": r"\.py:\d+: \w*Warning",
    "a bare Axes": r"<Axes: ",
}


@pytest.fixture(params=NAMES)
def notebook(request):
    return json.loads((FOLDER / f"{request.param}.ipynb").read_text())


def code_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed_by(cell):
    for output in cell["outputs"]:
        data = output.get("data", {})
        yield from ("".join(data[kind]) for kind in ("text/plain", "text/html") if kind in data)
        yield "".join(output.get("text", ""))


def test_the_list_is_complete():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


def test_the_index_names_all():
    index = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\w+)\.ipynb\)", index) == list(NAMES)


def test_stored_as_executed_once_from_the_top(notebook):
    cells = code_of(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds, "a tutorial shows at least one figure"
    assert any(text for cell in cells for text in printed_by(cell))


def test_no_errors_and_nothing_on_stderr(notebook):
    for cell in code_of(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output
            assert output.get("name") != "stderr", output


@pytest.mark.parametrize("what", UNWANTED)
def test_outputs_have_no(notebook, what):
    for cell in code_of(notebook):
        for text in [*printed_by(cell), "".join(cell["source"])]:
            found = re.search(UNWANTED[what], text)
            assert not found, f"{what}: {text[max(0, found.start() - 80) : found.end() + 80]!r}"


def test_the_size_comes_from_the_environment_and_is_full(notebook):
    first, *rest = ("".join(cell["source"]) for cell in code_of(notebook))
    assert 'small = os.environ.get("GSNN_TUTORIAL_SIZE") == "small"' in first
    assert not any("GSNN_TUTORIAL_SIZE" in source for source in rest)
    uses = re.findall(r"\bsmall\b", "\n".join([first, *rest]))
    assert len(uses) >= 3, "set, but nothing is made smaller"


def test_kernel_and_metadata_are_of_no_machine(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any("execution" in cell["metadata"] for cell in notebook["cells"]), "times of execution"


def test_opens_with_its_title(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \d\d ", "".join(first["source"]))


def test_cells_are_short(notebook):
    longest = max(len(cell["source"]) for cell in code_of(notebook))
    assert longest <= LONGEST_CELL


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= MOST_BYTES
