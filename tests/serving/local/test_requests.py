"""Requests read by the model made from a signature: what counts as a duplicate key, and what stays exact."""

import json

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from churn_lib.serving.local.requests import InvalidRequest, read, reader_for


def reader(*columns: ColSpec, rows: int = 10_000):
    return reader_for(ModelSignature(Schema(list(columns))), rows)


TWO = reader(ColSpec(DataType.double, "age"), ColSpec(DataType.double, "visits"))
TEXT = reader(ColSpec(DataType.string, "name"), ColSpec(DataType.long, "model_config", False))


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": [{"age": 1, "visits": 2, "age": 1}]}',
        '{"inputs": {"age": 1, "visits": 2, "age": 1}}',
        '{"inputs": [{"age": 1, "visits": 2}], "inputs": [{"age": 1, "visits": 2}]}',
        '{"dataframe_split": {"columns": ["age", "visits"], "data": [[1, 2]], "data": [[1, 2]]}}',
        '{"inputs": [{"age": 1, "visits": 2}], "params": {"a": {"b": 1, "b": 2}}}',
        '{"inputs": [{"age": 1, "visits": 2}], "params": {"a": [{"b": 1, "\\u0062": 2}]}}',
    ],
)
def test_a_duplicate_key_is_refused_at_any_depth(body: str) -> None:
    with pytest.raises(InvalidRequest, match=r'key "\w+" is a duplicate in its object'):
        read(TWO, body.encode())


def test_a_colon_in_a_text_is_no_duplicate() -> None:
    body = {"inputs": [{"name": "10:30"}, {"name": ":::"}], "client_request_id": "a:b"}
    found = read(TEXT, json.dumps({**body, "params": {"a": {"b": ":"}}}).encode())
    assert found.rows == [["10:30", None], [":::", None]]
    assert (found.client_request_id, found.params) == ("a:b", {"a": {"b": ":"}})


def test_a_column_may_have_a_name_of_pydantics_own() -> None:
    found = read(TEXT, b'{"inputs": {"name": "a", "model_config": [3, null]}}')
    assert found.rows == [["a", 3], ["a", None]]


def test_numbers_are_read_to_the_last_bit() -> None:
    values = np.random.default_rng(0).normal(0, 1, (500, 2)) * 10.0 ** np.arange(-250, 250)[:, None]
    body = {"dataframe_split": {"columns": ["visits", "age"], "data": values[:, ::-1].tolist()}}
    assert (read(TWO, json.dumps(body).encode()).matrix == values).all()


def test_a_thousand_wrong_cells_are_named_in_one_short_line() -> None:
    body = {"inputs": {"age": ["x"] * 5_000, "visits": [None] * 5_000}}
    with pytest.raises(InvalidRequest) as refused:
        read(TWO, json.dumps(body).encode())
    assert str(refused.value).startswith('row 0, column age: "x"; a number is needed; row 0, ')
    assert str(refused.value).count("is needed") == 5
    assert str(refused.value).endswith("; and more")


@pytest.mark.parametrize(
    ("kind", "fits", "not_any_more"),
    [
        (DataType.integer, 2**31 - 1, "2147483648; a integer has 32 bits"),
        (DataType.long, 2**63 - 1, "9223372036854775808; a long has 64 bits"),
    ],
)
def test_a_whole_number_has_the_bits_of_its_type(
    kind: DataType, fits: int, not_any_more: str
) -> None:
    whole = reader(ColSpec(kind, "visits"))
    assert read(whole, b'{"inputs": {"visits": %d}}' % fits).rows == [[fits]]
    with pytest.raises(InvalidRequest, match=f"row 0, column visits: {not_any_more}"):
        read(whole, b'{"inputs": {"visits": %d}}' % (fits + 1))
