"""What the documentation points at exists, and what the code reads from the environment is documented."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/*.md")])

#: Set by bertha-run for the library, or by tests: nobody else is meant to.
_INTERNAL = {"BERTHA_NAME", "BERTHA_REQUIRE", "BERTHA_PROBE_FD"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^(    |```).*$", "", page.read_text(encoding="utf-8"), flags=re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.M)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    seen: set[Path] = set()
    todo = [index]
    while todo:
        page = todo.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8"))
        todo += [(page.parent / link).resolve() for link in links]
    assert sorted(p for p in ROOT.glob("docs/**/*.md") if p not in seen) == []


def test_environment_variables_are_documented() -> None:
    used: set[str] = set()
    for source in [*ROOT.glob("native/c[oa]*/*.c"), *ROOT.glob("native/core/*.h")]:
        used |= set(re.findall(r'getenv\("(BERTHA_\w+)"\)', source.read_text(encoding="utf-8")))
    for source in ROOT.glob("bertha_socket/**/*.py"):
        used |= set(
            re.findall(r"environ(?:\.get\(|\[)\s*\"(BERTHA_\w+)\"", source.read_text(encoding="utf-8"))
        )
    page = (ROOT / "docs" / "users" / "environment.md").read_text(encoding="utf-8")
    assert "BERTHA_DISABLE" in used
    assert sorted(name for name in used - _INTERNAL if f"`{name}`" not in page) == []


def test_news_fragments_are_of_known_kinds() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    kinds = {kind["directory"] for kind in config["tool"]["towncrier"]["type"]}
    for fragment in ROOT.glob("changes/*"):
        if fragment.name == "README.md":
            continue
        issue, _, rest = fragment.name.partition(".")
        kind, _, ending = rest.rpartition(".")
        assert re.fullmatch(r"\d+|\+[\w-]+", issue), fragment.name
        assert kind.split(".")[0] in kinds, fragment.name
        assert ending == "md", fragment.name
        assert fragment.read_text(encoding="utf-8").strip(), fragment.name
