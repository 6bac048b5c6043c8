"""One preprocessing for training and serving: the ids are transformers' own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from levi_serving.errors import BundleError, RowError, UsageError
from levi_serving.rows.preprocess import Preprocessing, Preprocessor
from levi_serving.rows.text import TextSettings

MESSY = [
    "Café — naïve!",
    "한국어 텍스트",
    "tabs\tand\nlines",
    "x" * 100_000,
    "[SEP] [MASK]",
    "emoji 🎉🎉",
    "a\x00b",
    "ﬁ ½",
]


@pytest.fixture(scope="module")
def preprocessor(run):
    return Preprocessor(run.folder, run.preprocessing)


@pytest.fixture(scope="module")
def reference(backbone):
    return AutoTokenizer.from_pretrained(backbone)


def ids(reference, text, length):
    return reference(text, truncation=True, max_length=length, padding=False)["input_ids"]


@pytest.mark.parametrize("text", MESSY)
def test_messy_text_has_the_ids_of_transformers(preprocessor, reference, text):
    assert preprocessor.encode([text]).tokens.row(0).tolist() == ids(reference, text, 48)


@given(st.text(min_size=1).filter(lambda text: not text.isspace()))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_ids_of_transformers(preprocessor, reference, text):
    assert preprocessor.encode([text]).tokens.row(0).tolist() == ids(reference, text, 48)


def test_padding_and_truncation_inside_the_file_have_no_effect(preprocessor, backbone):
    assert '"Fixed":40' in (backbone / "tokenizer.json").read_text().replace(" ", "")
    own = Preprocessor(backbone, preprocessor.settings)
    text = "the kettle was very good for the tent"
    assert own.encode([text]).tokens.row(0).tolist() == preprocessor.encode([text]).tokens.row(0).tolist()
    assert len(own.encode([text]).tokens.row(0)) == 10


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (None, "found NoneType"),
        (3, "found int"),
        ({"text": None}, "'text' is missing"),
        ({"text": 4.5}, "holds 4.5 (float)"),
        ({"txt": "good"}, "no column 'text'; found 'txt'"),
        ({}, "found no columns"),
        ("bad \udcff byte", "invalid Unicode at character 4"),
    ],
)
def test_rows_that_cannot_be_used(preprocessor, row, says):
    bad = {}
    assert len(preprocessor.encode(["good", row, "bad"], bad=bad)) == 2
    assert list(bad) == [1]
    assert says in bad[1]
    with pytest.raises(RowError) as caught:
        preprocessor.encode(["good", row])
    assert caught.value.row == 1
    assert says in str(caught.value)


def test_no_rows(preprocessor):
    assert len(preprocessor.encode([])) == 0


@pytest.mark.parametrize("length", [3, 4, 17, 48])
def test_text_of_an_exact_length(preprocessor, texts, length):
    assert len(preprocessor.encode([preprocessor.tokenization.text_of(length, texts)]).tokens.row(0)) == length


@pytest.mark.parametrize("length", [1, 2, 49])
def test_lengths_that_no_text_has(preprocessor, texts, length):
    with pytest.raises(ValueError, match="no text of exactly"):
        preprocessor.tokenization.text_of(length, texts)


def test_not_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="no tokenizer file"):
        Preprocessor(tmp_path, Preprocessing(text=TextSettings()))


def test_a_tables_columns_for_the_models():
    settings = Preprocessing(text=TextSettings(pair="second"))
    assert settings.columns_in({"text": "review"}) == {"text": "review", "second": "second"}
    with pytest.raises(UsageError, match="`columns` has 'photo', but this model reads 'text', 'second'"):
        settings.columns_in({"photo": "x"})
