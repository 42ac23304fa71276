"""The page as text: what it says, what it escapes, how large it is. test_report_in_chromium.py looks at it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from report_helpers import CLASSES, EVIL, groups_of, make_run, write_analysis, write_audit, write_evaluation, write_metrics

from aalp.evaluation.robustness import wilson_interval
from aalp.report.gallery import gallery
from aalp.report.headline import cautions, lead, radius, rows
from aalp.report.page import render, script_json
from aalp.report.sections import sections


def page_of(*paths, title="a title"):
    groups = groups_of(*paths)
    return render(groups, sections(groups, wilson_interval, None, "aalp report"), wilson_interval, title)


class Parsed(HTMLParser):
    """Elements and text of a page; scripts apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._in = "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self.text += data


def test_the_page_loads_nothing_and_stays_small(tmp_path):
    runs = []
    for number in range(8):
        runs.append(make_run(tmp_path / f"model-{number}", "aalp", method={"pairing_weight": number}))
        write_analysis(runs[-1], 0.5, CLASSES, number=2, shape=(3, 224, 224))
    page = page_of(*runs)
    assert len(page.encode()) < 8_000_000
    elements = Parsed(page).elements
    sources = [value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) > 20
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert [tag for tag, _ in elements].count("script") == 3
    assert not any(tag in ("link", "iframe", "base") and "data:," not in str(attributes) for tag, attributes in elements)
    assert page.count("plotly.js v") == 1
    assert not re.search(r"url\(|@import", page[: page.index("</style>")])


@pytest.mark.parametrize("place", ["title", "class", "folder", "command"])
def test_markup_from_outside_stays_text(tmp_path, place):
    evil = EVIL.replace("/", "_") if place == "folder" else EVIL
    run = make_run(tmp_path / (f"{evil} & co" if place == "folder" else "run"), classes=[evil, "b"])
    write_evaluation(run, "test", 0.5, command=f"aalp evaluate {evil}")
    page = Parsed(page_of(run, title=evil))
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert evil in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_json_in_a_script_cannot_end_it():
    text = script_json({"name": "</script><!-- & \u2028", "value": 1 / 3, "whole": 12345678})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!-- & \u2028", "value": 0.33333, "whole": 12345678}


def test_the_headline_has_wilson_intervals_and_the_verdict_in_words(tmp_path):
    (row,) = rows(groups_of(make_run(tmp_path / "run", robust=0.5, audit="inconclusive")), wilson_interval)
    # Wilson by hand for 20 of 40: 0.5 +- 1.96 / 1.096 * sqrt(0.25 / 40 + 0.096 / 160) = 0.5 +- 0.148
    assert (row.robust.main, row.robust.small) == ("50.0\u00a0%", "35.2 to 64.8\u00a0%")
    assert row.autoattack.main == "50.0\u00a0%"
    assert row.verdict_text == "inconclusive"


def test_several_seeds_have_a_mean_and_a_row_each_and_the_worst_verdict(tmp_path):
    paths = [make_run(tmp_path / f"s{seed}", "aalp", seed, robust, analysis=False) for seed, robust in ((0, 0.5), (1, 0.6))]
    write_audit(paths[1], "fail", created="3000")
    mean, first, second = rows(groups_of(*paths), wilson_interval)
    # The deviation of 50 and 60 is 10 / sqrt(2).
    assert (mean.robust.main, mean.robust.small) == ("55.0\u00a0%", "± 7.1 over 2 seeds")
    assert (mean.verdict, mean.verdict_text) == ("fail", "failed: 1 of 2")
    assert (first.name, first.robust.main, second.robust.main) == ("seed 0", "50.0\u00a0%", "60.0\u00a0%")


@pytest.mark.parametrize(("seeds", "folded"), [(3, False), (4, True)])
def test_the_seeds_of_many_models_are_folded_away(tmp_path, seeds, folded):
    paths = [
        make_run(tmp_path / f"{name}{seed}", name, seed, analysis=False)
        for name in ("at", "alp", "aalp")
        for seed in range(seeds)
    ]
    page = page_of(*paths)
    head, fold, rest = page.partition("<summary>Each seed</summary>")
    assert bool(fold) is folded
    assert head.count('<tr role="row" class="seed">') == (0 if folded else 3 * seeds)
    assert rest.count('<tr role="row" class="seed">') == (3 * seeds if folded else 0)


def test_breaks_of_another_evaluation_than_the_headline_s_are_called_so(tmp_path):
    path = make_run(tmp_path / "run")
    file = path / "analyses/best-001/analysis.json"
    for source, told in (("run/evaluations/test.json", False), ("run/evaluations/best-001.json", True)):
        file.write_text(json.dumps({**json.loads(file.read_text()), "attacks_from": source}))
        assert ("Of another evaluation than above for aalp" in page_of(path)) is told


def test_figures_that_do_not_compare_or_are_upper_bounds_are_called_so(tmp_path):
    one, two = (make_run(tmp_path / name, name, analysis=False) for name in ("at", "aalp"))
    assert cautions(groups_of(one, two)) == []
    write_evaluation(two, "test", 0.5, images=20)
    assert "differ in number of images" in cautions(groups_of(one, two))[0]
    assert "highest" not in " ".join(lead(groups_of(one, two)))
    weak = [{"name": "pgd-20", "accuracy": 0.5, "attacked": 1, "seconds": 0.0, "settings": {}, "parts": []}]
    write_evaluation(two, "test", 0.5, attacks=weak)
    assert "1 of 2 evaluations are without AutoAttack" in cautions(groups_of(one, two))[1]


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [
        ("Linf", 8 / 255, "L∞ ball of radius eps = 8/255"),
        ("linf", 0.2, "L∞ ball of radius eps = 0.2"),
        ("L2", 0.5, "L2 ball of radius eps = 0.5"),
    ],
)
def test_threats_are_told_as_people_write_them(norm, eps, words):
    assert radius({"norm": norm, "eps": eps}) == words


def test_missing_parts_name_their_command(tmp_path):
    path = tmp_path / "a run"
    path.mkdir()
    (path / "config.yaml").write_text("objective: at\ndata: digits\n")
    text = Parsed(page_of(path)).text
    for verb in ("evaluate", "audit", "analyze", "train --resume"):
        assert f"aalp {verb} '{path}'" in text
    assert "not audited" in text


def test_a_gate_that_failed_says_what_it_means_and_what_to_do_and_one_that_is_open_accuses_nobody(tmp_path):
    text = Parsed(page_of(make_run(tmp_path / "run", audit="fail"))).text
    assert text.count("What to do:") == 1  # one failed, one could not be decided
    assert text.count("not decided") == 1
    assert "unbounded attack wins" in text
    assert "measured 0.25, limit 0.5" in text


def test_a_training_that_has_not_come_to_its_end_is_called_so(tmp_path):
    run = make_run(tmp_path / "run")
    assert not any("has not come to its end" in line for line in cautions(groups_of(run)))
    write_metrics(run / "metrics.csv", epochs=3)
    assert "The training of run has not come to its end: 3 of 5 epochs." in cautions(groups_of(run))


def test_an_audit_of_other_weights_is_shown_but_does_not_vouch(tmp_path):
    run = make_run(tmp_path / "run", audit=None)
    write_audit(run, "pass", weights="run/weights/last.safetensors")
    text = Parsed(page_of(run)).text
    assert "does not vouch for it" in text
    assert "not audited" in text


def test_the_gallery_amplifies_by_a_stated_factor_and_tells_what_happened(tmp_path):
    run = groups_of(make_run(tmp_path / "run"))[0].runs[0]
    pictures, factor = gallery(run, 12, 10**6)
    assert factor == pytest.approx(0.5 / (8 / 255), rel=1e-3)
    assert [picture.verdict for picture in pictures] == ["fooled", "stands", "stands", "stands", "stands", "wrong already"]
    assert pictures[1].label == EVIL
    assert len(gallery(run, 12, 1)[0]) == 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 8, 8), (3, 200, 100)])
def test_images_of_any_shape_become_pngs(tmp_path, shape):
    path = make_run(tmp_path / "run")
    write_analysis(path, 0.5, ["a", "b"], shape=shape)
    pictures, _ = gallery(groups_of(path)[0].runs[0], 2, 10**6)
    assert pictures[0].clean.startswith("data:image/png;base64,")


def test_images_that_do_not_move_have_a_grey_difference(tmp_path):
    run = groups_of(make_run(tmp_path / "run"))[0].runs[0]
    run.gallery["adversarial"] = run.gallery["clean"].clone()
    assert torch.equal(run.gallery["adversarial"], run.gallery["clean"])
    assert gallery(run, 1, 10**6)[1] == 1.0


def test_a_run_that_nothing_attacked_has_no_robust_figure(tmp_path):
    run = make_run(tmp_path / "run", robust=0.9)
    # As earlier versions wrote it: with the clean accuracy as the robust one.
    write_evaluation(run, "test", 0.9, attacks=[], broken_by={"clean": 4})
    (row,) = rows(groups_of(run), wilson_interval)
    assert (row.clean.main, row.robust.main, row.robust.small) == ("90.0\u00a0%", "-", "not attacked")
    text = " ".join(Parsed(page_of(run)).text.split())
    assert "nothing was attacked, so there is no robust accuracy" in text
    assert "All evaluations are without any attack" in text
    assert "worst case" not in text.partition("Robustness")[2].partition("Observation 1")[0]
    assert f"No attack yet. To make it:Copyaalp evaluate --attacks autoattack {run}" in text
    other = make_run(tmp_path / "other", "at", robust=0.5)
    assert "not attacked" in page_of(run, other)


ELSEWHERE = {"name": "npz:rot.npz", "split": "test", "digest": "e" * 64, "split_images": 80}


def test_figures_of_other_data_are_called_so_and_the_training_data_is_the_runs(tmp_path):
    run = make_run(tmp_path / "run")
    write_evaluation(run, "other", 0.05, data=ELSEWHERE)
    write_audit(run, "fail", number=2, data=ELSEWHERE, created="3000")
    groups = groups_of(run)
    assert "on folder:pets." in lead(groups)[0]
    assert (rows(groups, wilson_interval)[0].robust.main, rows(groups, wilson_interval)[0].verdict) == ("50.0\u00a0%", "pass")
    text = " ".join(Parsed(page_of(run)).text.split())
    assert "40 of 80 test images of npz:rot.npz" in text.partition("Evaluations of other data than")[2]
    # Where there is nothing else, it has to be in front.
    (run / "evaluations" / "test.json").unlink()
    assert "on folder:pets." in lead(groups_of(run))[0]
    assert "The figures of run are of npz:rot.npz; it was trained on folder:pets." in cautions(groups_of(run))
    assert "Evaluations of other data than" not in page_of(run)


def test_models_of_other_threats_and_data_are_told_row_by_row_and_not_ranked(tmp_path):
    l2 = {"norm": "L2", "eps": 1.0}
    one = make_run(tmp_path / "one", "at", analysis=False, threat={"norm": "l2", "eps": "1"})
    write_evaluation(one, "test", 0.9, threat=l2, images=20)
    two = make_run(tmp_path / "two", "aalp", analysis=False, data="npz:rot.npz")
    write_evaluation(two, "test", 0.2, data=ELSEWHERE)
    groups = groups_of(one, two)
    words = " ".join(lead(groups))
    assert words.startswith("2 models trained on folder:pets and npz:rot.npz. Each row names its own threat")
    assert "highest" not in words
    first, second = rows(groups, wilson_interval)
    assert first.about == "small-cnn, seed 0; 20 of 80 test images of folder:pets; L2 ball of radius eps = 1"
    assert second.about == "small-cnn, seed 0; 40 of 80 test images of npz:rot.npz; L∞ ball of radius eps = 8/255"
    text = " ".join(Parsed(page_of(one, two)).text.split())
    assert "Accuracy on the images that each row names, the ball that each row names; robust: right clean" in text
    assert "evaluations differ in data, number of images and threat" in text.partition("Robustness")[2]
    # What all rows share is said once.
    assert [row.about for row in rows(groups_of(one), wilson_interval)] == ["small-cnn, seed 0"]


def test_seeds_of_another_threat_have_no_mean(tmp_path):
    paths = [make_run(tmp_path / f"s{seed}", "aalp", seed, analysis=False) for seed in (0, 1)]
    write_evaluation(paths[1], "test", 0.9, threat={"norm": "L2", "eps": 1.0})
    mean, first, second = rows(groups_of(*paths), wilson_interval)
    assert (mean.robust.main, mean.robust.small) == ("-", "not of one data and threat")
    assert (first.about, second.about) == ("L∞ ball of radius eps = 8/255", "L2 ball of radius eps = 1")


def test_a_single_image_is_one_image(tmp_path):
    run = make_run(tmp_path / "run", classes=["a", "b"])
    write_evaluation(run, "test", 1.0, images=1, data={**ELSEWHERE, "name": "folder:pets", "split_images": 1})
    write_audit(run, "pass", images=1)
    file = run / "analyses" / "best-001" / "analysis.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": 1}))
    page = page_of(run)
    assert "all 1 test image of folder:pets" in page
    assert "On 1 test image, pgd-20 in the" in page
    assert not re.search(r"\b1 (test )?images", page[page.index("<body") :].partition("<script")[0])
