"""The figure of the page Compare and its sentence."""

from figures.compared import compared, compared_sentence

from minipo.course.figures.style import DYNAMIC_COLOUR, INK
from minipo.evaluation import Interval

UP, DOWN, OPEN = Interval(0.02, 0.01, 0.03), Interval(-0.03, -0.04, -0.02), Interval(0.0, -0.01, 0.01)


def test_each_line_has_its_interval_its_colour_and_its_name_as_text():
    names = ["DMPO, DynamicPO, K = 19", "<b>&", "a name that is far too long to stand beside an interval, 1"]
    names.append(names[-1][:-1] + "2")
    found = dict(zip(names, (UP, DOWN, OPEN, OPEN), strict=True))
    figure = compared(found, "HR@1", "<i>base", {names[0]: DYNAMIC_COLOUR})
    assert figure.layout.title.text == "HR@1, difference to &lt;i&gt;base"
    labels = figure.layout.yaxis.ticktext
    assert labels[:2] == ("DMPO, DynamicPO,<br>K = 19", "&lt;b&gt;&amp;")
    assert len(set(labels)) == 4
    assert max(len(line) for label in labels for line in label.split("<br>")) < 26
    means = [trace for trace in figure.data if trace.name == "mean, 95 % interval"]
    assert [(trace.x[0], trace.marker.symbol) for trace in means] == [
        (2, "diamond"), (-3, "diamond"), (0, "diamond-open"), (0, "diamond-open"),
    ]  # fmt: skip
    assert [trace.marker.color for trace in means[:2]] == [DYNAMIC_COLOUR, INK]


def test_the_sentence_says_what_the_intervals_show():
    said = compared_sentence({"a": UP, "b": DOWN, "c": OPEN}, "MRR", "base", "0.500")
    assert said == (
        "Against base (0.500), MRR is **higher** with a (+2.0 [+1.0, +3.0] points); "
        "**lower** with b (−3.0 [−4.0, −2.0] points); **not shown to differ** with c (+0.0 [−1.0, +1.0] points)."
    )
    assert compared_sentence(dict.fromkeys("abcde", DOWN), "HR@1", "base", "60 %").endswith(" and 2 more.")
