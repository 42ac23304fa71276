"""Figures against plotly's own schema, and their numbers against the records'."""

from __future__ import annotations

import pytest
from report_helpers import CLASSES, groups_of, make_run, write_evaluation

from aalp.evaluation.robustness import wilson_interval
from aalp.report import class_figures, figures, observations
from aalp.report.collect import group_runs, read_run
from aalp.report.sections import sections


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """aalp with seeds 0 and 1 (robust 0.6 and 0.65), and at (0.55)."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        make_run(folder / "aalp-seed0", "aalp", 0, 0.6),
        make_run(folder / "aalp-seed1", "aalp", 1, 0.65),
        make_run(folder / "at", "at", 0, 0.55),
    ]
    return groups_of(*paths)


def by_name(figure, name):
    return next(trace for trace in figure.data if trace["name"] == name and trace.get("showlegend", True))


def test_plotly_takes_every_figure(groups):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawn = [
        block
        for part in sections(groups, wilson_interval, None, "aalp report")
        for block in part.blocks
        if block.kind == "figure"
    ]
    assert len({figure.name for figure in drawn}) == len(drawn) >= 14
    for figure in drawn:
        graph_objects.Figure(data=list(figure.data), layout=dict(figure.layout))  # raises on what plotly does not know


def test_several_seeds_are_drawn_as_their_mean_with_each_behind_it(groups):
    figure = observations.first(groups, "")[1]
    traces = [trace for trace in figure.data if trace["name"] == "aalp"]
    assert [trace["y"] for trace in traces[:2]] == [[0.6] * 3, [0.65] * 3]
    assert traces[2]["y"] == pytest.approx([0.625] * 3)
    assert [trace.get("showlegend", True) for trace in traces] == [False, False, True]


def test_the_mean_is_taken_where_all_seeds_have_a_point():
    assert figures.mean_curve([{1: 0.2, 2: 0.4, 3: 1.0}, {2: 0.6, 1: 0.4}]) == pytest.approx({1: 0.3, 2: 0.5})


def test_attack_bars_are_wilson_for_one_seed_and_extremes_for_several(groups):
    figure = figures.attacks(groups, wilson_interval)
    single, several = by_name(figure, "at"), by_name(figure, "aalp")
    names = [figure.layout["xaxis"]["ticktext"][place] for place in single["x"]]
    assert names == ["clean", "pgd-20", "autoattack", "worst case"]
    assert single["y"] == pytest.approx([0.9, 0.6, 0.55, 0.55])
    low, high = wilson_interval(22, 40)
    assert single["y"][3] + single["error_y"]["array"][3] == pytest.approx(high)
    assert single["y"][3] - single["error_y"]["arrayminus"][3] == pytest.approx(low)
    assert several["y"][3] == pytest.approx(0.625)
    assert several["error_y"]["array"][3] == pytest.approx(0.025)


def test_captions_say_which_split_was_attacked_and_what_bars_of_several_seeds_are(groups, tmp_path):
    assert figures.attacks(groups, wilson_interval).caption.startswith("Share of test images right clean")
    assert "bars: the lowest and the highest" in observations.first(groups, "")[-1].caption
    run = make_run(tmp_path / "run")
    write_evaluation(run, "test", 0.5, data={"name": "folder:pets", "split": "validation", "digest": "d" * 64})
    alone = groups_of(run)
    assert figures.attacks(alone, wilson_interval).caption.startswith("Share of validation images right clean")
    assert "bars" not in observations.first(alone, "")[-1].caption


def test_the_caption_of_the_top_features_claims_no_robustness_of_a_masked_network(groups):
    top = next(figure for figure in observations.first(groups, "") if figure.name == "top-k")
    assert "no network of k features was attacked" in top.caption


def test_the_end_of_the_eps_curve_is_told_rather_than_drawn(groups):
    figure = figures.eps_curve(groups)
    assert figure.layout["xaxis"]["range"][1] < 0.1
    assert "aalp 0.0\u00a0% at eps 1" in figure.caption
    assert "cw-20" in figure.caption
    assert len(figure.table.rows) == 10


def test_metrics_that_no_epoch_has_are_no_figure(groups):
    nothing = figures.line_figure("x", "x", "", groups, figures.column("absent"), {"title": {"text": ""}}, {})
    assert nothing is None
    loss = next(figure for figure in figures.training(groups) if figure.name == "loss")
    assert by_name(loss, "at")["x"] == [1, 2, 3, 4, 5]
    clean = next(figure for figure in figures.training(groups) if figure.name == "validation-clean")
    assert by_name(clean, "at")["x"] == [2, 3, 4, 5]


def test_shares_of_a_training_have_ticks_that_tell_rare_conflicts_apart_at_whole_epochs(groups):
    for figure in observations.second(groups):
        assert figure.layout["xaxis"]["dtick"] == 1
        if figure.name != "weights":
            assert figure.layout["yaxis"]["tickformat"] == ".4~%"  # 0.05 % and 0.1 %, where .1% has 0.1 % twice


def test_sample_weights_of_several_seeds_are_their_means_as_all_figures_are(tmp_path):
    def weights(*paths):
        return next(figure for figure in observations.second(groups_of(*paths)) if figure.name == "weights")

    one, other = (make_run(tmp_path / f"aalp-seed{seed}", seed=seed) for seed in (0, 1))
    rows = [["epoch", "weight_low", "weight_median", "weight_high"], [1, 0.2, 1, 1.5], [2, 0.4, 1.2, 1.7]]
    for path, plus in ((one, 0.0), (other, 0.2)):
        lines = [rows[0], *([epoch, *(value + plus for value in values)] for epoch, *values in rows[1:])]
        (path / "metrics.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    low, high, median = weights(one, other).data
    assert [trace["y"] for trace in (low, high, median)] == [pytest.approx(y) for y in ([0.3, 0.5], [1.6, 1.8], [1.1, 1.3])]
    assert weights(one, other).caption.endswith("by epoch. Of several seeds the means.")
    assert weights(one).data[2]["y"] == [1, 1.2]
    assert weights(one).caption.endswith("by epoch.")


def test_confusions_add_up_over_seeds_and_hide_no_class(groups):
    (trace,) = class_figures.confusion(groups[0]).data
    assert trace["text"] == [[12 if i == j else 2 for j in range(4)] for i in range(4)]
    assert trace["z"][0] == pytest.approx([12 / 18, 2 / 18, 2 / 18, 2 / 18])
    assert len(class_figures.per_class(groups, "").table.rows) == 2 * len(CLASSES)


def test_models_that_are_level_in_a_class_do_not_hide_each_other(tmp_path):
    for name in ("at", "aalp"):
        make_run(tmp_path / name, objective=name)

    figure = class_figures.per_class(groups_of(tmp_path / "at", tmp_path / "aalp"), "")

    first, second = figure.data
    assert first["x"] == second["x"]
    assert figure.layout["scattermode"] == "group"
    assert first["offsetgroup"] != second["offsetgroup"]
    assert {trace["orientation"] for trace in figure.data} == {"h"}


def test_of_very_many_classes_the_weakest_are_shown(tmp_path):
    names = [f"class {number}" for number in range(120)]
    path = make_run(tmp_path / "many", classes=names)
    groups = group_runs([read_run(path, {"objective": "aalp"})])
    groups[0].runs[0].analysis["per_class"][77]["robust"] = 0.01
    figure = class_figures.per_class(groups, "")
    assert len(figure.data[0]["y"]) == 30
    assert figure.data[0]["y"] == list(range(30))
    assert figure.layout["yaxis"]["ticktext"][0] == "class 77"
    assert "30 of 120 classes" in figure.caption
    assert class_figures.confusion(groups[0]) is None


def test_names_that_begin_alike_have_a_row_each_and_labels_that_tell_them_apart(tmp_path):
    long = "a name that is longer than any figure has room for, "
    classes = [f"{long}the class {number}" for number in (1, 2)]
    paths = [make_run(tmp_path / f"{long}{end}", model=f"{long}{end}", classes=classes) for end in ("one", "two")]
    groups = groups_of(*paths)
    drawn = [
        figures.accuracy(groups, wilson_interval),
        next(figure for figure in observations.first(groups, "") if figure.name == "n90"),
        class_figures.per_class(groups, ""),
    ]
    for figure in drawn:
        places = {place for trace in figure.data for place in trace["y"]}
        assert places == {0, 1}
        assert figure.layout["yaxis"]["tickvals"] == [0, 1]
        first, second = figure.layout["yaxis"]["ticktext"]
        assert first != second
