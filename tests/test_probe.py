"""The probe tells the truth about batches, and can be held for a closer look."""

import threading

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from conftest import wait_for

from helpers import probe


@pytest.fixture(scope="module")
def lab():
    lab = probe.Lab()
    yield lab
    lab.stop()
    assert not lab.folder.exists()


@pytest.fixture
def client(lab):
    with grpcclient.InferenceServerClient(lab.triton.grpc) as client:
        yield client


def ask(client, rows=1, model="probe"):
    tensor = grpcclient.InferInput("X", [rows, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((rows, 1), np.float32))
    return client.infer(model, [tensor]).as_numpy("TOLD").tolist()


def in_threads(times, *arguments):
    threads = [threading.Thread(target=ask, args=arguments) for _ in range(times)]
    for thread in threads:
        thread.start()
    return threads


def test_it_tells_how_many_ran_together_and_in_which_execution(lab, client):
    lab.configure()
    assert ask(client, 3) == [[3, 1]] * 3
    assert ask(client, 1) == [[1, 2]]
    assert lab.statistics() == (4, 2, {1: 1, 3: 1})


def test_each_configure_begins_anew(lab, client):
    for _ in range(2):
        lab.configure(max_batch_size=2)
        assert ask(client, 2) == [[2, 1]] * 2
        assert lab.statistics() == (2, 1, {2: 1})


def test_it_is_held_until_the_block_ends(lab, client, capsys):
    lab.configure()
    with lab.busy():
        waiting = in_threads(2, client)
        lab.until(running=1, pending=2)
        assert lab.statistics() == (0, 0, {})
    for thread in waiting:
        thread.join()
    assert capsys.readouterr().out == "probe: 1 running, 2 pending\n"
    assert lab.gauges() == (0, 0)
    assert lab.statistics() == (3, 3, {1: 3})


def test_a_mistake_in_the_block_lets_it_go(lab, client):
    lab.configure()
    with pytest.raises(KeyError), lab.busy():
        raise KeyError("a mistake")
    assert not lab.hold.exists()
    assert ask(client) == [[1, 2]]


def test_what_an_experiment_left_is_waited_for(lab, client):
    lab.configure()
    with lab.busy():
        left = in_threads(8, client)
        assert wait_for(lambda: lab.gauges() == (1, 8))
    lab.configure()
    assert lab.statistics() == (0, 0, {})
    for thread in left:
        thread.join()


def test_a_wait_in_vain_says_what_it_found(lab):
    lab.configure()
    with pytest.raises(TimeoutError, match="probe: 0 running, 0 pending, not 1 and 2"):
        lab._wait(1, 2, "probe", seconds=0.2)


def test_the_rival_and_the_models_of_the_course_can_be_configured(lab, client):
    lab.configure("rival")
    assert ask(client, 2, "rival") == [[2, 1]] * 2
    lab.configure("simple", max_batch_size=3)
    config = client.get_model_config("simple", as_json=True)["config"]
    assert (config["max_batch_size"], len(config["input"])) == (3, 2)


def test_the_fixed_model_is_refused_until_its_config_is_mended(lab, client):
    with pytest.raises(grpcclient.InferenceServerException, match="set it to 0"):
        client.load_model("fixed")
