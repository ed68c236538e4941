"""The watch over other processes, against a stand-in for JAX's coordination service."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from shike_jax.cluster import peers
from shike_jax.errors import UserError


class Service:
    """The key-value store of the coordination service; `beat` keeps other processes alive."""

    def __init__(self) -> None:
        self.store, self.answers = {}, True

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if key in self.store and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.store[key] = value

    def key_value_try_get(self, key: str) -> str:
        while not self.answers:
            time.sleep(0.05)
        if key not in self.store:
            raise RuntimeError("NOT_FOUND")
        return self.store[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.store.items() if key.startswith(prefix)]

    def beat(self, process: int, over: threading.Event) -> None:
        def run() -> None:
            count = 0
            while not over.wait(0.1):
                count += 1
                self.store[f"shike_jax/alive/{process}"] = str(count)

        threading.Thread(target=run, daemon=True).start()


class Exit(BaseException):
    """Stands in for the end of the process."""


@pytest.fixture
def job(monkeypatch):
    """Makes this process number `index` of three; returns (service, exit statuses, end of the beating)."""
    service, statuses, over = Service(), [], threading.Event()

    def leave(status: int) -> None:
        statuses.append(status)
        over.set()
        raise Exit

    def make(index: int) -> tuple[Service, list[int], threading.Event]:
        monkeypatch.setattr(jax, "process_index", lambda: index)
        return service, statuses, over

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(peers.coordination.distributed.global_state, "client", service)
    monkeypatch.setattr(peers.os, "_exit", leave)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    yield make
    over.set()


def test_main_process_names_the_silent_one(job, capsys):
    service, statuses, over = job(0)
    service.beat(1, over)
    with peers.watched(2):
        began = time.time()
        assert over.wait(15)
        assert time.time() - began > 2
    assert statuses[0] == peers.EXIT_STATUS == 76
    assert "[process 0] error: process 2 has given no sign of life for 2 s" in capsys.readouterr().err
    status, process, reason = json.loads(service.store["shike_jax/stopped"])  # for process 1 to read
    assert (status, process) == (76, 0) and "process 2" in reason


def test_others_watch_the_main_process_and_need_no_answer(job, capsys):
    service, statuses, over = job(1)
    service.answers = False
    with peers.watched(2):
        assert over.wait(15)
    assert statuses[0] == 76
    assert "process 0 (the coordinator) has given no sign of life for 2 s" in capsys.readouterr().err


def test_a_coordinator_that_is_gone_is_not_waited_for(job, monkeypatch, capsys):
    """Its port refuses connections: certain at once, whatever the time limit; a port that answers is believed."""
    service, statuses, over = job(1)
    service.answers = False
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(peers.coordination.distributed.global_state, "coordinator_address", address)
        with peers.watched(600):
            assert not over.wait(5)
            listening.close()
            assert over.wait(15)
    assert statuses[0] == 76
    assert f"process 0 (the coordinator) is gone: nothing listens at {address}" in capsys.readouterr().err


@pytest.mark.parametrize(("acts", "status"), [(True, 76), (False, -signal.SIGABRT)])
def test_an_abort_leaves_time_to_act(acts, status):
    """JAX's service aborts when the coordinator dies; another thread may still end the process in its own way."""
    lines = ["import ctypes, os, threading", "from shike_jax.cluster import peers", "peers._delay_aborts()"]
    lines += ["threading.Timer(1, lambda: os._exit(76)).start()"] if acts else []
    began = time.time()
    code = "\n".join([*lines, "ctypes.CDLL(None).abort()"])
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == status
    assert acts or time.time() - began > 5


def test_nobody_is_accused_while_all_are_alive(job):
    service, statuses, over = job(0)
    for process in (1, 2):
        service.beat(process, over)
    with peers.watched(2):
        assert not over.wait(5)
    assert statuses == []


def test_reason_of_another_process_is_passed_on(job, capsys):
    service, statuses, over = job(1)
    service.beat(0, over)
    service.store["shike_jax/stopped"] = json.dumps([2, 2, "no such file x"])
    with peers.watched(60):
        assert over.wait(15)
    assert statuses[0] == 2
    assert "process 2 stopped: no such file x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("bad\nthing"), 2, "error: bad thing"),
        (
            jax.errors.JaxRuntimeError("Gloo all-reduce failed"),
            76,
            "lost contact with another process (Gloo all-reduce",
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1, "Traceback"),
        (KeyError("k"), 1, "Traceback"),
    ],
)
def test_failures_are_left_for_the_others(job, capsys, error, status, says):
    service, statuses, _ = job(1)
    with pytest.raises(Exit), peers.watched(60):
        raise error
    assert statuses == [status]
    assert says in capsys.readouterr().err
    assert json.loads(service.store["shike_jax/stopped"])[:2] == [status, 1]


def test_one_process_is_not_watched(monkeypatch):
    monkeypatch.setattr(peers, "_Watch", None)
    with pytest.raises(UserError), peers.watched(1):
        raise UserError("passes through")
