"""Makes a text of more than ten million tokens from documentation packages of Debian.

Usage: python -m benchmarks.scale.corpus FOLDER

Needs apt-get, dpkg-deb and trafilatura, and writes FOLDER/rows.safetensors. The text is technical
English, very unlike the Wikipedia sample.
"""

import functools
import hashlib
import itertools
import multiprocessing
import random
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from sae_binary_ext.bundled.smollm2 import export_smollm2

PACKAGES = (
    *("anarchism", "apache2-doc", "debian-handbook", "debian-policy", "debian-reference-en"),
    *("developers-reference", "erlang-doc", "exim4-doc-html", "gap-doc", "git-doc"),
    *("libboost1.74-doc", "libreoffice-help-en-us", "linux-doc-6.1", "postgresql-doc-15"),
    *("python-django-doc", "python-pandas-doc", "python-sqlalchemy-doc", "python3.11-doc"),
    *("rust-doc", "sagemath-doc", "vim-doc"),
)
# So much HTML is read of a package, so that none makes up most of the text.
BYTES_OF_PACKAGE = 30_000_000
# Shorter pages have little text. A few very long ones would take minutes each.
BYTES_OF_PAGE = range(2_000, 500_000)
# A row is the token that begins a text, and 255 others.
ROW = 256
TRAINING_ROWS, OTHER_ROWS = 40_000, 120


@dataclass(frozen=True)
class Rows:
    """Token ids, int32 [rows, ROW]; the three parts share no document.

    Attributes:
        train: rows in random order; the first are those of a shorter training.
        choosing: rows on which settings are chosen.
        held_out: rows that are measured once settings are chosen.
    """

    train: Tensor
    choosing: Tensor
    held_out: Tensor


def read_rows(folder: Path) -> Rows:
    """The rows of the text, which are made where they are missing."""
    path = folder / "rows.safetensors"
    if not path.is_file():
        rows = _rows(_texts(folder / "packages"), folder / "model")
        save_file({part.name: getattr(rows, part.name) for part in fields(rows)}, path)
    return Rows(**load_file(path))


def _texts(folder: Path) -> dict[str, str]:
    """The text of each page, by the page's path in its package."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [page for package in PACKAGES for page in _pages(folder, package)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = pool.imap(_text_of, pages, chunksize=16)
        texts = list(tqdm(found, "Pages", len(pages)))
    names = [str(page.relative_to(folder)) for page in pages]
    return dict(zip(names, texts, strict=True))


def _pages(folder: Path, package: str) -> list[Path]:
    """The English pages of a package in random order; the package is unpacked where it is not."""
    unpacked = folder / package
    if not unpacked.is_dir():
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
        archive.unlink()
    pages = sorted(
        page
        for page in unpacked.rglob("*.html*")
        if page.suffix in (".html", ".en") and page.is_file() and _bytes(page) in BYTES_OF_PAGE
    )
    random.Random(0).shuffle(pages)
    read = itertools.accumulate(_bytes(page) for page in pages)
    return [page for page, so_far in zip(pages, read, strict=True) if so_far < BYTES_OF_PACKAGE]


def _bytes(page: Path) -> int:
    return page.stat().st_size


def _text_of(page: Path) -> str:
    """The main text of a page, without menus and tables; nothing if it is not English."""
    # Imported here, because only this function of the benchmarks needs it.
    import trafilatura

    html = page.read_text(errors="replace")
    language = re.search(r'lang="(\w+)', html[:2000])
    if language and language[1].lower() != "en":
        return ""
    text = trafilatura.extract(html, fast=True, include_comments=False, include_tables=False)
    return text or ""


def _rows(texts: dict[str, str], model_folder: Path) -> Rows:
    tokenizer: Any = AutoTokenizer.from_pretrained(export_smollm2(model_folder))
    bos, length = cast(int, tokenizer.bos_token_id), ROW - 1
    parts: dict[str, list[list[int]]] = defaultdict(list)
    for name, text in tqdm(texts.items(), "Tokens"):
        ids = tokenizer(text, verbose=False)["input_ids"]
        starts = range(0, len(ids) - length + 1, length)
        parts[_part(name)].extend([bos, *ids[start : start + length]] for start in starts)
    sample = functools.partial(_sample, torch.Generator().manual_seed(0))
    return Rows(
        sample(parts["train"], TRAINING_ROWS),
        sample(parts["choosing"], OTHER_ROWS),
        sample(parts["held_out"], OTHER_ROWS),
    )


def _part(name: str) -> str:
    """One document of twenty is held out, and one is for choosing; its name alone decides."""
    number = hashlib.sha256(name.encode()).digest()[0] % 20
    return {0: "held_out", 1: "choosing"}.get(number, "train")


def _sample(generator: torch.Generator, rows: list[list[int]], wanted: int) -> Tensor:
    if len(rows) < wanted:
        raise ValueError(f"The packages have {len(rows)} rows, and {wanted} were asked for.")
    order = torch.randperm(len(rows), generator=generator)[:wanted]
    return torch.tensor(rows, dtype=torch.int32)[order]


if __name__ == "__main__":
    found = read_rows(Path(sys.argv[1]))
    print({part.name: getattr(found, part.name).numel() for part in fields(found)})
