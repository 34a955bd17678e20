"""What MkDocs is told when it builds the site: pages made of the program, and links that leave `docs/`."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference

ROOT = Path(__file__).parents[2]
OUTER = {"index.md": "README.md", "changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Page of the site → file beside `docs/` that it is made of."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "reference/commands.md": reference.commands_page(),
        "reference/configuration.md": reference.configuration_page(),
        "reference/metrics.md": reference.metrics_page(),
        **{page: (ROOT / source).read_text(encoding="utf-8") for page, source in OUTER.items()},
    }
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{notebook.stem}.md"] = reference.notebook_page(notebook)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them: files beside `docs/` become their page, or text where they have none."""
    home = ROOT if page.file.src_uri in OUTER else (ROOT / "docs" / page.file.src_uri).parent
    return LINK.sub(lambda match: _link(match, page.file.src_uri, home), markdown)


def _link(match: re.Match[str], here: str, home: Path) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    if "://" in target or target.startswith("mailto:"):
        return match[0]
    path = (home / target).resolve()
    outer = {(ROOT / source).resolve(): page for page, source in OUTER.items()}
    if path in outer:
        place = outer[path]
    elif path.is_relative_to(ROOT / "docs"):
        place = path.relative_to(ROOT / "docs").as_posix()
    else:
        return f"{text} (`{path.relative_to(ROOT).as_posix()}`)" if path.is_relative_to(ROOT) else match[0]
    up = "../" * here.count("/")
    return f"[{text}]({up}{place}{anchor})"
