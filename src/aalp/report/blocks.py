"""What a page is made of: the template draws each kind of block in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aalp.report.collect import Group


@dataclass(frozen=True)
class Table:
    """A table of the page: `caption` says what is in it, the first cell of a row is its heading."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """A figure: `name` is its HTML id and file name, `caption` says on what it was measured, `table` has its numbers."""

    name: str
    title: str
    caption: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: Table | None = None
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Text:
    """A paragraph; `strong` for what has to be seen."""

    text: str
    strong: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Missing:
    """A part that no record has, and the commands that make it."""

    text: str
    commands: Sequence[str]
    kind: ClassVar[str] = "missing"


@dataclass(frozen=True)
class Gates:
    """The gates of one audit."""

    group: Group
    title: str
    caption: str
    verdict: str
    verdict_text: str
    gates: Sequence[Mapping[str, Any]]
    folded: bool
    kind: ClassVar[str] = "gates"


@dataclass(frozen=True)
class Pictures:
    """One image of the gallery: three PNG as data URIs, and what the classifier made of them."""

    clean: str
    adversarial: str
    difference: str
    label: str
    clean_prediction: str
    adversarial_prediction: str
    verdict: str


@dataclass(frozen=True)
class Gallery:
    """The pictures of one run."""

    group: Group
    caption: str
    pictures: Sequence[Pictures]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Code:
    """Text to read or copy as it stands."""

    title: str
    text: str
    folded: bool = False
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Statements:
    """What `aalp analyze` said of an observation: its summary, and (verdict, words for it, sentence) for each claim."""

    summary: Sequence[str]
    claims: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "statements"


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the table of contents."""

    name: str
    title: str
    blocks: Sequence[Any]
