"""The documentation's site: it builds without a warning, and no link in it leads nowhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """A page's links, and the places in it that a link may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.places = list[str](), set[str]()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id" and value:
                self.places.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_no_link_is_dead(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert site / "docs" / "index.html" in pages
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, place = urldefrag(unquote(link))
            file = (path.parent / target.partition("?")[0]).resolve() if target else path
            if file.is_dir():
                file /= "index.html"
            if not file.is_file() or (place and file in pages and place not in pages[file].places):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


@pytest.mark.slow
def test_every_guide_is_in_the_contents(site: Path) -> None:
    linked = {urldefrag(link)[0] for link in Page(site / "docs" / "index.html").links}
    guides = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} - {"index.html"}
    assert guides <= linked | {"#"}
