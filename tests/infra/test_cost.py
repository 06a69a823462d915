"""One file of prices; the README's table and the doctor's estimate both come from it."""

import datetime

import pytest

from infra.cost import BOUND_USD, README, bill, read_prices, total, worst_credits, written
from infra.settings import read_defaults


def test_the_readme_has_the_table_that_the_prices_make():
    text = README.read_text(encoding="utf-8")
    assert text == written(text), "python -m infra.cost renews it"


@pytest.mark.parametrize("machine", ["t2.micro", "t3.micro"])
@pytest.mark.parametrize("database", ["db.t3.micro", "db.t4g.micro"])
def test_every_machine_that_can_be_chosen_costs_less_than_the_bound_with_all_always_on(machine, database):
    settings = read_defaults() | {"instance_type": machine, "database_instance_class": database, "root_volume_gb": 30}
    assert 20 < total(bill(settings)) < BOUND_USD
    assert worst_credits(settings) == 0


def test_the_sum_is_what_a_person_gets_with_a_pencil():
    lines = bill(read_defaults(), hours=100)
    by_hand = 100 * 0.0104 + 100 * 0.005 + 20 * 0.08 + 730 * 0.016 + 20 * 0.115 + 10 * 0.023
    assert total(lines) == pytest.approx(by_hand)
    assert sum(line.cost_in_old_free_tier for line in lines) == pytest.approx(5 * 0.023)


def test_cpu_beyond_the_credits_is_counted_at_its_worst_where_it_is_allowed():
    settings = read_defaults() | {"cpu_credits": "unlimited"}
    assert worst_credits(settings) == pytest.approx(2 * 0.9 * 730 * 0.05)
    assert total(bill(settings)) + worst_credits(settings) > BOUND_USD


def test_every_price_says_where_it_was_seen_and_where_todays_is():
    prices = read_prices()
    assert isinstance(prices["collected"], datetime.date)
    entries = [prices[key] for key in ("cpu_credits", "public_ipv4", "disk", "database_storage", "object_storage")]
    entries += [*prices["instance"].values(), *prices["database"].values()]
    for entry in entries:
        assert entry["usd"] > 0
        assert entry["seen"]
        assert entry["page"].startswith("https://aws.amazon.com/")
