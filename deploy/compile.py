"""Part of building a wheel: the modules on the per-packet path are compiled to C by mypyc.

They stay Python, and run as Python from a checkout (an editable install compiles nothing). Compiled they take
about a third of the time. The list is in pyproject.toml. Compiling happens on a copy, so that nothing is
left in the checkout, which would go on with what was compiled instead of what it reads.

Not among them is core/walk: a compiled generator that is given up does not run its `finally`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SETUP = """
from setuptools import setup
from mypyc.build import mypycify

setup(name="nedge", packages=[], ext_modules=mypycify([{arguments}], opt_level="3"))
"""
MYPY = "[mypy]\nignore_missing_imports = True\nexplicit_package_bases = True\n"


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling calls this by itself."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the extension modules to the wheel beside the sources that they replace."""
        if version == "editable":
            return
        self._temporary = TemporaryDirectory(prefix="nedge-build-")  # it goes with this process
        copy = Path(self._temporary.name)
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(Path(self.root) / "nedge", copy / "nedge", ignore=ignored)
        (copy / "mypy.ini").write_text(MYPY)
        modules = [f"nedge/{name}.py" for name in self.config["modules"]]
        (copy / "setup.py").write_text(SETUP.format(arguments=", ".join(map(repr, modules))))
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mypyc could not compile nedge:\n{done.stdout}\n{done.stderr}")
        for path in copy.rglob("*.so"):
            if "build" not in path.relative_to(copy).parts:
                build_data["force_include"][str(path)] = str(path.relative_to(copy))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
