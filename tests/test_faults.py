"""What goes wrong around a job: kills at each step on disk, full disks, folders that cannot be written to."""

import errno
import os
import signal
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kill_jobs import Jobs, in_child, result_of
from typer.testing import CliRunner

from gsnn._delimited import read_delimited
from gsnn.app import report
from gsnn.app.cli import app
from gsnn.app.run_folder import alone
from gsnn.app.settings import Options
from gsnn.app.workflow import run
from gsnn.data.tables import load_data
from gsnn.io import container, load, save
from gsnn.train import fit

QUICK = Options(folds=2, channels=2, epochs=2, batch_size=16)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    found = Jobs(tmp_path_factory.mktemp("jobs"))
    found.prepare()
    return found


@pytest.fixture(scope="module")
def data(jobs):
    p = jobs.paths
    return load_data(p["edges"], p["x"], p["y"], nodes=p["nodes"])


class Quick:
    """`gsnn complete` whose search takes a moment."""

    def __init__(self, jobs):
        self.jobs = jobs

    def __call__(self, out):
        words = ["--budget", 2, "--stages", 2, "--channels", 2, "--epochs", 1, "--quiet"]
        self.jobs._command("complete", "--out", out, *words)


@pytest.fixture
def quick_search(monkeypatch):
    from gsnn.optim.staging import CompletionSettings

    monkeypatch.setattr(CompletionSettings.__dataclass_fields__["base_steps"], "default", 4)
    init = CompletionSettings.__init__

    def short(self, *args, **kwargs):
        init(self, *args, **{"base_steps": 4, "stage_steps": 4, **kwargs})

    monkeypatch.setattr(CompletionSettings, "__init__", short)


def test_complete_goes_on_from_a_kill_at_each_step_on_disk(jobs, quick_search, tmp_path):
    job = Quick(jobs)
    (tmp_path / "whole").mkdir()
    status, steps = in_child(job, tmp_path / "whole" / "out")
    expected = result_of(tmp_path / "whole" / "out")
    assert status == 0 and steps > 15
    assert set(expected) == {"edges.csv", "graph_completed.tsv", "model.safetensors"}
    for step in (3, steps - 10, steps - 7, steps - 4, steps - 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        assert in_child(job, folder / "out", step=step)[0] == -signal.SIGKILL
        made = [(folder / "out" / name).exists() for name in ("model.safetensors", ".checkpoint")]
        done = made == [True, False]  # only config.toml was not written yet
        assert in_child(job, folder / "out")[0] == (2 if done else 0), step
        assert result_of(folder / "out") == expected, step
    assert done


def test_fit_goes_on_from_a_kill_at_each_step_of_a_save(jobs, tmp_path):
    (tmp_path / "whole").mkdir()
    _, steps = in_child(jobs.fit, tmp_path / "whole" / "out")
    expected = result_of(tmp_path / "whole" / "out")
    for step in (4, 7, steps - 3):
        folder = tmp_path / str(step)
        folder.mkdir()
        assert in_child(jobs.fit, folder / "out", step=step)[0] == -signal.SIGKILL
        assert in_child(jobs.fit, folder / "out")[0] == 0
        assert result_of(folder / "out") == expected, step


def test_pieces_without_a_record_are_not_taken_up(data, tmp_path, monkeypatch):
    """rmtree deletes files one by one: killed in between, it may leave the pieces of any run."""
    run(data, tmp_path / "whole", QUICK, verbose=False)
    from gsnn.app import workflow

    def fails(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "rank_edges", fails)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out", replace(QUICK, lr=0.5), verbose=False)
    left = tmp_path / "out" / ".checkpoint"
    assert (left / "fold1.safetensors").exists()
    (left / "run.json").unlink()
    run(data, tmp_path / "out", QUICK, verbose=False)
    assert result_of(tmp_path / "out") == result_of(tmp_path / "whole")


def test_a_finished_run_is_not_lost_to_another(data, tmp_path):
    run(data, tmp_path, QUICK, verbose=False)
    before = result_of(tmp_path)
    (tmp_path / ".checkpoint").mkdir()  # what is left of it
    with pytest.raises(FileExistsError, match="holds another run, which is finished; choose another folder"):
        run(data, tmp_path, replace(QUICK, seed=3), verbose=False)
    assert result_of(tmp_path) == before


def test_two_runs_in_one_folder(data, jobs, tmp_path):
    """The second one is refused, before it does anything; the first one is not disturbed."""
    out = tmp_path / "out"
    refused = []

    def told(metrics):  # in the middle of the first run
        status, _ = in_child(lambda folder: run(data, folder, QUICK, verbose=False), out)
        refused.append(status)

    run(data, out, QUICK, verbose=False, told=told)
    assert refused == [1]
    assert {"metrics.json", "edges.csv", "report.html"} <= set(result_of(out))
    assert not (out / ".checkpoint").exists()


def test_two_runs_in_one_folder_say_so(data, tmp_path):
    with alone(tmp_path), pytest.raises(BlockingIOError, match="another process is at work in"):
        run(data, tmp_path, QUICK, verbose=False)
    assert not (tmp_path / ".checkpoint").exists()


@pytest.mark.parametrize("command", ["complete", "simulate", "build"])
def test_two_commands_in_one_folder_would_mix_their_files(jobs, tmp_path, command):
    p, out = jobs.paths, tmp_path / "out"
    ends = {"inputs": "a", "outputs": "b"}
    for end, name in ends.items():
        (tmp_path / f"{end}.tsv").write_text(f"name\n{name}\n")
    (tmp_path / "pairs.tsv").write_text("source\ttarget\na\tb\n")
    words = {
        "complete": ["--edges", p["edges"], "--x", p["x"], "--y", p["y"], "--quiet"],
        "simulate": ["--edges", p["edges"], "--nodes", p["nodes"]],
        "build": ["--interactions", tmp_path / "pairs.tsv"],
    }
    words["build"] += [word for end in ends for word in (f"--{end}", tmp_path / f"{end}.tsv")]
    out.mkdir()
    with alone(out):
        done = CliRunner().invoke(app, [command, *map(str, words[command]), "--out", str(out)])
    assert done.exit_code == 2 and not any(out.iterdir())
    assert done.stderr.splitlines()[-1].startswith(f"error: another process is at work in {out}")


class FullDisk:
    """Writes fail when so many bytes are written; removing and renaming still work."""

    def __init__(self, monkeypatch, after):
        self.left, self.open = after, Path.open
        monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: self.opened(path, *args, **kwargs))

    def opened(self, path, mode="r", *args, **kwargs):
        file = self.open(path, mode, *args, **kwargs)
        if "w" in mode:
            write = file.write
            disk = self

            class Limited:
                def write(self, data):
                    disk.left -= len(data)
                    if disk.left < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(data)

                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

            return Limited()
        return file


@pytest.mark.parametrize("after", [0, 500, 3000])
def test_full_disk_leaves_the_old_file_and_no_other(jobs, tmp_path, monkeypatch, after):
    model = load(jobs.model)
    path = tmp_path / "m.safetensors"
    save(model, path)
    before = path.read_bytes()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with monkeypatch.context() as patch:
        FullDisk(patch, after)
        with pytest.raises(OSError, match="No space left on device"):
            save(model, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_full_disk_in_the_middle_of_a_fit_and_then_room_again(jobs, tmp_path, monkeypatch):
    def trained(checkpoint):
        model = jobs._new_model()
        history = fit(model, jobs.x, jobs.y, epochs=6, seed=1, verbose=False, checkpoint_path=checkpoint)
        return model.state_dict(), history

    whole, history = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        FullDisk(patch, 3 * (tmp_path / "whole").stat().st_size)
        with pytest.raises(OSError, match="No space left on device"):
            trained(tmp_path / "fit")
    found, found_history = trained(tmp_path / "fit")
    assert found_history.train_loss == history.train_loss
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "fit"}


class Cut:
    """A job whose files may not be longer than so many bytes: for each of them the disk is full then."""

    def __init__(self, job, limit):
        self.job, self.limit = job, limit

    def __call__(self, out):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        self.job(out)


@pytest.mark.skipif(find_spec("resource") is None, reason="the system limits no files")
@pytest.mark.parametrize("name", ["fit", "run", "complete"])
def test_a_job_goes_on_when_there_is_room_for_its_files(data, jobs, quick_search, tmp_path, name):
    """Whatever writes them: the library itself, pandas, safetensors or matplotlib."""
    quick_run = lambda out: run(data, out, replace(QUICK, complete=0), verbose=False)  # noqa: E731
    job = {"fit": jobs.fit, "run": quick_run, "complete": Quick(jobs)}[name]
    (tmp_path / "whole").mkdir()
    assert in_child(job, tmp_path / "whole" / "out")[0] == 0
    expected = result_of(tmp_path / "whole" / "out")
    largest = max(path.stat().st_size for path in (tmp_path / "whole" / "out").rglob("*.*"))
    for limit in (largest - 1,) if name == "run" else (10, largest - 1):
        folder = tmp_path / str(limit)
        folder.mkdir()
        assert in_child(Cut(job, limit), folder / "out")[0] > 0
        assert not (folder / "out" / "metrics.json").exists()  # the last file of a run
        assert in_child(job, folder / "out")[0] == 0, limit
        assert result_of(folder / "out") == expected, limit


def no_permission(*args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a folder")


def test_a_folder_that_cannot_be_written_to_ends_with_one_line(jobs, tmp_path, monkeypatch):
    words = ["predict", "--model", jobs.model, "--x", jobs.paths["x"], "--out", tmp_path / "yhat.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(container.tempfile, "mkstemp", no_permission)
        done = CliRunner().invoke(app, list(map(str, words)))
        with pytest.raises(PermissionError):
            save(load(jobs.model), tmp_path / "m")
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr == "error: [Errno 13] Permission denied: 'a folder'\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_write_its_files_keeps_what_it_has(data, jobs, tmp_path, monkeypatch):
    run(data, tmp_path / "whole", QUICK, verbose=False)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(report.os, "replace", no_permission)
        with pytest.raises(PermissionError):
            run(data, out, QUICK, verbose=False)
    run(data, out, QUICK, verbose=False)
    assert result_of(out) == result_of(tmp_path / "whole")


FORMULAS = ["=cmd|'/C calc'!A0", "@SUM(1)", "+1", "-2"]
MISSING = ["NA", "nan", "null"]
NAMES = [*FORMULAS, *MISSING, "a,b", 'quo"te', "../../out", "<b>f</b>", "True", "0"]


def odd_tables(folder):
    """A graph whose function nodes have the oddest names, as files; edges from each to the next."""
    pairs = [("i0", NAMES[0]), ("i1", NAMES[3]), *pairwise(NAMES), (NAMES[-1], "y0")]
    kinds = ["input->function"] * 2 + ["function->function"] * (len(NAMES) - 1) + ["function->output"]
    table = pd.DataFrame(pairs, columns=["source", "target"]).assign(etype=kinds)
    table.to_csv(folder / "edges.tsv", sep="\t", index=False)
    numbers = np.random.default_rng(0)
    rows = pd.Index([f"s{k}" for k in range(30)], name="sample")
    for name, columns in (("X", ["i0", "i1"]), ("Y", ["y0"])):
        values = numbers.normal(size=(30, len(columns)))
        pd.DataFrame(values, rows, columns).to_csv(folder / f"{name}.tsv", sep="\t")
    return ["--edges", folder / "edges.tsv", "--x", folder / "X.tsv", "--y", folder / "Y.tsv"]


def typed(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done


def table_of(path):
    found = read_delimited(path)
    return pd.DataFrame(found.rows, columns=found.header)


def test_odd_names_go_through_files_unchanged_and_stay_in_the_folder(quick_search, tmp_path):
    """Formulas, words that pandas reads as missing, paths and HTML: names are text, from end to end."""
    inside, out = tmp_path / "inside", tmp_path / "inside" / "out"
    inside.mkdir()
    tables = odd_tables(inside)
    typed("run", *tables, "--out", out, "--folds", 2, "--channels", 2, "--epochs", 1, "--quiet")
    typed("complete", *tables, "--out", inside / "c", "--budget", 3, "--epochs", 1, "--quiet")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    ranked = table_of(out / "ranking.csv")
    assert set(ranked["source"]) | set(ranked["target"]) == set(NAMES)
    chosen = table_of(inside / "c" / "edges.csv")
    assert {*chosen["src_func"], *chosen["dst_func"]} <= set(NAMES)
    model = load(inside / "c" / "model.safetensors")
    assert set(model.graph.node_names_dict["function"]) == set(NAMES)
    typed("check", tables[0], inside / "c" / "graph_completed.tsv", *tables[2:])
    ranked = ranked[ranked["source"].isin(MISSING)].head(2)
    ranked.to_csv(inside / "two.csv", index=False)
    verified = ["--model", out / "model.safetensors", "--candidates", inside / "two.csv"]
    typed("verify", *tables, *verified, "--out", inside / "v.csv")
    tested = table_of(inside / "v.csv")
    assert set(zip(tested["src_func"], tested["dst_func"], strict=True)) == set(
        zip(ranked["source"], ranked["target"], strict=True)
    )
    page = (out / "report.html").read_text()
    assert "<b>f</b>" not in page  # tests/test_report_html.py looks at each place that shows a name
