"""What the free tier's machines cost a month; ``python -m infra.cost`` renews the table in terraform/README.md."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.settings import TERRAFORM, read_defaults
from modelcore.atomic import write_text

PRICES = Path(__file__).parent / "prices.yaml"
README = TERRAFORM / "README.md"
BEGIN, END = "<!-- costs: made by python -m infra.cost -->", "<!-- /costs -->"

HOURS_A_MONTH = 730  # as AWS counts
BOUND_USD = 50  # a month, whatever is done
DATABASE_STORAGE_GB = 20  # modules/database
ASSUMED_OBJECTS_GB = 10
BASELINE = 0.1  # of each vCPU, what a micro's credits pay for
VCPUS = {"t2.micro": 1, "t3.micro": 2}


@dataclass(frozen=True)
class Line:
    """One part of the bill.

    Args:
        part: What it is.
        quantity: How much of it a month, in ``unit``.
        unit: Hours, or GB for a month.
        usd: Dollars a unit.
        free: Units a month that the old free tier had for nothing.
    """

    part: str
    quantity: float
    unit: str
    usd: float
    free: float

    @property
    def cost(self) -> float:
        """Dollars a month at AWS's prices."""
        return self.quantity * self.usd

    @property
    def cost_in_old_free_tier(self) -> float:
        """Dollars a month in the first year of an account made before 15 July 2025."""
        return max(0.0, self.quantity - self.free) * self.usd


def read_prices() -> dict[str, Any]:
    """The prices, as prices.yaml has them."""
    prices: dict[str, Any] = yaml.safe_load(PRICES.read_text(encoding="utf-8"))
    return prices


def bill(settings: Mapping[str, Any], hours: float = HOURS_A_MONTH) -> list[Line]:
    """A month's bill.

    Args:
        settings: Terraform's variables.
        hours: For how many the instance runs; its address is paid for only then. The database always runs.
    """
    prices, machine, database = read_prices(), settings["instance_type"], settings["database_instance_class"]
    free = prices["old_free_tier"]
    hourly: list[tuple[str, str, float, dict[str, Any]]] = [
        (f"EC2 {machine}", "instance", hours, prices["instance"][machine]),
        ("its public IPv4 address", "public_ipv4", hours, prices["public_ipv4"]),
        (f"RDS {database}, one zone", "database", HOURS_A_MONTH, prices["database"][database]),
    ]
    stored: list[tuple[str, str, float, dict[str, Any]]] = [
        ("its disk, EBS gp3", "disk", settings["root_volume_gb"], prices["disk"]),
        ("its storage and as much backup", "database_storage", DATABASE_STORAGE_GB, prices["database_storage"]),
        ("S3 Standard (assumed)", "object_storage", ASSUMED_OBJECTS_GB, prices["object_storage"]),
    ]
    lines = {
        key: Line(part, quantity, unit, price["usd"], free[key])
        for unit, rows in (("hours", hourly), ("GB", stored))
        for part, key, quantity, price in rows
    }
    order = ("instance", "public_ipv4", "disk", "database", "database_storage", "object_storage")
    return [lines[key] for key in order]


def total(lines: list[Line]) -> float:
    """Dollars a month."""
    return sum(line.cost for line in lines)


def worst_credits(settings: Mapping[str, Any], hours: float = HOURS_A_MONTH) -> float:
    """Dollars a month for CPU beyond the credits, if every core were busy all the time; nothing with ``standard``."""
    if settings["cpu_credits"] == "standard":
        return 0.0
    usd: float = read_prices()["cpu_credits"]["usd"]
    return VCPUS[settings["instance_type"]] * (1 - BASELINE) * hours * usd


def render() -> str:
    """The table of terraform/README.md, in Markdown, with the settings' defaults."""
    settings, prices, used = read_defaults(), read_prices(), 100
    always, seldom = bill(settings), bill(settings, hours=used)
    rows = [
        f"| | a month | price | always on | instance on for {used} hours | old free tier, always on |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for line, less in zip(always, seldom, strict=True):
        unit = {"hours": "hour", "GB": "GB"}[line.unit]
        rows.append(
            f"| {line.part} | {line.quantity:g} {line.unit} | {line.usd:g} / {unit} "
            f"| {line.cost:.2f} | {less.cost:.2f} | {line.cost_in_old_free_tier:.2f} |"
        )
    old = sum(line.cost_in_old_free_tier for line in always)
    rows.append(f"| **together** | | | **{total(always):.2f}** | **{total(seldom):.2f}** | **{old:.2f}** |")
    day: datetime.date = prices["collected"]
    return "\n".join(
        [
            f"US dollars in {prices['region']}, collected on {day:%-d %B %Y}, without taxes.",
            "",
            *rows,
            "",
            *_sources(prices),
        ]
    )


def _sources(prices: Mapping[str, Any]) -> list[str]:
    rows = ["| price | seen at | today's, by AWS |", "|---|---|---|"]
    for name, entry in prices.items():
        if not isinstance(entry, dict) or name == "old_free_tier":
            continue
        for key, price in ({name: entry} if "usd" in entry else entry).items():
            rows.append(
                f"| {key.replace('_', ' ')}, {price['usd']:g} / {price['per']} | {price['seen']} | <{price['page']}> |"
            )
    return rows


def written(readme: str) -> str:
    """``readme`` with the table as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


def main() -> int:
    """Writes the table."""
    write_text(README, written(README.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
