"""The picture of recall: a cell for each length and depth, with what it says where a model is undefined or guesses."""

from gptstar.plots.recall import RecallPanel, draw_recall


def test_cells_stand_at_their_length_and_depth() -> None:
    rows = [[0.25, 0.5, 1.0], [0.125, None, 0.75]]
    names = ("one", "other", "third")
    panels = [RecallPanel(name, 53, [53, 106], [0.0, 0.5, 1.0], rows, 0.25, name == "one") for name in names]
    figure = draw_recall(panels)
    axes = figure.axes[:3]
    for each, title in zip(axes, ("one\nchance 25", "other\ndid not learn; chance 25"), strict=False):
        cells = {text.get_position(): text.get_text() for text in each.texts}
        assert cells == {(0, 0): "25", (0, 1): "50", (0, 2): "100", (1, 0): "12", (1, 1): "–", (1, 2): "75"}
        assert each.get_title() == title
        assert [label.get_text() for label in each.get_xticklabels()] == ["1×", "2×"]
        assert [label.get_text() for label in each.get_yticklabels()] == ["0", "0.5", "1"]
    assert not figure.axes[3].axison  # nothing stands beside the third
