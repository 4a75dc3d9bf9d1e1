import pytest

from minipo.prompts import TEMPLATES, Template, answer, render


def test_line_template_is_continued_by_the_answer():
    assert render(TEMPLATES["line"], ["A B", "C D"]) + answer("E F") == "A B, C D, E F"


def test_where_a_template_ends_in_the_history_an_answer_makes_it_longer():
    continuing = [name for name, template in TEMPLATES.items() if template.continues]
    assert continuing == ["line", "liked"]
    for name in continuing:
        longer = render(TEMPLATES[name], ["A B", "C D", "E F"])
        assert longer.startswith(render(TEMPLATES[name], ["A B", "C D"]) + answer("E F"))
    assert not Template("[CansHere]: [HistoryHere],").continues
    assert not Template("[HistoryHere],", separator="; ").continues


def test_history_keeps_its_order_and_candidates_theirs():
    template = Template("[HistoryHere] | [CansHere] | [HistoryHere]", separator=" ; ")
    assert render(template, ["b", "a"], ["z", "y"]) == "b ; a | z ; y | b ; a"


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_placeholder_is_left_and_every_item_is_there(name):
    prompt = render(TEMPLATES[name], ["Velvet Tiger", "Neon Fox"], ["Iron Lark", "Glass Moth"])
    assert "Here]" not in prompt
    assert TEMPLATES[name].separator.join(["Velvet Tiger", "Neon Fox"]) in prompt
    listed = TEMPLATES[name].separator.join(["Iron Lark", "Glass Moth"]) in prompt
    assert listed == TEMPLATES[name].lists_candidates == (name not in ("line", "liked", "question"))
    assert not prompt.endswith(" ")  # the answer brings its own


@pytest.mark.parametrize("name", ["music", "films", "books", "games"])
def test_names_with_commas_stay_apart_in_the_templates_for_published_data(name):
    prompt = render(TEMPLATES[name], ["Earth, Wind & Fire", "Keane"], ["Mono", "Woe, Is Me"])
    assert "Earth, Wind & Fire; Keane." in prompt
    assert "Mono; Woe, Is Me." in prompt


def test_placeholders_in_names_are_not_filled():
    template = Template("[HistoryHere] / [CansHere]")
    assert render(template, ["[CansHere]"], ["[HistoryHere]"]) == "[CansHere] / [HistoryHere]"


def test_template_without_history_is_refused():
    with pytest.raises(ValueError, match=r"lacks \[HistoryHere\]"):
        Template("Pick one of [CansHere].")


def test_empty_history_and_missing_candidates_are_refused():
    with pytest.raises(ValueError, match="history is empty"):
        render(TEMPLATES["line"], [])
    with pytest.raises(ValueError, match="none were given"):
        render(TEMPLATES["choice"], ["A"])
