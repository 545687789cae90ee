"""The picture of the rooms is drawn from the import table, and every room has its paragraph."""

import re

import pytest

import gradstats
from tests.docs.rooms_picture import PAGE, ROOMS, arrows, below, floor, write
from tests.test_layers import MAY_IMPORT, edges

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_picture_is_that_of_the_import_table():
    assert write(TEXT) == TEXT, "run python -m tests.docs.rooms_picture"


def test_every_room_has_a_paragraph():
    headings = set(re.findall(r"(?m)^- \*\*`([\w/]+)`\*\*", TEXT))
    assert headings == {room for room in MAY_IMPORT if room}


def test_every_name_of_ours_in_the_page_is_there():
    for name in set(re.findall(r"`(gradstats(?:\.\w+)+)`", TEXT)):
        parts = name.split(".")[1:]
        thing = gradstats
        for place, part in enumerate(parts):
            if not hasattr(thing, part):
                __import__(".".join(["gradstats", *parts[: place + 1]]))
            thing = getattr(thing, part)


def test_a_room_lies_above_all_that_it_imports():
    for source, target in edges():
        if {source, target} <= set(ROOMS) and source != target:
            assert floor(source) > floor(target)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_arrow_is_left_out_of_the_picture(room):
    """What the picture leaves out is reached through the arrows that it draws."""
    drawn = set(arrows(room))
    assert drawn.union(*(below(target) for target in drawn)) == below(room)
