"""What the documentation says of URLs is what the program takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodepass.config import parse_url
from nodepass.errors import ConfigError
from nodepass.parameters import PARAMETERS

ROOT = Path(__file__).parents[2]

#: Everything that a user reads, program output included.
FILES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for path in ROOT.glob("doc/**/*") if path.suffix in (".rst", ".md")),
    *sorted(ROOT.glob("examples/*")),
    *sorted(path for path in ROOT.glob("packaging/*") if path.is_file()),
    ROOT / "Dockerfile",
    *(ROOT / "nodepass" / name for name in ("__init__.py", "cli.py", "help.py", "service.py")),
]

URL = re.compile(r"""(?<![\w|+])(?:server|client|master)://(?:[^][\s"'`<>()]|\[[0-9A-Fa-f:.]*])+""")

#: Not URLs but their form, and pieces of one.
FORM = re.compile(r"_HOST|HOST:PORT|host:port|://$")

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def urls(path: Path) -> list[str]:
    """The URLs in a file, without a full stop or comma that ends their sentence."""
    found = [url.rstrip(".,;:") for url in URL.findall(path.read_text(encoding="utf-8"))]
    return [url for url in found if not FORM.search(url)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documented_urls_are_good(path: Path) -> None:
    """Each URL that the documentation shows can be used as it stands, and warns of nothing."""
    for url in urls(path):
        try:
            config = parse_url(url)
        except ConfigError as error:
            pytest.fail(f"{url}: {error}")
        assert config.warnings == (), url


def test_urls_are_found() -> None:
    """The search sees the URLs of the README, also those that end a sentence or hold brackets."""
    assert len(urls(READMES[0])) >= 10
    url = "client://K@[::1]:1/[::]:2?tls=1"
    assert URL.findall(f'to "{url}" or ({url})') == [url, url]


@pytest.mark.parametrize(
    "pattern",
    [r"^```(?:sh|python)\n(?:.*\n)*?```$", r"\]\((?!README)([^)]*)\)"],
    ids=["commands", "links"],
)
def test_readmes_agree(pattern: str) -> None:
    """The Chinese README has the commands and links of the English one, in its order."""
    english, chinese = (
        re.findall(pattern, re.sub(" +# .*", "", path.read_text(encoding="utf-8")), re.MULTILINE)
        for path in READMES
    )
    assert english
    assert chinese == english


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_readme_links_lead_somewhere(path: Path) -> None:
    """Each link of a README to a file of the project leads to one."""
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


def test_readme_lists_parameters() -> None:
    """The README's table of parameters is the program's own."""
    expected = [
        f"| `{row.name}` | {', '.join(row.cores)} | {row.accepts} "
        f"| {f'`{row.default}`' if row.default else '-'} | {row.summary} |"
        for row in PARAMETERS
    ]
    text = READMES[0].read_text(encoding="utf-8")
    table = text.partition("| name | schemes |")[2].partition("\n\n")[0]
    assert table.splitlines()[2:] == expected


def test_chinese_readme_lists_parameters() -> None:
    """The Chinese table has the same parameters, schemes and defaults, row by row."""
    expected = [
        (f"`{row.name}`", ", ".join(row.cores), f"`{row.default}`" if row.default else "-")
        for row in PARAMETERS
    ]
    text = READMES[1].read_text(encoding="utf-8")
    table = text.partition("| 参数 |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:]]
    assert [(row[1], row[2], row[4]) for row in cells] == expected
