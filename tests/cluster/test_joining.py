"""Which jobs are joined: what a launcher or a metadata server says, and how often JAX is asked to join then.

Each case runs in a process of its own, with a made-up metadata server on the loopback address where it needs one.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASE = """
import http.server, json, os, sys, threading
answers, variables, in_tpu_vm, arguments = json.loads(sys.argv[1])
class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        value = answers.get(self.path.rsplit("/", 1)[-1])
        self.send_response(200 if value else 404)
        self.end_headers()
        self.wfile.write((value or "").encode())
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["GCE_METADATA_IP"] = f"127.0.0.1:{server.server_address[1]}"
import jax
from jax._src.clusters import cloud_tpu_cluster
os.environ.pop("TPU_SKIP_MDS_QUERY", None)
os.environ.update(variables)
cloud_tpu_cluster.running_in_cloud_tpu_vm = in_tpu_vm
calls = []
jax.distributed.initialize = lambda *given, **_: calls.append(given)
from shike_jax.cluster import joining
from shike_jax.errors import UserError
try:
    joining.start_distributed(*arguments)
    print(json.dumps(["joined", len(calls)]))
except UserError as error:
    print(json.dumps(["refused", str(error)]))
"""
TPU = {"agent-worker-number": "0", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n"}
POD = TPU | {"worker-network-endpoints": "127.0.0.1,127.0.0.2"}
ONE_HOST = TPU | {"worker-network-endpoints": "127.0.0.1"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
SLURM |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0", "MEGASCALE_COORDINATOR_ADDRESS": "h0"}


def start(answers=None, variables=None, in_tpu_vm=False, arguments=(None, None, None, 60.0)):
    named = ("SLURM", "OMPI", "PMI", "TPU_", "MEGASCALE", "JAX_COORD", "JAX_NUM_P", "JAX_PROCESS", "KUBERNETES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    case = json.dumps([answers or {}, variables or {}, in_tpu_vm, arguments])
    command = [sys.executable, "-c", CASE, case]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "joined"),
    [
        ({}, 0),
        ({"answers": POD, "in_tpu_vm": True}, 1),
        ({"answers": ONE_HOST, "in_tpu_vm": True}, 0),
        ({"answers": POD, "in_tpu_vm": True, "arguments": (None, None, None, 60.0, "off")}, 0),
        ({"answers": ONE_HOST, "in_tpu_vm": True, "arguments": (None, None, None, 60.0, "on")}, 1),
        ({"variables": {"TPU_WORKER_HOSTNAMES": "h0,h1", "TPU_WORKER_ID": "0"}, "in_tpu_vm": True}, 1),
        ({"variables": {"TPU_WORKER_HOSTNAMES": "h0", **SLICES}, "in_tpu_vm": True, "answers": TPU}, 1),
        ({"variables": SLURM}, 1),
        ({"variables": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}}, 0),
        ({"arguments": ("127.0.0.1:1", 2, 0, 60.0)}, 1),
    ],
    ids=["alone", "pod", "one host", "pod, off", "one host, on", "gke", "slices", "slurm", "allocation", "explicit"],
)
def test_jobs_are_joined(case, joined):
    assert start(**case) == ["joined", joined]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"arguments": (None, None, None, 60.0, "on")}, "JAX finds no job around this process; expected --coordinator"),
        ({"arguments": ("h:1", 2, 0, 60.0, "off")}, "--distributed=off with the coordinator h:1"),
        (
            {"variables": {"OMPI_COMM_WORLD_SIZE": "4"}},
            "Open MPI started 4 processes (OMPI_COMM_WORLD_SIZE), which JAX",
        ),
        ({"variables": {"SLURM_STEP_NUM_TASKS": "2"}}, "SLURM started 2 processes"),
        ({"answers": TPU | {"worker-network-endpoints": "a:b"}, "in_tpu_vm": True}, "could not be read (unsupported"),
    ],
    ids=["nothing to join", "off", "unknown MPI", "incomplete SLURM", "metadata"],
)
def test_what_cannot_be_joined_is_said(case, words):
    how, text = start(**case)
    assert how == "refused" and words in text
