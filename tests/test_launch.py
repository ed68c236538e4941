"""The launch scripts: what they run, when they start again, and that shellcheck has nothing to say."""

import os
import pathlib
import shutil
import subprocess

import pytest
import yaml

from shike_jax.cluster import peers, preemption

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
TPU = {"TPU_NAME": "n", "TPU_ZONE": "z", "TPU_TYPE": "v5litepod-16", "BUCKET": "b", "TPU_PAUSE": "0"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *command], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def scripts() -> list[pathlib.Path]:
    return sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", "-x", "-s", "bash", str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("arguments", [(), ("2", "2"), ("0", "1", "--"), ("2", "x", "--"), ("2", "2", "--config=x")])
def test_local_multiprocess_explains_itself(arguments):
    done = run("launch/local_multiprocess.sh", *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_local_multiprocess_starts_each_process_and_passes_its_failure_on(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/bash\n[[ $1 == -c ]] && echo 4321 && exit\necho "$XLA_FLAGS $NPROC $*"\n[[ $* != *process=1* ]]'
    )
    fake.chmod(0o755)
    done = run(
        "launch/local_multiprocess.sh", "3", "8", "--", "--config=c.py", PYTHON=str(fake), XLA_FLAGS="", NPROC=""
    )
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == [
        f" --xla_force_host_platform_device_count=8 16 -m shike_jax.main --coordinator=127.0.0.1:4321 --processes=3 "
        f"--process={i} --config=c.py"
        for i in range(3)
    ]


def test_one_process_for_each_gpu_of_a_node(tmp_path):
    """The second of two nodes with three GPUs each; the second process fails."""
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/bash\n"
        'echo "$CUDA_VISIBLE_DEVICES of $JAX_NUM_PROCESSES: $JAX_PROCESS_ID $JAX_COORDINATOR_ADDRESS $*"\n'
        "((CUDA_VISIBLE_DEVICES != 1)) || exit 76"
    )
    fake.chmod(0o755)
    node = {"NODES": "2", "NODE": "1", "GPUS": "3", "JAX_COORDINATOR_ADDRESS": "first:8476", "PYTHON": str(fake)}
    done = run("launch/node_gpus.sh", "--config=c.py", **node)
    assert done.returncode == 76
    threads = max(1, len(os.sched_getaffinity(0)) // 3)
    assert sorted(done.stdout.splitlines()) == [
        f"{i} of 6: {3 + i} first:8476 -m shike_jax.main --config.data.threads={threads} --config=c.py"
        for i in range(3)
    ]


FAKE_PYTHON = """#!/bin/bash
# A Python whose pip finds everything there or not, and which tells what it is asked for.
echo "$PWD: $*" >> "$CALLS"
[[ $* == *--dry-run* ]] && exit "${LACKS:-0}"
[[ $* == *"-m venv"* ]] && mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"
exit 0
"""


@pytest.fixture
def quickstart(tmp_path):
    """Runs the script from another folder than the project's; returns its status, errors and the calls of Python."""
    (tmp_path / "bin").mkdir()
    for path in (tmp_path / "bin" / "python3", tmp_path / "existing" / "bin" / "python"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)
    calls = tmp_path / "calls"

    def started(**environment):
        calls.write_text("")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if k not in ("SHIKE_VENV", "WORKDIR", "SHIKE_INSTALL")}
        done = subprocess.run(
            ["bash", str(LAUNCH / "quickstart.sh")],
            cwd=tmp_path,
            env={**inherited, "PATH": path, "CALLS": str(calls), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stderr, calls.read_text().splitlines()

    return started


def test_the_quickstart_s_directories_are_relative_to_where_the_user_stands(quickstart, tmp_path):
    status, errors, calls = quickstart(WORKDIR="my runs/a", SHIKE_VENV="new")
    assert status == 0, errors
    assert (tmp_path / "new" / "bin" / "python").exists()
    assert all(call.startswith(f"{ROOT}: ") for call in calls)
    assert f"--workdir={tmp_path}/my runs/a" in calls[-2] and calls[-1].endswith(f"summary {tmp_path}/my runs/a")
    assert sum("pip install" in call for call in calls) == 1
    status, _, calls = quickstart(WORKDIR="/tmp/absolute", SHIKE_VENV="new")
    assert status == 0 and "--workdir=/tmp/absolute" in calls[-2]
    assert not any("pip install" in call for call in calls)  # filled already


def test_an_environment_of_someone_else_s_is_not_filled_without_asking(quickstart, tmp_path):
    status, errors, calls = quickstart(SHIKE_VENV="existing", LACKS="1")
    assert status == 2 and "was not made by this project" in errors and "SHIKE_INSTALL=yes" in errors
    assert ["--dry-run" in call for call in calls] == [True]
    status, errors, calls = quickstart(SHIKE_VENV="existing")
    assert status == 0, errors
    assert not [call for call in calls if "pip install" in call and "--dry-run" not in call]
    assert os.listdir(tmp_path / "existing") == ["bin"]
    status, _, calls = quickstart(SHIKE_VENV="existing", LACKS="1", SHIKE_INSTALL="yes")
    assert status == 0
    assert [call for call in calls if "pip install" in call and "--dry-run" not in call]


# --- TPU pods -------------------------------------------------------------------------------------------------------


def test_tpu_dry_run_prints_the_commands_of_every_step(tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/bash\necho started >&2; exit 1")
    (tmp_path / "gcloud").chmod(0o755)
    done = run(
        "launch/tpu_pod.sh",
        "--dry-run",
        "all",
        "--",
        "--config=configs/x.py",
        "--workdir=runs/a b",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        **TPU,
    )
    assert done.returncode == 0, done.stderr
    assert "started" not in done.stderr
    verbs = [line.split()[5] for line in done.stderr.splitlines() if line.startswith("+ gcloud compute tpus tpu-vm")]
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    assert "--accelerator-type=v5litepod-16" in done.stderr and "--spot" in done.stderr
    assert done.stderr.count("--worker=all") == 4
    assert all("--zone=z" in line for line in done.stderr.splitlines() if "gcloud" in line)


FAKE_GCLOUD = """#!/bin/bash
verb=$4
call=$*
echo "$verb ${call//$'\\n'/ }" >> "$CALLS"
runs=$(grep -c '^ssh.*shike_jax.main' "$CALLS")
case $verb in
  describe) echo PREEMPTED ;;
  ssh) [[ $* != *shike_jax.main* || $runs -ge 3 ]] || exit "${STATUS:-1}" ;;
esac
"""


def test_tpu_slice_is_replaced_until_the_run_is_finished(tmp_path):
    (tmp_path / "gcloud").write_text(FAKE_GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("launch/tpu_pod.sh", "all", "--", "--config=c.py", PATH=path, CALLS=str(calls), **TPU)
    assert done.returncode == 0, done.stderr
    start = ["create", "scp", "ssh", "ssh", "ssh"]
    lost = ["describe", "delete"]
    assert [line.split()[0] for line in calls.read_text().splitlines()] == [
        *start,
        *lost,
        *start,
        *lost,
        *start,
        "delete",
    ]


def test_tpu_gives_up(tmp_path):
    (tmp_path / "gcloud").write_text("#!/bin/bash\n[[ $4 == describe ]] && echo READY && exit\n[[ $4 != ssh ]]")
    (tmp_path / "gcloud").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("launch/tpu_pod.sh", "run", "--", "--config=c.py", PATH=path, TPU_RESTARTS="2", **TPU)
    assert done.returncode == 1
    assert "started 3 times: giving up" in done.stderr


def test_a_mistake_is_not_started_again_on_a_tpu(tmp_path):
    (tmp_path / "gcloud").write_text(FAKE_GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("launch/tpu_pod.sh", "all", "--", "--config=c.py", PATH=path, CALLS=str(calls), STATUS="2", **TPU)
    assert done.returncode == 2 and "not started again" in done.stderr
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["create", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize("arguments", [(), ("fly",), ("run",), ("all", "--")])
def test_tpu_explains_itself(arguments):
    assert run("launch/tpu_pod.sh", *arguments, **TPU).returncode == 2


# --- SLURM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "restarts", "ends_with", "requeued"),
    [
        (0, 0, 0, False),
        (2, 0, 2, False),
        (1, 0, 1, False),
        (75, 0, 0, True),
        (76, 3, 0, True),
        (137, 0, 0, True),
        (75, 5, 75, False),
    ],
)
def test_slurm_queues_again_what_can_go_on(tmp_path, status, restarts, ends_with, requeued):
    (tmp_path / "srun").write_text(f'#!/bin/bash\necho "$*" > {tmp_path}/srun.args\nexit {status}')
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$*" > {tmp_path}/scontrol.args')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    done = run(
        "launch/gpu_slurm.sbatch",
        "--config=c.py",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHON="python",
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_JOB_NODELIST="n",
        SLURM_RESTART_COUNT=str(restarts),
        SHIKE_RESTARTS="5",
    )
    assert done.returncode == ends_with, done.stdout + done.stderr
    assert (tmp_path / "srun.args").read_text().strip().endswith("python -m shike_jax.main --config=c.py")
    assert (tmp_path / "scontrol.args").exists() == requeued


# --- Kubernetes -----------------------------------------------------------------------------------------------------


def test_pod_file_is_consistent():
    service, job = yaml.safe_load_all((LAUNCH / "gpu_pod.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (main,) = pod["containers"]
    environment = {item["name"]: item.get("value") for item in main["env"]}
    # Pods are named JOB-INDEX, and found through the headless service that is their subdomain.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    port = service["spec"]["ports"][0]["port"]
    assert environment["JAX_COORDINATOR_ADDRESS"] == f"{name}-0.{pod['subdomain']}:{port}"
    assert spec["completions"] == spec["parallelism"] == int(environment["NODES"])
    assert int(environment["GPUS"]) == main["resources"]["limits"]["nvidia.com/gpu"]
    assert main["command"] == ["bash", "launch/node_gpus.sh"] and (ROOT / main["command"][1]).is_file()
    assert pod["restartPolicy"] == "Never"  # failure policies demand it
    rules = {
        tuple(r["onExitCodes"]["values"]): r["action"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r
    }
    assert rules == {(2,): "FailJob", (preemption.EXIT_STATUS, peers.EXIT_STATUS): "Ignore"}
    assert {r["onExitCodes"]["containerName"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r} == {
        "main"
    }
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in main["volumeMounts"]}
