"""The launch scripts: what they run, when they start again, and that shellcheck has nothing to say."""

import concurrent.futures
import math
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tomllib

import pytest
import yaml

from shike_jax.cluster import peers, preemption

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
TPU = {"TPU_NAME": "n", "TPU_ZONE": "z", "TPU_TYPE": "v5litepod-16", "BUCKET": "b", "TPU_PAUSE": "0"}
RUN = ("--config=c.py", "--workdir=gs://b/a b")


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
        f" --xla_force_host_platform_device_count=8 16 -m shike_jax train --coordinator=127.0.0.1:4321 --processes=3 "
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
        f"{i} of 6: {3 + i} first:8476 -m shike_jax train --config.data.threads={threads} --config=c.py"
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"GPUS": "0"}, "GPUS=0: expected at least one GPU"),
        ({"GPUS": "3", "CUDA_VISIBLE_DEVICES": "4,5"}, "GPUS=3: expected at most the 2 of CUDA_VISIBLE_DEVICES=4,5"),
        ({"GPUS": "1", "NODES": "2"}, "NODES=2: expected NODE too"),
    ],
)
def test_a_node_that_cannot_be_meant(given, said):
    done = run("launch/node_gpus.sh", **given)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr


def test_a_user_s_choice_of_gpus_is_kept(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\necho "$CUDA_VISIBLE_DEVICES of $JAX_NUM_PROCESSES"')
    fake.chmod(0o755)
    done = run("launch/node_gpus.sh", CUDA_VISIBLE_DEVICES="4,5", PYTHON=str(fake))
    assert sorted(done.stdout.splitlines()) == ["4 of 2", "5 of 2"]


FAKE_PYTHON = """#!/bin/bash
# A Python whose pip finds everything there or not, and which tells what it is asked for.
[[ $1 == -c ]] && set -- -c version
echo "$PWD: $*" >> "$CALLS"
[[ $* == *--dry-run* ]] && exit "${LACKS:-0}"
[[ $1 == -c ]] && echo "${PYTHON_IS:-3.12}" && exit
[[ $* == *"-m venv"* && -n ${VENV_FAILS:-} ]] && mkdir -p "${!#}/lib" && exit 1
[[ $* == *"pip install"* ]] && sleep "${SLOW:-0}"
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
        if "SLOW" not in environment:
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
    status, _, calls = quickstart(WORKDIR="gs://bucket/run", SHIKE_VENV="new")
    assert status == 0 and "--workdir=gs://bucket/run" in calls[-2]


def test_the_packages_follow_requirements_txt_back_and_forth(quickstart, tmp_path):
    """The environment was filled from another version of the file since this one was its own."""
    quickstart(SHIKE_VENV="new")
    [stamp] = (tmp_path / "new").glob(".requirements-????????????")
    stamp.rename(stamp.with_name(".requirements-0123456789ab"))
    _, _, calls = quickstart(SHIKE_VENV="new")
    assert sum("pip install" in call for call in calls) == 1
    assert list((tmp_path / "new").glob(".requirements-????????????")) == [stamp]


def test_an_environment_of_someone_else_s_is_not_filled_without_asking(quickstart, tmp_path):
    status, errors, calls = quickstart(SHIKE_VENV="existing", LACKS="1")
    assert status == 2 and "was not made by this project" in errors and "SHIKE_INSTALL=yes" in errors
    assert ["--dry-run" in call for call in calls] == [False, True]  # is there a pip, and what does it find
    status, errors, calls = quickstart(SHIKE_VENV="existing")
    assert status == 0, errors
    assert not [call for call in calls if "pip install" in call and "--dry-run" not in call]
    assert os.listdir(tmp_path / "existing") == ["bin"]
    status, _, calls = quickstart(SHIKE_VENV="existing", LACKS="1", SHIKE_INSTALL="yes")
    assert status == 0
    assert [call for call in calls if "pip install" in call and "--dry-run" not in call]


def test_an_interrupted_first_start_recovers(quickstart, tmp_path):
    status, errors, calls = quickstart(SHIKE_VENV="new", VENV_FAILS="1")
    assert status != 0 and (tmp_path / "new").exists()
    status, errors, calls = quickstart(SHIKE_VENV="new")
    assert status == 0, errors
    assert sum("-m venv" in call for call in calls) == 1 and sum("pip install" in call for call in calls) == 1


def test_two_first_starts_at_once_install_once(quickstart, tmp_path):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda seed: quickstart(SHIKE_VENV="new", WORKDIR=f"run{seed}", SLOW="1"), range(2)))
    assert [status for status, _, _ in ended] == [0, 0], ended
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("pip install" in call for call in calls) == 1


def test_an_older_python_gets_one_line(quickstart):
    status, errors, calls = quickstart(SHIKE_VENV="new", PYTHON_IS="3.10")
    assert status == 2 and calls == [f"{ROOT}: -c version"]
    assert errors.splitlines() == ["python3 is Python 3.10: expected 3.11 or newer (PYTHON=python3.12 names another)"]


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "tpu_pod.sh", "gpu_queue.sh", "local_multiprocess.sh"])
def test_sh_gets_one_line(script):
    shell = shutil.which("dash")
    if not shell:
        pytest.skip("no dash here, and bash called sh runs the scripts")
    done = subprocess.run([shell, str(LAUNCH / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"{LAUNCH / script}: run it with bash"]


# --- a lent GPU ------------------------------------------------------------------------------------------------------

RESULTS_ONLY = """#!/bin/bash
[[ $1 == - ]] && exec touch "$2/smoke.json"
for word; do
  case $word in
    --json=*) touch "${word#--json=}" ;;
    --workdir=*) [[ $word == *${STOPPED:-none}* ]] && exit 75
      mkdir -p "${word#--workdir=}" && touch "${word#--workdir=}/results.json" ;;
  esac
done
"""


@pytest.fixture
def quarter(tmp_path):
    """A call of `gpu_queue.sh quarter` whose Python only leaves the results that are asked for."""
    (tmp_path / "python").write_text(RESULTS_ONLY)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar100_if100.npz").touch()

    def call(**environment):
        folders = {"OUT": str(tmp_path / "out"), "DATA": str(tmp_path / "data"), "PACKED": str(tmp_path / "packed.tgz")}
        return run("launch/gpu_queue.sh", "quarter", PYTHON=str(tmp_path / "python"), **folders, **environment)

    return call


def test_a_quarter_of_an_hour_writes_each_result_and_continues_what_was_stopped(quarter, tmp_path):
    out = tmp_path / "out"
    done = quarter(STOPPED="seed1")
    assert done.returncode == 75, done.stderr
    there = [
        "smoke.json",
        "step_128.json",
        "official_if100_seed0/results.json",
        "plus/results.json",
        "resnet50_128.json",
    ]
    assert all((out / name).exists() for name in there)
    assert not (out / "official_if100_seed1" / "results.json").exists()
    assert not (out / "official_if50_seed0").exists() and "no " in done.stdout  # without its data
    with tarfile.open(tmp_path / "packed.tgz") as packed:
        assert {f"./{name}" for name in there} <= set(packed.getnames())
    done = quarter()
    assert done.returncode == 0, done.stderr
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("== ") and "-m" in line]
    assert started == ["official_if100_seed1:"]  # everything else is there already


def test_a_quarter_of_an_hour_skips_what_no_longer_fits(quarter, tmp_path):
    done = quarter(SECONDS_IN_ALL="70")
    assert done.returncode == 75
    assert (tmp_path / "out" / "smoke.json").exists()
    assert "step_128.json: needs 60 s" in done.stdout and "skipped" in done.stdout
    assert not (tmp_path / "out" / "step_128.json").exists()


# --- TPU pods -------------------------------------------------------------------------------------------------------


def gcloud(folder: pathlib.Path, script: str) -> dict[str, str]:
    """The environment in which `gcloud` is a script; what it is called with is added to $CALLS before."""
    note = """call=$*; echo "${call//$'\\n'/ }" >> "$CALLS"\n"""
    (folder / "gcloud").write_text(f"#!/bin/bash\n{note}{script}")
    (folder / "gcloud").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), **TPU}


def verbs(folder: pathlib.Path) -> list[str]:
    """The commands that `gcloud` was called with, without the looks at a request's state."""
    found = [line.split()[3] for line in (folder / "calls").read_text().splitlines()]
    return [verb for verb in found if verb != "describe"]


READY = """
runs=$(grep -c '^compute tpus tpu-vm ssh.*shike_jax train' "$CALLS")
case $3-$4 in
  queued-resources-describe) echo "${REQUEST:-ACTIVE}" ;;
  tpu-vm-describe) echo "${SLICE:-PREEMPTED}" ;;
  tpu-vm-ssh) [[ $* != *"shike_jax train"* || $runs -ge ${GOOD:-1} ]] || exit "${STATUS:-1}" ;;
esac
"""
STARTED = ["create", "scp", "ssh", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize("where", [0, 1])
def test_tpu_dry_run_prints_the_commands_of_every_step(tmp_path, where):
    arguments = ["all"]
    arguments.insert(where, "--dry-run")
    done = run("launch/tpu_pod.sh", *arguments, "--", *RUN, **gcloud(tmp_path, "exit 1"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists()
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("+ gcloud compute tpus")]
    assert [words[5] for words in lines] == [*STARTED, "delete"]
    assert lines[0][4] == lines[-1][4] == "queued-resources"
    assert "--accelerator-type=v5litepod-16" in done.stderr and "--spot" in done.stderr
    assert done.stderr.count("--worker=all") == 5
    assert all("--zone=z" in words for words in lines)


@pytest.mark.parametrize("workdir", [["--workdir=/tmp/run"], ["--workdir=runs/run"], ["--workdir", "gs://b"], []])
def test_tpu_refuses_a_work_directory_that_would_be_lost_with_the_slice(workdir):
    done = run("launch/tpu_pod.sh", "--dry-run", "all", "--", "--config=c.py", *workdir, **TPU)
    assert done.returncode == 2 and "gcloud" not in done.stderr
    assert "expected gs://BUCKET/NAME" in done.stderr.splitlines()[-1]


def test_tpu_waits_for_a_slice_and_asks_again_when_a_request_fails(tmp_path):
    script = """
count=$(grep -c "queued-resources describe" "$CALLS")
states=(WAITING_FOR_RESOURCES FAILED PROVISIONING ACTIVE)
[[ $3-$4 != queued-resources-describe ]] || echo "${states[count - 1]}"
"""
    done = run("launch/tpu_pod.sh", "all", "--", *RUN, **gcloud(tmp_path, script))
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", "delete", *STARTED, "delete"]
    assert "the request for n is FAILED; asking again" in done.stderr


def test_tpu_shows_a_request_that_is_refused(tmp_path):
    done = run("launch/tpu_pod.sh", "all", "--", *RUN, **gcloud(tmp_path, "echo 'no such zone' >&2; exit 1"))
    assert done.returncode == 1 and "no such zone" in done.stderr
    assert verbs(tmp_path) == ["create"]


def test_tpu_passes_the_environment_on(tmp_path):
    own = {"XLA_FLAGS": "--xla_a=1 --xla_b=2", "LIBTPU_INIT_ARGS": "--c=$d", "WANDB_MODE": "off"}
    others = {"TPU_ENV": "WANDB_MODE", "JAX_COMPILATION_CACHE_DIR": ""}
    done = run("launch/tpu_pod.sh", "run", "--", *RUN, **gcloud(tmp_path, READY), **own, **others)
    assert done.returncode == 0, done.stderr
    (command,) = (line for line in (tmp_path / "calls").read_text().splitlines() if "shike_jax train" in line)
    start = command.partition("--command=cd shike && ")[2].partition(".venv")[0]
    said = subprocess.run(["bash", "-c", f"{start} env"], capture_output=True, text=True, check=True).stdout
    passed = dict(line.partition("=")[::2] for line in said.splitlines())
    assert passed.items() >= {**own, "JAX_COMPILATION_CACHE_DIR": "gs://b/compiled"}.items()


def test_tpu_names_what_is_not_committed(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    script = str(tmp_path / "launch" / "tpu_pod.sh")
    assert "not committed" not in run(script, "--dry-run", "setup", **TPU).stderr
    (tmp_path / "launch" / "mine.sh").touch()
    assert "not committed, so not on the workers: launch/mine.sh" in run(script, "--dry-run", "setup", **TPU).stderr


def test_tpu_slice_is_replaced_until_the_run_is_finished(tmp_path):
    done = run("launch/tpu_pod.sh", "all", "--", *RUN, **gcloud(tmp_path, READY), GOOD="3")
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == [*STARTED, "delete", *STARTED, "delete", *STARTED, "delete"]


def test_tpu_gives_up(tmp_path):
    environment = gcloud(tmp_path, READY) | {"GOOD": "99", "SLICE": "READY", "TPU_RESTARTS": "2"}
    done = run("launch/tpu_pod.sh", "run", "--", *RUN, **environment)
    assert done.returncode == 1
    assert "started 3 times: giving up" in done.stderr


def test_a_mistake_is_not_started_again_on_a_tpu(tmp_path):
    done = run("launch/tpu_pod.sh", "all", "--", *RUN, **gcloud(tmp_path, READY), GOOD="99", STATUS="2")
    assert done.returncode == 2 and "not started again" in done.stderr
    assert verbs(tmp_path) == STARTED


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
        (75, None, 0, True),  # a first start: SLURM counts from the second on
    ],
)
def test_slurm_queues_again_what_can_go_on(tmp_path, status, restarts, ends_with, requeued):
    (tmp_path / "srun").write_text(
        f'#!/bin/bash\necho "$SRUN_CPUS_PER_TASK CPUs: $*" > {tmp_path}/srun.args\nexit {status}'
    )
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
        SLURM_CPUS_PER_TASK="8",
        SHIKE_RESTARTS="5",
        **({} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}),
    )
    assert done.returncode == ends_with, done.stdout + done.stderr
    called = (tmp_path / "srun.args").read_text().strip()
    assert called.startswith("8 CPUs: ") and "--gpu-bind=none" in called
    assert called.endswith("python -m shike_jax train --config=c.py")
    assert (tmp_path / "scontrol.args").exists() == requeued


def test_slurm_gives_up_at_once_where_no_restart_is_wanted(tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 75")
    (tmp_path / "srun").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n", "SHIKE_RESTARTS": "0"}
    done = run("launch/gpu_slurm.sbatch", PATH=f"{tmp_path}:{os.environ['PATH']}", **slurm)
    assert (done.returncode, done.stderr) == (75, "") and done.stdout.endswith("started 1 times: giving up\n")


# --- Kubernetes -----------------------------------------------------------------------------------------------------

TEXT, COUNT, NAMES = (str,), (int,), {str: str}
EXIT_RULE = {"action": TEXT, "onExitCodes": {"containerName": TEXT, "operator": TEXT, "values": [COUNT]}}
CONTAINER = {
    **dict.fromkeys(("name", "image", "workingDir"), TEXT),
    "command": [TEXT],
    "args": [TEXT],
    "env": [{"name": TEXT, "value": TEXT, "valueFrom": {"fieldRef": {"fieldPath": TEXT}}}],
    "ports": [{"containerPort": COUNT}],
    "resources": {"requests": {str: (str, int)}, "limits": {str: (str, int)}},
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT}],
}
POD = {
    "restartPolicy": TEXT,
    "serviceAccountName": TEXT,
    "terminationGracePeriodSeconds": COUNT,
    "nodeSelector": NAMES,
    "tolerations": [{"key": TEXT, "operator": TEXT, "effect": TEXT}],
    "containers": [CONTAINER],
    "volumes": [{"name": TEXT, "emptyDir": {"medium": TEXT, "sizeLimit": TEXT}}],
}
JOB = {
    "completionMode": TEXT,
    **dict.fromkeys(("completions", "parallelism", "backoffLimit"), COUNT),
    "podFailurePolicy": {"rules": [EXIT_RULE]},
    "template": {"spec": POD},
}
JOBSET = {  # the fields used here, of jobset.x-k8s.io/v1alpha2, batch/v1 and v1, with their types
    "apiVersion": TEXT,
    "kind": TEXT,
    "metadata": {"name": TEXT, "labels": NAMES, "annotations": NAMES},
    "spec": {
        "failurePolicy": {"maxRestarts": COUNT, "rules": [{"action": TEXT, "onJobFailureReasons": [TEXT]}]},
        "replicatedJobs": [{"name": TEXT, "replicas": COUNT, "template": {"spec": JOB}}],
    },
}


def check_schema(value, schema, path=""):
    """Fields that the schema does not have, and values of another type, fail."""
    if isinstance(schema, tuple):
        assert isinstance(value, schema), f"{path}: {value!r}"
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for i, one in enumerate(value):
            check_schema(one, schema[0], f"{path}[{i}]")
    elif str in schema:
        assert all(isinstance(k, str) and isinstance(v, schema[str]) for k, v in value.items()), path
    else:
        assert set(value) <= set(schema), f"{path}: {set(value) - set(schema)}"
        for name, one in value.items():
            check_schema(one, schema[name], f"{path}.{name}")


def manifest(name):
    (jobset,) = yaml.safe_load_all((LAUNCH / name).read_text())
    check_schema(jobset, JOBSET)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (main,) = pod["containers"]
    return jobset, replicated, job, pod, main, {item["name"]: item.get("value") for item in main["env"]}


@pytest.mark.parametrize("name", ["tpu_jobset.yaml", "gpu_jobset.yaml"])
def test_manifests_are_consistent(name):
    jobset, replicated, job, pod, main, environment = manifest(name)
    assert "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    assert job["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0  # all together, or none
    assert pod["restartPolicy"] == "Never"  # failure policies demand it
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == main["name"]
    assert not {preemption.EXIT_STATUS, peers.EXIT_STATUS} & set(rule["onExitCodes"]["values"])
    (ending,) = jobset["spec"]["failurePolicy"]["rules"]
    assert ending == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert environment["JAX_COMPILATION_CACHE_DIR"].startswith("gs://")
    assert [item for item in main["args"] if item.startswith("--workdir=gs://")]
    first = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{jobset['metadata']['name']}"
    ports = [port["containerPort"] for port in main["ports"]]
    if name.startswith("tpu"):
        assert environment["MEGASCALE_COORDINATOR_ADDRESS"] == first
        assert int(environment["MEGASCALE_NUM_SLICES"]) == replicated["replicas"]
        sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        chips = main["resources"]["limits"]["google.com/tpu"]
        assert job["completions"] * chips == math.prod(map(int, sides))
        assert main["command"] == ["python", "-m", "shike_jax", "train"]
    else:
        assert environment["JAX_COORDINATOR_ADDRESS"] == f"{first}:{ports[0]}"
        assert job["completions"] == int(environment["NODES"])
        assert int(environment["GPUS"]) == main["resources"]["limits"]["nvidia.com/gpu"]
        assert main["command"] == ["bash", "launch/node_gpus.sh"] and (ROOT / main["command"][1]).is_file()
        assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in main["volumeMounts"]}


def test_the_image_holds_what_the_manifests_call():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert {line[0] for line in words} <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert ["WORKDIR", "/app"] in words and ["ENTRYPOINT", "[]"] in words
    for name in ("tpu_jobset.yaml", "gpu_jobset.yaml"):
        assert manifest(name)[4]["workingDir"] == "/app"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        if found := re.search(r"ACCELERATOR=(\w+)", line):
            assert f"jax[{found[1]}]" in extras[found[1]]
