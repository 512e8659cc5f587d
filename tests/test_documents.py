"""Links from one page of the documentation to another lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in _LINK.findall(_FENCE.sub("", page.read_text())):
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {path}"
        assert not anchor or anchor in anchors(place), f"{page.name} links to {path}#{anchor}"


def test_there_are_links_and_a_wrong_one_would_be_noticed() -> None:
    found = [link for page in PAGES for link in _LINK.findall(_FENCE.sub("", page.read_text()))]
    assert ("quantization.md", "reduced-precision") in found
    assert "reduced-precision" in anchors(ROOT / "docs" / "quantization.md")
    assert "reduced-precisions" not in anchors(ROOT / "docs" / "quantization.md")
