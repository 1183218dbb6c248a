"""A team's own suites run for real on the metadata table."""

import json

import numpy as np
import pytest
from PIL import Image

from promotion_gate.cli import main
from promotion_gate.core.errors import UsageError
from promotion_gate.validation.suites import load_gx_suite, load_pandera

pytestmark = pytest.mark.integration


def gx(kind, **kwargs):
    return {"type": kind, "kwargs": kwargs}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "signs" / ("stop", "yield")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8 + 4 * (i == 5), 3), dtype=np.uint8)).save(path)
    return tmp_path / "signs"


def states(tmp_path, folder, *options):
    code = main(["validate", str(folder), *map(str, options), "--json", str(tmp_path / "v.json"), "--quiet"])
    report = json.loads((tmp_path / "v.json").read_text())
    return code, {one["name"]: one for one in report["expectations"]}


class TestGreatExpectations:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("great_expectations", reason="the extra gx is not installed")

    def suite(self, tmp_path, *expectations, **more):
        path = tmp_path / "suite.json"
        path.write_text(json.dumps({"name": "images", "expectations": list(expectations), **more}))
        return path

    def test_each_expectation_is_judged(self, tmp_path, folder):
        suite = self.suite(
            tmp_path,
            gx("expect_column_values_to_not_be_null", column="sha256"),
            gx("expect_column_values_to_be_between", column="width", min_value=8, max_value=8),
            gx("expect_table_row_count_to_equal", value=12),
            gx("expect_table_row_count_to_equal", value=13),
            gx("expect_column_values_to_be_in_set", column="no such column", value_set=[1]),
            gx("expect_nonsense", column="width"),
        )
        code, found = states(tmp_path, folder, "--gx-suite", suite)
        assert code == 3
        told = [(name.split(".")[1], one["state"]) for name, one in found.items() if name.startswith("gx")]
        assert told == [
            ("1", "met"),
            ("2", "not met"),
            ("3", "met"),
            ("4", "not met"),
            ("5", "could not be examined"),
            ("6", "could not be examined"),
        ]
        between = found["gx.2.expect_column_values_to_be_between"]
        assert [row["id"] for row in between["rows"]] == ["yield/5.png"]
        assert between["count"] == 1

    def test_a_suite_that_is_met(self, tmp_path, folder):
        suite = self.suite(tmp_path, gx("expect_column_values_to_be_unique", column="pixels_sha256"))
        assert states(tmp_path, folder, "--gx-suite", suite)[0] == 0

    def test_a_suite_that_the_library_saved(self, tmp_path, folder):
        import great_expectations as library

        made = library.ExpectationSuite(name="saved")
        made.add_expectation(
            library.expectations.ExpectColumnValuesToBeInSet(column="mode", value_set=["RGB"])
        )
        path = tmp_path / "saved.json"
        path.write_text(json.dumps(made.to_json_dict()))
        assert states(tmp_path, folder, "--gx-suite", path)[0] == 0

    @pytest.mark.parametrize(
        ("expectation", "why"),
        [
            (
                gx(
                    "expect_column_values_to_not_be_null",
                    column="id",
                    row_condition="@__import__('os').system('true')",
                    condition_parser="pandas",
                ),
                "evaluate as code",
            ),
            (gx("expect_x", row_condition={"type": "pass_through", "pass_through_filter": "1"}), "as code"),
            (gx("unexpected_rows_expectation", unexpected_rows_query="SELECT 1"), "query"),
        ],
    )
    def test_code_in_a_suite_is_refused(self, tmp_path, expectation, why):
        with pytest.raises(UsageError, match=why):
            load_gx_suite(self.suite(tmp_path, expectation))

    def test_a_suite_without_expectations_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="no list of expectations"):
            load_gx_suite(self.suite(tmp_path))


class TestPandera:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("pandera", reason="the extra pandera is not installed")

    def schema(self, tmp_path, **columns):
        from pandera.pandas import Column, DataFrameSchema

        path = tmp_path / "schema.yaml"
        made = {name: Column(dtype, checks, nullable=True) for name, (dtype, checks) in columns.items()}
        DataFrameSchema(made).to_yaml(path)
        return path

    def test_a_schema_that_is_met(self, tmp_path, folder):
        from pandera.pandas import Check

        path = self.schema(tmp_path, width=(None, Check.in_range(8, 12)), mode=(None, Check.isin(["RGB"])))
        code, found = states(tmp_path, folder, "--pandera", path)
        assert (code, found["pandera"]["state"]) == (0, "met")
        assert "2 columns with 2 checks" in found["pandera"]["summary"]

    def test_what_fails_names_its_rows(self, tmp_path, folder):
        from pandera.pandas import Check

        path = self.schema(
            tmp_path, width=(None, Check.less_than_or_equal_to(8)), nothing=(None, Check.isin([1]))
        )
        code, found = states(tmp_path, folder, "--pandera", path)
        assert code == 3
        failed = {name: one for name, one in found.items() if name.startswith("pandera")}
        assert len(failed) == 2
        (wide,) = [one for name, one in failed.items() if "width" in name]
        assert [row["id"] for row in wide["rows"]] == ["yield/5.png"]

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("columns: {width: {checks: [{options: {check_name: mro}}]}}", "does not have"),
            ("columns: {width: {checks: {register_backend: 1}}}", "does not have"),
            ("columns: {width: {dtype: int64}}\ndrop_invalid_rows: true", "dropped"),
            ("!!python/object/apply:os.system ['true']", "not YAML"),
            ("columns: {}", "not a pandera schema"),
            ("- 1", "not a pandera schema"),
            ("columns: {width: {dtype: 'no.such.type'}}", "not a pandera schema"),
        ],
    )
    def test_what_is_no_plain_schema_is_refused(self, tmp_path, text, why):
        path = tmp_path / "schema.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=why):
            load_pandera(path)
