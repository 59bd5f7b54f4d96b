"""Every command's help has an example, and those of the commands that train run as printed, but shorter."""

import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from gsnn.app import demo
from gsnn.app.cli import app
from gsnn.app.demo import write_tables
from gsnn.simulate.scenarios import converging_tiers

QUICK = ("--channels", "2", "--epochs", "1", "--quiet")
# The others are run where they are tested.
SHORTER = {
    "demo": ("--quiet",),
    "run": (*QUICK, "--folds", "0", "--complete", "0"),
    "complete": (*QUICK, "--stages", "1", "--budget", "2"),
    "verify": ("--folds", "2"),
}
COMMANDS = {command.callback.__name__: command.callback for command in app.registered_commands}


def example(name):
    found = re.findall(r"Example: gsnn (.*)", COMMANDS[name].__doc__)
    assert len(found) == 1, f"gsnn {name} needs one example"
    return shlex.split(found[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_of_itself_in_its_help(name):
    assert example(name)[0] == name
    assert "Example" in CliRunner().invoke(app, [name, "--help"]).output


def test_the_commands_that_train_run_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DEMO_OPTIONS", demo.Options(folds=0, channels=2, epochs=1, complete=0))
    scenario = converging_tiers(5)
    for name, more in SHORTER.items():
        if name == "run":  # the demo's tables are larger than a test needs
            shutil.rmtree("demo_out")
            write_tables(scenario, tmp_path / "demo_out" / "data", n=40, seed=0)
            write_tables(scenario, tmp_path / "new", n=40, seed=1)
            for table in ("X", "Y"):
                shutil.copy(tmp_path / "new" / f"{table}.tsv", tmp_path / f"new_{table}.tsv")
        done = CliRunner().invoke(app, [*example(name), *more])
        assert done.exit_code == 0, f"{name}: {done.output}"
    for made in ("results/report.html", "completed/model.safetensors", "verified.csv"):
        assert (tmp_path / made).exists()
