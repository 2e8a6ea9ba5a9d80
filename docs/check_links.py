"""Follows every link of a folder of HTML pages: `python docs/check_links.py build/docs`, the last step of `make docs`.

A link inside the folder must lead to a file, and to an element with that id where it names one. One that leads outside
must be well formed; it is not fetched.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit


class Page(HTMLParser):
    """The ids that a page defines, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what one element defines and links to."""
        given = dict(attributes)
        self.ids.update(name for name in (given.get("id"), given.get("name")) if name)
        link = given.get("src") if tag in ("img", "script") else given.get("href")
        if link:
            self.links.append(link)


def problem_of(link: SplitResult, page: Path, pages: dict[Path, Page]) -> str | None:
    """What is wrong with a link of a page, or None."""
    if link.scheme or link.netloc:
        well_formed = link.scheme in ("http", "https") and "." in link.netloc and " " not in link.geturl()
        return None if well_formed or link.scheme == "data" else "is not a well-formed address"
    target = (page.parent / unquote(link.path)).resolve() if link.path else page
    if not target.is_file():
        return "leads to no file"
    if link.fragment and target in pages and unquote(link.fragment) not in pages[target].ids:
        return "leads to no such place on its page"
    return None


def main(folder: str) -> int:
    """Print each link that leads nowhere; 1 if there is one."""
    root = Path(folder).resolve()
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    if not pages:
        print(f"check_links: {folder} holds no pages: run make docs")
        return 1
    count, wrong = 0, 0
    for path, page in pages.items():
        for link in page.links:
            count += 1
            problem = problem_of(urlsplit(link), path, pages)
            if problem:
                wrong += 1
                print(f"check_links: {path.relative_to(root)}: {link} {problem}", file=sys.stderr)
    print(f"check_links: {count:,} links on {len(pages)} pages, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/check_links.py FOLDER")
    sys.exit(main(sys.argv[1]))
