"""Print constraints that hold every requirement of pyproject.toml to the lowest version that it admits."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *(each for extra in extras.values() for each in extra)]:
    if lowest := re.match(r"([\w-]+)(?:\[\w+(?:,\w+)*\])?>=([\w.]+)", requirement):
        print(f"{lowest[1]}=={lowest[2]}")
