"""Documents: links lead somewhere, every page is in the index, and the front page stays short."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
FRONT_PAGE_BYTES = 6000
TEMPLATE = "benchmarks/dose_page.md"
"""`benchmarks/dose_calibration.py` fills it in and writes docs/dose.md: its links are relative to docs/."""
FOLDERS = ("docs", "benchmarks", "systemd", "weights", "tests", "daemon", "training", "engine_build")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
)


def prose(text: str) -> str:
    """Without code, in which brackets are no links and # begins no heading."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings: small letters, hyphens for spaces, no other signs."""
    fenced = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#{1,6} (.+)$", fenced, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere inside the repository; those to other sites are not followed."""
    found = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / ("docs/dose.md" if name == TEMPLATE else name)
    assert broken(page, (ROOT / name).read_text("utf-8")) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    page = ROOT / "docs" / "README.md"
    text = (
        "[a](missing.md) [b](README.md#no-such-heading) [c](README.md#using) [d](../../outside.md) [e](https://a.org)"
    )
    assert broken(page, text) == ["missing.md", "README.md#no-such-heading", "../../outside.md"]


def test_the_index_links_every_page() -> None:
    docs = ROOT / "docs"
    linked = {(docs / link.partition("#")[0]).resolve() for link in links((docs / "README.md").read_text("utf-8"))}
    assert {path for path in docs.rglob("*.md") if path.name != "README.md"} <= linked
    assert docs / "README.md" in {(ROOT / link).resolve() for link in links((ROOT / "README.md").read_text("utf-8"))}


def test_the_front_page_is_short_and_has_the_commands() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= FRONT_PAGE_BYTES
    for command in (b"make demo", b"make run", b"make test"):
        assert command in text


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_the_architecture_names_every_layer_of_the_imports() -> None:
    layers = re.findall(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names = {name for layer in layers for name in re.findall(r"\w+", layer)}
    assert {name for name in names if not re.search(rf"\b{name}\b", ARCHITECTURE)} == set()


def test_the_places_that_the_architecture_names_exist() -> None:
    places = re.findall(r"`([\w/]+\.\w+):(\w+)`", ARCHITECTURE)
    assert len(places) > 10
    for file, name in places:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text("utf-8")), f"{file} has no {name}"
