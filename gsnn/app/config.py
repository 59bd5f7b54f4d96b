"""``--config FILE.toml``: options out of a file, and the file that repeats a command beside its result.

As in :mod:`gsnn.app.cli`, only what typer needs is imported here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import gsnn
from gsnn._text import some_names
from gsnn.app.user_errors import user_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Options that say how a command talks and what it may replace, not what it finds.
_NOT_KEPT = {"config", "json", "quiet", "force", "fresh", "help"}


class Command(TyperCommand):
    """A command whose options can come from a TOML file, and that leaves such a file beside its result.

    The lines ``Example: ...`` of its docstring stand at the end of its help, each on a line of its own on
    terminals of any width, so that it can be copied.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        text = self.help or ""
        self.examples = re.findall(r"(?m)^Example: (.+)$", text)
        self.help = re.sub(r"(?m)^Example: .+\n?", "", text).strip()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, and the examples after it."""
        super().format_help(ctx, formatter)
        many = "s" * (len(self.examples) > 1)
        formatter.write(f"\nExample{many}:\n\n" + "".join(f"  {line}\n" for line in self.examples) + "\n")

    def invoke(self, ctx: Any) -> Any:
        """Run it, then write what repeats it."""
        found = super().invoke(ctx)
        out = ctx.params.get("out")
        if out is not None:
            with user_errors():
                _write(self, ctx.params, Path(out))
        return found


def beside(out: Path) -> Path:
    """Where the file that repeats a command stands: in the folder of its results, or beside its one file."""
    return out / "config.toml" if out.is_dir() else out.with_name(f"{out.name}.toml")


def _write(command: Any, values: Mapping[str, Any], out: Path) -> None:
    from gsnn.io.container import replacing

    names = {param.name: _option(param) for param in command.params}
    lines = [
        f"# Written by gsnn {gsnn.__version__}. Paths are relative to the folder that the command ran in;",
        f"# gsnn {command.name} --config {beside(out)} --out ELSEWHERE repeats it there.",
        f"[{command.name}]",
    ]
    for name, value in values.items():
        if value is not None and names.get(name, "config") not in _NOT_KEPT:
            lines.append(f"{names[name]} = {_toml(value)}")
    with replacing(beside(out)) as tmp:
        tmp.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _option(param: Any) -> str:
    """The name of an option without its dashes."""
    return str(max(param.opts, key=len)).lstrip("-")


def _toml(value: Any) -> str:
    """A TOML value; strings as JSON writes them, but for the one character that TOML wants escaped too."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take what the command line does not say from the file's table of the command's name."""
    if path is None or ctx.resilient_parsing:
        return path
    with user_errors():
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"--config: no file {path}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
            raise ValueError(f"--config: {path} is no TOML file: {err}") from None
        command = ctx.command.name
        given = found.get(str(command))
        if not isinstance(given, dict):
            raise ValueError(
                f"--config: {path} must have a table [{command}] with options of gsnn {command}, got "
                f"{some_names(found) or 'an empty file'}"
            )
        known = {_option(param): param for param in ctx.command.params}
        for name in ("config", "help"):
            known.pop(name, None)
        defaults = {}
        for key, value in given.items():
            param = known.get(key.replace("_", "-"))
            if param is None:
                raise ValueError(
                    f"--config: [{command}] in {path} must have options among {', '.join(known)}, got {key!r}"
                )
            flag = bool(getattr(param, "is_flag", False))
            if isinstance(value, bool) != flag or not isinstance(value, (str, int, float)):
                want = "true or false" if flag else "a string or a number"
                raise ValueError(f"--config: {key} in {path} must be {want}, got {value!r}")
            defaults[str(param.name)] = value
        ctx.default_map = defaults
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=_read,
        help="Options from a file, such as config.toml of an earlier result; the command line goes first.",
    ),
]
