"""Prints the requirements of the project and of the extras named, one a line, for `pip install -r`.

They are installed before the project itself so that the project can then be built without isolation, as
often as its native sources change, without asking an index each time.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(extras: list[str]) -> None:
    with (Path(__file__).resolve().parent.parent / "pyproject.toml").open("rb") as file:
        config = tomllib.load(file)
    project = config["project"]
    requirements = [*config["build-system"]["requires"], *project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    print("\n".join(dict.fromkeys(requirements)))


if __name__ == "__main__":
    main(sys.argv[1:])
