"""The page of what helped is that of its measurement."""

import json

import what_helped


def test_the_page_is_that_of_the_results() -> None:
    rows = json.loads(what_helped.RESULTS.read_text())
    assert sum(row["setting"] == what_helped.AVERAGE for row in rows) == 2  # one a metric
    assert {row["task"] for row in rows} == set(what_helped.GROUPS)
    for group, (_, _, others) in what_helped.GROUPS.items():
        measured = {row["setting"] for row in rows if row["task"] == group}
        expected = {"default", *(f"`{what_helped.name_of(settings)}`" for settings in others)}
        whole = {what_helped.SEARCH, what_helped.CALIBRATION, what_helped.FOLDS}
        assert (measured & whole) == (set() if group == "genre, LoRA" else whole)
        assert measured - {what_helped.AVERAGE} - whole == expected
    assert what_helped.PAGE.read_text(encoding="utf-8") == what_helped.render(rows)
