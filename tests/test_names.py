"""A name that is not known: one sentence with the closest match and all that are. An error of another library."""

import pytest

from minipo.names import first_line, lookup

KNOWN = {"dpo": 1, "dmpo": 2, "sdpo": 3}


def test_a_known_name_is_its_entry():
    assert lookup("objective", "dmpo", KNOWN) == 2


@pytest.mark.parametrize(("name", "close"), [("dmp", "dmpo"), ("DMPO", "dmpo"), ("s-dpo", "sdpo")])
def test_a_name_that_is_nearly_right_gets_its_closest_match_and_the_list(name, close):
    with pytest.raises(ValueError, match=r".") as caught:
        lookup("objective", name, KNOWN)
    assert str(caught.value) == f"Unknown objective {name!r}. Did you mean {close!r}? Known: dpo, dmpo, sdpo."


@pytest.mark.parametrize("name", ["cross-entropy", "", None, 3])
def test_a_name_like_none_of_them_gets_the_list_alone(name):
    with pytest.raises(ValueError, match=r".") as caught:
        lookup("objective", name, KNOWN)
    assert str(caught.value) == f"Unknown objective {name!r}. Known: dpo, dmpo, sdpo."


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("Bad header.\nat byte 3"), "Bad header"), (MemoryError(), "MemoryError")]
)
def test_an_error_is_quoted_in_one_line_even_if_it_says_nothing(error, said):
    assert first_line(error) == said
