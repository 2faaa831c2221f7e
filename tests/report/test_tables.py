import io
from dataclasses import dataclass, field

import pytest

from revolve.report.tables import (
    render,
    tabulate_chain,
    tabulate_comparison,
    tabulate_frontier,
    tabulate_plan,
    tabulate_report,
)
from revolve.report.treatments import describe_stages
from revolve.schedules import Chain, Plan, compare, format_bytes, sequential, solve


def show(content):
    text = render(content, io.StringIO())
    assert "\x1b" not in text
    assert all(len(line) <= 100 for line in text.splitlines())
    return text


@pytest.fixture
def chain():
    return Chain.uniform(6, forward=1e-3, backward=2e-3, output_bytes=1_000_000, saved_bytes=2_000_000)


def test_treatments_count_runs_and_time():
    chain = Chain.uniform(4, rebuild=0.5)
    treatments = describe_stages(Plan.from_actions(chain, sequential(4, 2)))
    assert [t.runs for t in treatments] == [2, 2, 1, 1]
    assert [t.extra_time for t in treatments] == [1.0, 0.5, 0.0, 0.0]
    assert [t.words for t in treatments] == ["recomputed once", "recomputed once", "saved", "saved"]
    assert [t.input_words for t in treatments] == ["", "", "stored", ""]


def test_extra_times_add_up_to_the_makespan(chain):
    plan = solve(chain).plan(solve(chain).smallest)
    extra = sum(treatment.extra_time for treatment in describe_stages(plan))
    assert plan.plain_makespan + extra == pytest.approx(plan.makespan)


def test_plan_table_names_formats_of_saves_and_stores():
    costs = {"stored_bytes": [1] * 4, "store_time": [0.5] * 4, "load_time": [0.25] * 4, "saved_bytes": [1] * 3}
    costs |= {name: [0] * 3 for name in ("save_extra", "backward_extra")}
    costs |= {"encode_time": [2.0] * 3, "decode_time": [3.0] * 3}
    document = Chain.uniform(3, output_bytes=2).to_json() | {"formats": {"bitmap": costs, "half": costs}}
    actions = [["save", 0, "bitmap"], ["store", 1, "half"], ["forward", 1], ["save", 2], ["loss"], ["backward", 2]]
    actions += [["load", 1], ["drop", 1], ["save", 1, "bitmap"], ["backward", 1], ["backward", 0]]
    plan = Plan.from_actions(Chain.from_json(document), actions)
    treatments = describe_stages(plan)
    assert [t.words for t in treatments] == ["saved (bitmap)", "recomputed once (bitmap)", "saved"]
    assert [t.input_words for t in treatments] == ["", "stored (half)", ""]
    # Encoded and decoded; stored and loaded in one format, run again, encoded with its input in another, decoded.
    assert [t.extra_time for t in treatments] == [5.0, 0.5 + 0.25 + 1 + (2.0 + 0.5) + 3.0, 0.0]
    assert plan.plain_makespan + sum(t.extra_time for t in treatments) == plan.makespan
    text = show(tabulate_plan(plan))
    for words in ("recomputed once (bitmap)", "stored (half)", "bitmap (2 save); half (1 store)", "2 saved, 1 recomp"):
        assert words in text


def test_chain_table_has_totals(chain):
    text = show(tabulate_chain(chain))
    assert "6 stages" in text
    assert text.count("1 MB") == 6 + 1  # the input, too
    assert "6 MB" in text
    assert "12 MB" in text
    assert "gradients" not in text
    assert "gradients" in show(tabulate_chain(Chain.uniform(2, grad_bytes=5)))


@pytest.mark.parametrize(("length", "hidden"), [(60, None), (61, 11), (500, 450)])
def test_long_chains_are_shortened_with_a_note(length, hidden):
    text = show(tabulate_chain(Chain.uniform(length)))
    assert (f"({hidden} more stages)" in text) == (hidden is not None)
    assert ("more stages" in text) == (hidden is not None)
    assert len(text.splitlines()) < 75


def test_plan_table_names_budget_and_ratio(chain):
    plan = solve(chain).plan("13MB")
    text = show(tabulate_plan(plan))
    assert f"{plan.ratio:.4f}" in text
    assert "13000000 bytes" in text
    assert "6 backward" in text


def test_plain_plans_and_missing_budgets(chain):
    plan = Plan.from_actions(chain, solve(chain).plan("1GB").actions)
    text = show(tabulate_plan(plan))
    assert "6 saved, 0 recomputed" in text
    assert "none stored" in text


def test_frontier_shows_both_ends(chain):
    frontier = solve(chain)
    text = show(tabulate_frontier(frontier))
    assert str(frontier.smallest) in text
    assert "100.0%" in text


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_frontier_names_three_points(chain, tolerance):
    frontier = solve(chain, tolerance=tolerance)
    rows = {line.split()[0]: line for line in show(tabulate_frontier(frontier)).splitlines() if line}
    for name in ("smallest", "knee", "plain"):
        assert f" {getattr(frontier, name)} " in rows[name]
    assert rows["plain"].endswith("1.000")


def test_single_points_need_one_row_and_one_name():
    text = show(tabulate_frontier(solve(Chain.uniform(1))))
    assert "1 of 1 points" in text
    assert "smallest" in text
    assert "knee" not in text


def test_comparison_table(chain):
    frontier = solve(chain)
    text = show(tabulate_comparison(compare(chain, "60%"), frontier))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert f"{format_bytes(frontier.plain)}, 100.0%" in lines["plain"]
    for row in compare(chain, "60%"):
        if row.plan is not None:
            over = row.plan.makespan / frontier.plan("60%").makespan - 1
            for words in (f"{row.plan.ratio:.3f}", f"{over:+.2%}", f" {row.recomputed}"):
                assert words in lines[row.plan.strategy]


@dataclass
class FakeReport:
    output_equal: bool = True
    loss_equal: bool = True
    gradients_equal: bool = True
    buffers_equal: bool = True
    rng_equal: bool = True
    differences: tuple = field(default=())
    budget: int | None = 1000
    kept: bool = True
    predicted_peak: int = 900
    measured_peak: int = 909
    plain_peak: int = 1818
    predicted_time: float = 0.2
    measured_time: float = 0.1
    plain_time: float = 0.1
    lossy: tuple = ()
    deviation: float = 0.0


def test_report_table():
    text = show(tabulate_report(FakeReport()))
    assert text.count("bit-identical") == 5
    for words in ("900 B", "909 B", "+1.0%", "50.0%", "-50.0%", "kept"):
        assert words in text


def test_report_table_of_a_failure():
    names = tuple(f"buffer {i}" for i in range(12))
    text = show(tabulate_report(FakeReport(buffers_equal=False, differences=names, kept=False, predicted_time=0.0)))
    assert "DIFFERS" in text
    assert "EXCEEDED" in text
    assert "and 2 more" in text


def test_report_table_of_a_lossy_plan():
    text = show(tabulate_report(FakeReport(gradients_equal=False, lossy=("int8",), deviation=0.0123)))
    assert "int8: a gradient deviates by 1.23% of its norm at most" in text
