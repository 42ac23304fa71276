"""`aalp data`: look at a data source before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from aalp.commands.console import Display, command_line, print_out
from aalp.commands.tables import text_table
from aalp.data.check import NEAR, NEAR_SIDE, Found, Seen, duplicates, imbalance, look
from aalp.data.contact_sheet import contact_sheet
from aalp.data.sources import DataOptions, check_columns, open_source
from aalp.errors import RunError
from aalp.store.files import aside_of, write_atomically
from aalp.store.records import write_record, write_table
from aalp.store.run import free_path, put_in_place

EXIT_SPOILED = 3
"""There are unreadable images, or ones that spoil figures: in two splits, or with two labels."""

EACH = 8
"""Images of each class on the contact sheet."""

LISTED = 10
"""Images that the text names of each kind; the record has all."""


def data(source: str, data_options: DataOptions = DataOptions(), out: Path | None = None, quiet: bool = False) -> int:
    """Check a data source: counts, sizes, ranges, unreadable images, duplicates across splits, a contact sheet.

    Exit code: 0 nothing found, 3 there are unreadable images, images that are in two splits, or ones with two labels.

    Args:
        source: digits, npz:FILE, folder:DIR, csv:FILE, hf:FOLDER_OR_NAME, or torchvision:NAME.
        data_options: how the data is read.
        out: folder to make, for check.json, images.parquet and contact-sheet.png; by default data-checks/NAME-NNN.
        quiet: show no progress.

    Returns:
        The exit code.
    """
    folder = out or free_path(Path("data-checks"), Path(source.partition(":")[2] or source).stem.lower() or "data")
    if folder.exists():
        raise RunError(f"'{folder}' exists already: choose another --out")
    display = Display(quiet)
    check_columns(source, data_options)
    loaded = open_source(source, data_options)
    with display.bar():
        seen = look(loaded, EACH, display.attack)
    found = duplicates(seen)
    content = _content(source, loaded.classes, seen, found)
    # Under its name once it is whole: what is there in parts would stand in the way of the same command.
    with aside_of(folder) as aside:
        write_atomically(aside / "contact-sheet.png", _sheet(source, loaded.classes, seen))
        write_table(aside / "images.parquet", _columns(seen))
        record = write_record(aside / "check.json", "data", {"command": command_line(), **content})
        # The look may take long, and another process may have looked meanwhile.
        place = put_in_place(aside, folder, exactly=out is not None)
    files = {"path": str(place / "check.json"), "images": str(place / "images.parquet")}
    files["contact_sheet"] = str(place / "contact-sheet.png")
    print_out(f"{report(record)}\n\nrecord: {', '.join(files.values())}", {**record, **files})
    return EXIT_SPOILED if record["spoiled"] else 0


def _sheet(source: str, classes: Sequence[str], seen: dict[str, Seen]) -> bytes:
    counts = np.bincount(seen["train"].labels, minlength=len(classes)).tolist()
    return contact_sheet(source, classes, seen["train"].small, counts)


def _content(source: str, classes: Sequence[str], seen: dict[str, Seen], found: Found) -> dict[str, Any]:
    splits = {name: _split(images, len(classes)) for name, images in seen.items()}
    unreadable = [
        {"split": name, "index": index, "error": error}
        for name, images in seen.items()
        for index, error in images.errors.items()
    ]
    pairs = {kind: [_pair(seen, pair) for pair in getattr(found, kind)] for kind in ("across", "contradictions", "near")}
    return {
        "source": source,
        "classes": list(classes),
        "splits": splits,
        "imbalance": imbalance(seen["train"].labels, len(classes)),
        "unreadable": unreadable,
        "duplicates": {
            **pairs,
            "within": found.within,
            "near_correlation": None if found.near_skipped else NEAR,
            "too_small_for_near": found.too_small,
        },
        "spoiled": bool(unreadable or found.across or found.contradictions),
    }


def _split(images: Seen, classes: int) -> dict[str, Any]:
    sizes = [size for size in images.sizes if size != (0, 0)]
    sides = {
        name: {"least": min(values), "median": median(values), "most": max(values)} if values else None
        for name, values in (("width", [size[0] for size in sizes]), ("height", [size[1] for size in sizes]))
    }
    mean = images.total / images.pixels if images.pixels else 0.0
    deviation = max(0.0, images.squares / images.pixels - mean**2) ** 0.5 if images.pixels else 0.0
    return {
        "images": len(images.labels),
        "per_class": np.bincount(images.labels, minlength=classes).tolist(),
        **sides,
        "sizes": len(set(sizes)),
        "modes": dict(Counter(images.modes).most_common()),
        "values": {"least": images.low, "most": images.high, "mean": mean, "deviation": deviation},
        "one_colour": len(images.flat),
        "losing_colours": len(images.losing),
    }


def _pair(seen: dict[str, Seen], pair: tuple[str, int, str, int]) -> dict[str, Any]:
    one, place, other, position = pair
    return {
        "images": [seen[one].names[place], seen[other].names[position]],
        "splits": [one, other],
        "labels": [seen[one].labels[place], seen[other].labels[position]],
    }


def _columns(seen: dict[str, Seen]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("split", "index", "name", "label", "width", "height", "mode", "sha256")
    }
    for split, images in seen.items():
        columns["split"] += [split] * len(images.labels)
        columns["index"] += range(len(images.labels))
        columns["name"] += images.names
        columns["label"] += images.labels
        columns["width"] += [size[0] for size in images.sizes]
        columns["height"] += [size[1] for size in images.sizes]
        columns["mode"] += images.modes
        columns["sha256"] += images.hashes
    return columns


def report(record: Mapping[str, Any]) -> str:
    """The record as text for the screen."""
    splits = record["splits"]
    rows = [[name, *_figures(split)] for name, split in splits.items()]
    head = ["split", "images", "width", "height", "kinds of pixels", "values", "mean", "deviation", "of one colour"]
    lines = [f"{record['source']}: {len(record['classes'])} classes", "", text_table(head, rows), "", _classes(record), ""]
    duplicate = record["duplicates"]
    lines += _listed("unreadable", [item["error"] for item in record["unreadable"]])
    lines += _listed("in two splits", [_told(pair, record) for pair in duplicate["across"]])
    lines += _listed("the same image with two labels", [_told(pair, record) for pair in duplicate["contradictions"]])
    if duplicate["near_correlation"] is None:
        lines.append("nearly the same in two splits: not looked for, there are too many pairs")
    elif duplicate["too_small_for_near"] == sum(split["images"] for split in splits.values()) - len(record["unreadable"]):
        lines.append(f"nearly the same in two splits: not looked for, the images are smaller than {NEAR_SIDE} pixels")
    else:
        small = duplicate["too_small_for_near"]
        what = "nearly the same in two splits" + f" ({small} images are too small to tell)" * bool(small)
        lines += _listed(what, [_told(pair, record, "~") for pair in duplicate["near"]])
    again = ", ".join(f"{count} in {split}" for split, count in duplicate["within"].items() if count)
    lines.append(f"repeated within a split: {again or 'none'}")
    if empty := [name for name, count in zip(record["classes"], splits["train"]["per_class"], strict=True) if count == 0]:
        more = ", ..." if len(empty) > LISTED else ""
        lines.append(f"classes without training images: {len(empty)}: {', '.join(empty[:LISTED])}{more}")
    if record["imbalance"] >= 3:
        lines.append(
            f"the largest class has {record['imbalance']:.1f} times the images of the smallest: "
            "--training.balance classes draws all equally often"
        )
    if any(0 < split["values"]["most"] <= 1 / 255 for split in splits.values()):
        lines.append("all values are 0 or 1 of 255, all but black: save the images anew with values of 0 to 255")
    if any(mode in ("RGBA", "LA", "PA") for split in splits.values() for mode in split["modes"]):
        lines.append("transparency is left out: images that differ in nothing else become the same")
    if losing := sum(split["losing_colours"] for split in splits.values()):
        lines.append(f"the first image is grey and {losing} are in colour: train with --data_options.channels 3")
    if any(split["sizes"] > 1 for split in splits.values()):
        lines.append("sizes differ: train with --data_options.size")
    return "\n".join(lines)


def _figures(split: Mapping[str, Any]) -> list[str]:
    def span(side: Mapping[str, Any] | None) -> str:
        if side is None:
            return ""
        return f"{side['least']}" if side["least"] == side["most"] else f"{side['least']} - {side['most']}"

    values = split["values"]
    modes = ", ".join(f"{count} {mode}" for mode, count in split["modes"].items())
    return [
        f"{split['images']:,}",
        span(split["width"]),
        span(split["height"]),
        modes,
        f"{values['least']:.2f} - {values['most']:.2f}",
        f"{values['mean']:.3f}",
        f"{values['deviation']:.3f}",
        str(split["one_colour"]),
    ]


def _classes(record: Mapping[str, Any]) -> str:
    """Images by class; of many classes the smallest and the largest."""
    names, splits = record["classes"], record["splits"]
    order = list(range(len(names)))
    hidden = len(names) - 20
    if hidden > 0:
        by_size = sorted(order, key=lambda label: splits["train"]["per_class"][label])
        order = by_size[:10] + by_size[-10:]
    rows = [[names[label], *(f"{split['per_class'][label]:,}" for split in splits.values())] for label in order]
    if hidden > 0:
        rows.insert(10, [f"... {hidden} classes between", *("" for _ in splits)])
    return text_table(["class", *splits], rows)


def _told(pair: Mapping[str, Any], record: Mapping[str, Any], sign: str = "=") -> str:
    (one, other), (before, after) = pair["images"], (record["classes"][label] for label in pair["labels"])
    return f"{pair['splits'][0]} {one} ({before}) {sign} {pair['splits'][1]} {other} ({after})"


def _listed(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return [f"{what}: none"]
    more = [f"  ... and {len(items) - LISTED} more, in the record"] if len(items) > LISTED else []
    return [f"{what}: {len(items)}", *(f"  {item}" for item in items[:LISTED]), *more]
