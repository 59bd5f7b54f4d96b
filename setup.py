"""The compiled residual blocks; everything else stands in pyproject.toml."""

import sys

from setuptools import Extension, setup

folder = "gsnn/kernels/csrc"
blocks = Extension(
    "gsnn.kernels.csrc._blocks",
    sources=[f"{folder}/blocks.c"],
    depends=[f"{folder}/{name}.h" for name in ("blocks", "level", "turned")],
    extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
    libraries=[] if sys.platform == "win32" else ["m"],
    # Without a compiler the package installs all the same and uses PyTorch's operations.
    optional=True,
)
setup(ext_modules=[blocks])
