"""An installed wheel works: the blocks are those that it should have, and the demo runs.

python .github/check_wheel.py compiled|plain
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from gsnn.kernels import compiled

wanted = sys.argv[1]
if (compiled.level() != "none") != (wanted == "compiled"):
    sys.exit(f"expected {wanted} blocks, found {compiled.level()}")
with tempfile.TemporaryDirectory() as folder:
    subprocess.run(["gsnn", "demo", "--quiet", "--out", f"{folder}/demo"], check=True, cwd=folder)
    if not Path(folder, "demo", "report.html").is_file():
        sys.exit("the demo left no report.html")
print(f"the demo ran with the {compiled.level()} blocks")
