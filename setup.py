"""The compiled residual blocks and the tag of the wheel; everything else stands in pyproject.toml.

The blocks are called through ctypes and need none of Python's headers, so one build serves every Python of a
platform: the library's name and the wheel's tag leave the Python version out.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "gsnn/kernels/csrc"
WINDOWS = sys.platform == "win32"
blocks = Extension(
    "gsnn.kernels.csrc._blocks",
    sources=[f"{FOLDER}/blocks.c"],
    depends=[f"{FOLDER}/{name}.h" for name in ("blocks", "level", "turned")],
    extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
    libraries=[] if WINDOWS else ["m"],
    # Without a compiler the package installs all the same and uses PyTorch's operations.
    optional=True,
)


class BuildLibrary(build_ext):
    """A library for ctypes: no version of Python in its name, no function that Python would look for."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}{'.dll' if WINDOWS else '.so'}"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """``py3-none-PLATFORM`` with the library inside, ``py3-none-any`` where it could not be built."""

    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.bdist_dir or ".").glob(f"{FOLDER}/_blocks.*"))
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(ext_modules=[blocks], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel})
