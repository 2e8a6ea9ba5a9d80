"""README.md and docs/: every link, command, option and make target that they name exists."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import engine
import native

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Options of mpirun, horovodrun, sbatch and srun that the texts name by themselves, without the program before them.
FOREIGN = {"--bind-to", "--gloo", "--host", "--hostfile", "--hosts", "--machinefile", "--network-interfaces"}
FOREIGN |= {"--constraint", "--export", "--mpi", "--oversubscribe", "--requeue", "--signal"}
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)
PATH = re.compile(r"(?<![\w/.-])(?:engine|native|mr|tests|examples|docs|benchmarks|\.setup)/[\w./-]+")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def without_code(text: str) -> str:
    """Prose alone: links inside code are none."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


def blocks_of(text: str) -> list[str]:
    """The code of a page, one shell line an entry: fenced blocks, indented ones, and what stands in backticks."""
    fenced = [block.split("\n", 1)[1].rsplit("\n", 1)[0] for block in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    indented = INDENTED.findall(rest)
    inline = re.findall(r"`([^`]+)`", INDENTED.sub("\n", rest))
    lines = [line for block in (*fenced, *indented) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [line.strip() for line in lines if line.strip()] + [re.sub(r"\s+", " ", code) for code in inline]


def words_of(line: str) -> list[str]:
    """The words of a shell line without its comment."""
    line = re.sub(r"(^|\s)#.*", "", line)
    try:
        return shlex.split(line)
    except ValueError:  # an apostrophe of prose
        return line.split()


def commands_of(line: str) -> list[tuple[str, list[str]]]:
    """(module, its options) of every `python -m MODULE ...` in a shell line."""
    found: list[tuple[str, list[str]]] = []
    words = words_of(line)
    collecting = False
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m" and re.fullmatch(r"(engine|mr|benchmarks|tests)(\.\w+)*", word):
            found.append((word, []))
            collecting = True
        elif word in ("--", "|", "&&", "||", ";", "&", ":", "-->") or word.endswith(";"):
            collecting = False
        elif collecting and re.match(r"--[a-z]", word):
            found[-1][1].append(word.partition("=")[0].rstrip(",.;)"))
    return found


def named_commands() -> dict[str, dict[str, str]]:
    """For each module: the options that the texts give it, and where."""
    named: dict[str, dict[str, str]] = {}
    for page in PAGES:
        for line in blocks_of(page.read_text()):
            for module, options in commands_of(line):
                named.setdefault(module, {}).update(dict.fromkeys(options, f"{page.name}: {line}"))
    return named


@cache
def helps() -> dict[str, str]:
    """What --help says, for each module that has options in the texts and for all of engine's commands."""
    modules = {module for module, options in named_commands().items() if options} - {"tests.fuzz"}
    modules |= {"mr", "engine.train", "engine.evaluate", "engine.predict", "engine.simulate", "engine.cost"}
    shown: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "command_help.py"))["help_of"](sorted(modules))
    return shown


def options_in(text: str) -> set[str]:
    """The options that a help text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@cache
def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rules."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in anchors:
            number += 1
        anchors.add(name)
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(without_code(page.read_text())):
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme in ("https", "http"), link
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), link
            continue
        target = (page.parent / address.path).resolve() if address.path else page
        assert target.exists(), f"{page.name}: {link} leads to no file"
        assert ROOT in target.parents, f"{page.name}: {link} leads out of the project"
        if address.fragment:
            assert address.fragment in anchors_of(target), f"{page.name}: {link} leads to no heading"


def test_every_command_and_option_exists():
    named = named_commands()
    assert len(named) > 10, "the texts name more commands than that: they are no longer found"
    for module, options in named.items():
        if importlib.util.find_spec(module) is None:
            raise AssertionError(f"{module}: there is no such module ({list(options.values())})")
        for option, place in options.items():
            # A sweep takes the options of the trainings too.
            takes = [module, "engine.train"] if module == "engine.sweep" else [module]
            if module in helps():
                known = set().union(*(options_in(helps()[name]) for name in takes))
                assert option in known, f"{place}: {module} has no {option}"


def test_every_option_named_alone_exists():
    known = set().union(*(options_in(text) for text in helps().values())) | FOREIGN
    for page in PAGES:
        for code in blocks_of(page.read_text()):
            if re.fullmatch(r"--[a-z].*", code):
                assert code.split()[0].partition("=")[0] in known, f"{page.name}: no command has {code}"


def test_every_path_of_the_project_exists():
    count = 0
    for page in PAGES:
        for code in blocks_of(page.read_text()):
            for path in re.findall(
                r"(?<![\w/.-])(?:engine|native|mr|tests|examples|docs|benchmarks|\.setup)/[\w./-]+", code
            ):
                count += 1
                assert (ROOT / path.rstrip("./")).exists(), f"{page.name}: there is no {path}"
    assert count > 50


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*)(?=[^:=\n]*:(?!=))", makefile, re.MULTILINE))
    assert {"setup", "demo", "docs"} <= targets
    count = 0
    for page in PAGES:
        for line in blocks_of(page.read_text()):
            words = words_of(line)
            if "make" not in words:
                continue
            for word in words[words.index("make") + 1 :]:
                if "=" in word or word.startswith("-"):
                    continue
                if not re.fullmatch(r"[a-z][a-z0-9-]*", word):
                    break
                count += 1
                target = re.sub(r"^mpi-\d+$", "mpi", word)
                assert target in targets, f"{page.name}: {line}: there is no make {word}"
    assert count > 10


def test_every_page_stands_in_the_index():
    pages = set(re.findall(r"^(?:.*<)?([\w/-]+)>?$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE))
    for page in PAGES[1:]:
        assert page.stem in pages | {"index"}, f"name {page.stem} in docs/index.md, where readers look for it"


def test_the_reference_names_everything_that_is_public():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst"))
    for module in (engine, native):
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in pages, f"docs/api has no {module.__name__}.{name}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`python -m engine.train --nonsense 3`", [("engine.train", ["--nonsense"])]),
        ("    python -m mr a \\\n        --out=D  # --no\n", [("mr", ["--out"])]),
        (
            "```bash\npython -m engine.supervise --wait 3 -- mpirun --x python -m engine.train --data D\n```\n",
            [("engine.supervise", ["--wait"]), ("engine.train", ["--data"])],
        ),
    ],
)
def test_commands_are_found_in_code(text, found):
    assert [command for line in blocks_of(text) for command in commands_of(line)] == found
