"""Do the tutorials still print what is stored in them? Runs each at full size and compares the text.

    python tutorials/check_outputs.py            # all, compare only
    python tutorials/check_outputs.py 01 11      # some
    python tutorials/check_outputs.py --write    # store the outputs and figures of this run

Figures are not compared, the numbers they show are printed beside them. Notebooks run on one thread, so
that sums are taken in the same order everywhere. Needs the extra `tutorials`. Number 18 is left out where
its data are not there (see GSNN_DATA in it): without them it says so and has nothing to compare.
"""

import argparse
import difflib
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
REAL_DATA = Path(os.environ.get("GSNN_DATA", HERE.parents[1] / "shared" / "data")) / "cno_hepatocyte5"


def text_of(notebook: nbformat.NotebookNode) -> list[str]:
    """What the code cells print, one line an entry, each cell under its number."""
    lines = []
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        lines.append(f"--- code cell {number}")
        streamed = ""  # the kernel cuts what a cell prints where it likes
        for output in cell.outputs:
            if output.output_type == "stream":
                streamed += output.text
                continue
            lines += streamed.splitlines()
            streamed = ""
            if output.output_type == "error":
                lines.append(f"{output.ename}: {output.evalue}")
            else:
                lines += output.data.get("text/plain", "").splitlines()
        lines += streamed.splitlines()
    return lines


def executed(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    return client.execute()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="such as 01; all notebooks where none is given")
    parser.add_argument("--write", action="store_true", help="store this run instead of comparing")
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ.pop("GSNN_TUTORIAL_SIZE", None)
    different = 0
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if args.numbers and path.name[:2] not in args.numbers:
            continue
        if path.name.startswith("18") and not REAL_DATA.is_dir():
            print(f"{path.name}: left out, its data are not there")
            continue
        stored = text_of(nbformat.read(path, 4))
        notebook = executed(path)
        if args.write:
            nbformat.write(notebook, path)
        changes = list(difflib.unified_diff(stored, text_of(notebook), "stored", "now", lineterm="", n=1))
        different += bool(changes)
        print("\n".join([f"{path.name}: {'differs' if changes else 'the same'}", *changes]), flush=True)
    return 0 if args.write else different


if __name__ == "__main__":
    sys.exit(main())
