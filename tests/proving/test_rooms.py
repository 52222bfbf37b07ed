"""The picture of the rooms shows the imports that there are."""

from __future__ import annotations

from proving import rooms


def test_the_committed_picture_is_what_the_code_draws() -> None:
    drawn = rooms.svg(rooms.drawn(rooms.arrows()), rooms.sentences())
    assert rooms.PICTURE.read_text() == drawn, "it is stale: run make generate"


def test_the_committed_list_has_every_module_in_its_own_words() -> None:
    assert rooms.LIST.read_text() == rooms.listing(), "it is stale: run make generate"


def test_arrows_that_follow_from_others_are_left_out() -> None:
    edges = {("execution", "market"), ("live", "market"), ("live", "execution")}
    assert rooms.drawn(edges) == {("execution", "market"), ("live", "execution")}


def test_an_exception_into_proving_is_always_drawn() -> None:
    edges = {("assets", "proving"), ("proving", "orchestration"), ("orchestration", "assets")}
    assert ("assets", "proving") in rooms.drawn(edges)
