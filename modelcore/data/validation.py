"""Validation of a corpus with Great Expectations: rules over the table of facts, and Data Docs of the outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from modelcore.data.facts import COLUMNS, OVERLAP
from modelcore.data.sources import MAX_DOCUMENT_BYTES
from modelcore.loading import loading

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3
MAX_OVERLAP = 0.2  # of a held-out document's lines; quotations and boilerplate stay below it


@dataclass(frozen=True)
class Fault:
    """Why a document is bad.

    Attributes:
        reason: The rule's name, for example ``duplicate``.
        detail: The particulars; empty where the reader's own (``Record.detail``) say it.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Check:
    """The outcome of one expectation.

    Attributes:
        reason: The rule's name; for those over the whole table, ``table``.
        title: What is expected, in words.
        passed: Whether every document, or the table, met it.
        checked: Documents that it could be held against.
        failed: Documents that did not meet it.
        examples: Names of the first few of them.
    """

    reason: str
    title: str
    passed: bool
    checked: int
    failed: int
    examples: tuple[str, ...]

    def plus(self, further: Check) -> Check:
        """The outcome over the documents of both."""
        return replace(
            self,
            passed=self.passed and further.passed,
            checked=self.checked + further.checked,
            failed=self.failed + further.failed,
            examples=(*self.examples, *further.examples)[:EXAMPLES],
        )


@dataclass
class Verdict:
    """What Great Expectations found out about some documents' facts.

    Attributes:
        name: What the documents are, for example ``training corpus``.
        documents: How many there are.
        checks: Outcome of each expectation.
        faults: The faults of each bad document, by its name.
    """

    name: str
    documents: int = 0
    checks: list[Check] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)

    def add(self, part: Verdict) -> None:
        """Adds what was found out about further ones of these documents."""
        self.documents += part.documents
        pairs = zip(self.checks, part.checks, strict=True)
        self.checks = [check.plus(further) for check, further in pairs] if self.checks else part.checks
        self.faults |= part.faults


@dataclass(frozen=True)
class _Rule:
    reason: str
    title: str
    expectation: Any
    detail: str = ""  # format string of the offending value


@contextlib.contextmanager
def _without_spark_connect() -> Iterator[None]:
    """Keeps ``pyspark.sql.connect`` from being imported, which Great Expectations can do without.

    Where the main program is no file (``python -c``, pytest-xdist) and gRPC is not installed it takes the process for
    a doctest, and ends it with status 0.
    """
    name = "pyspark.sql.connect"
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    held = modules.setdefault(name, None)  # importing what is None is an ImportError
    try:
        yield
    finally:
        if held is None:
            del modules[name]


class Validator:
    """An ephemeral Great Expectations context: nothing is kept but the Data Docs, nothing is sent anywhere.

    Attributes:
        verdicts: What was found out so far, by name.
    """

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when great_expectations is imported
        with loading(), _without_spark_connect(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of pyspark, which it imports where that is installed
            import great_expectations as gx

        self._context = gx.get_context(mode="ephemeral")
        self._context.enable_analytics(False)
        self._context.variables.progress_bars = {"globally": False}
        self._data = self._context.data_sources.add_pandas("documents")
        self._checkpoints: dict[str, Any] = {}
        self.verdicts: dict[str, Verdict] = {}

    def validate(self, name: str, facts: pd.DataFrame) -> Verdict:
        """Holds a table of facts against the rules.

        Args:
            name: How the documents are called in the Data Docs. With a name that came before, the table tells of
                further ones of these documents, and has a page of its own.
            facts: What :func:`~modelcore.data.facts.collect_facts` gave; with its column ``training_overlap``, the
                rule about contamination applies too.

        Returns:
            What was found out from this table.

        Raises:
            RuntimeError: If an expectation could not be computed.
        """
        rules = _rules(list(facts.columns))
        if name not in self._checkpoints:
            self._checkpoints[name] = self._checkpoint(name, rules)
        with _quiet():
            run = self._checkpoints[name].run(batch_parameters={"dataframe": facts})
        (result,) = run.run_results.values()
        verdict = Verdict(name, len(facts))
        by_reason = {rule.reason: rule for rule in rules if rule.reason != "table"}
        for outcome in result.results:
            if outcome.exception_info.get("raised_exception"):
                raise RuntimeError(f"{outcome.expectation_config.type}: {outcome.exception_info['exception_message']}")
            meta = outcome.expectation_config.meta
            bad = outcome.result.get("unexpected_index_list") or []
            column = outcome.expectation_config.kwargs.get("column")
            verdict.checks.append(
                Check(
                    reason=meta["reason"],
                    title=meta["title"],
                    passed=bool(outcome.success),
                    checked=outcome.result.get("element_count", len(facts)) - outcome.result.get("missing_count", 0),
                    failed=len(bad),
                    examples=tuple(row["document"] for row in bad[:EXAMPLES]),
                )
            )
            for row in bad:
                detail = by_reason[meta["reason"]].detail.format(row[column])
                verdict.faults.setdefault(row["document"], []).append(Fault(meta["reason"], detail))
        self.verdicts.setdefault(name, Verdict(name)).add(verdict)
        return verdict

    def _checkpoint(self, name: str, rules: list[_Rule]) -> Any:
        import great_expectations as gx

        suite = self._context.suites.add(gx.ExpectationSuite(name=name, expectations=[r.expectation for r in rules]))
        batch = self._data.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all documents")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[self._context.validation_definitions.add(definition)],
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["document"],
                "return_unexpected_index_query": False,
                "include_unexpected_rows": False,
            },
        )
        return self._context.checkpoints.add(checkpoint)

    def write_docs(self, folder: Path) -> None:
        """Writes Data Docs, a static site that begins at ``index.html``, about everything validated so far."""
        site = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        }
        with _quiet():
            self._context.add_data_docs_site("data_docs", site)
            self._context.build_data_docs(site_names=["data_docs"])


def _rules(columns: list[str]) -> list[_Rule]:
    from great_expectations import expectations as gxe

    def rule(reason: str, title: str, kind: Any, detail: str = "", **arguments: Any) -> _Rule:
        return _Rule(reason, title, kind(**arguments, meta={"reason": reason, "title": title}), detail)

    wanted = list(COLUMNS) + [OVERLAP] * (OVERLAP in columns)
    rules = [
        rule("table", "the table has its columns", gxe.ExpectTableColumnsToMatchOrderedList, column_list=wanted),
        rule("table", "there is a document", gxe.ExpectTableRowCountToBeBetween, min_value=1),
        rule(
            "schema",
            "every row is a record with a text",
            gxe.ExpectColumnValuesToBeInSet,
            column="format",
            value_set=["text"],
        ),
        rule("encoding", "every text is UTF-8", gxe.ExpectColumnValuesToBeInSet, column="valid_utf8", value_set=[True]),
        rule(
            "nul_bytes",
            "no text has NUL bytes",
            gxe.ExpectColumnValuesToBeBetween,
            "{} NUL bytes",
            column="nul_bytes",
            max_value=0,
        ),
        rule(
            "length",
            f"no line or text is longer than {MAX_DOCUMENT_BYTES:,} bytes",
            gxe.ExpectColumnValuesToBeBetween,
            column="bytes",
            max_value=MAX_DOCUMENT_BYTES,
        ),
        rule(
            "empty",
            "no text is empty or blank",
            gxe.ExpectColumnValuesToBeInSet,
            "nothing but white space",
            column="blank",
            value_set=[False],
        ),
        rule(
            "duplicate",
            "no text comes twice",
            gxe.ExpectColumnValuesToBeNull,
            "same text as {}",
            column="duplicate_of",
        ),
    ]
    if OVERLAP in columns:
        rules.append(
            rule(
                "contamination",
                f"at most {MAX_OVERLAP:.0%} of a held-out text stands in the training corpus",
                gxe.ExpectColumnValuesToBeBetween,
                "{:.0%} of its lines stand in the training corpus",
                column=OVERLAP,
                max_value=MAX_OVERLAP,
            )
        )
    return rules


class _quiet(warnings.catch_warnings):  # noqa: N801  used like a function
    """Keeps the library's own log lines and deprecation warnings out of the stage's log."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("great_expectations").setLevel(logging.ERROR)
