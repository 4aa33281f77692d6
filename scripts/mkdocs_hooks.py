"""MkDocs hooks: publish the documents outside docs/ as pages of the site.

Links are written for readers of the repository. Before MkDocs resolves them, the hooks shift them to the site's layout,
in which docs/ is the root and these documents keep their own paths.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "benchmarks/clicks.csv",
    "benchmarks/former-default.md",
    "benchmarks/learner.csv",
    "benchmarks/screening.md",
    "benchmarks/selection.md",
    "benchmarks/selection.py",
    "deploy/nginx/lab.conf",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    up = "../" * name.count("/")
    if name in OUTSIDE:
        return re.sub(rf"\]\({re.escape(up)}docs/", f"]({up}", markdown)
    return re.sub(rf"\]\({re.escape(up)}\.\./({'|'.join(map(re.escape, OUTSIDE))})", rf"]({up}\1", markdown)
