"""`kvviz distill --cluster`: the same run as a cluster's job, by submitit (the optional extra `cluster`)."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from kvviz.config import ConfigError
from kvviz.distill.run import CONFIG, Run
from kvviz.distill.status import locked
from kvviz.errors import ExplainedError, sentence


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a job asks its cluster for."""
    group = parser.add_argument_group("on a cluster")
    group.add_argument(
        "--cluster", choices=("local", "slurm"), help="submit a job and return; local tries it out"
    )
    group.add_argument("--partition", help="Slurm's")
    group.add_argument(
        "--time", default="01:00:00", help="most time it may take: minutes, or HOURS:MINUTES:SECONDS"
    )
    group.add_argument("--gpus", type=int, default=0, help="on each node")
    group.add_argument("--nodes", type=int, default=1, help="how many")
    group.add_argument(
        "--tasks-per-node", type=int, default=1, help="processes that train together, one a GPU"
    )
    group.add_argument("--cpus-per-task", type=int, default=None, help="cores of each process")


def submit(run: Run, options: argparse.Namespace) -> str:
    """Hand a run to a cluster; returns the job's id. The run is queued until the job begins.

    Raises:
        ConfigError: a value that makes no sense. ExplainedError: submitit is not installed, or the cluster refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise ExplainedError(
            "--cluster: no job can be submitted.",
            "The package submitit is not installed.",
            "Install it with `pip install 'kvviz[cluster]'`.",
        ) from error
    command = ["distill", str(run.folder / CONFIG), "--run-dir", str(run.folder)]
    # The job looks for its run under the same lock: it finds it as the job's.
    with locked(run.folder):
        try:
            executor = submitit.AutoExecutor(run.folder.parent / ".jobs", cluster=options.cluster)
            executor.update_parameters(**_parameters(run, options))
            job = executor.submit(run_job, command, options.cluster == "local")
        except (
            OSError,
            ValueError,
            RuntimeError,
            AssertionError,
            submitit.core.utils.FailedJobError,
        ) as error:
            run.put_status("failed", message=f"The cluster took no job: {error}", process=None)
            raise ExplainedError(
                f"--cluster: {options.cluster} took no job.",
                sentence(error),
                "Check the cluster's flags and its state.",
            ) from error
        run.put_status("queued", process=None, host=f"{options.cluster} job {job.job_id}")
    return str(job.job_id)


def run_job(arguments: list[str], local: bool) -> None:
    """One task of the job: the same command, with the environment that torchrun would give it.

    Raises:
        RuntimeError: the command failed.
    """
    import submitit

    from kvviz.cli import main

    job = submitit.JobEnvironment()
    if job.num_tasks > 1:
        # Each process finds its own GPU by LOCAL_RANK, as under torchrun.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if local:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # A host's own name need not lead to it.
    if status := main(arguments):
        raise RuntimeError(f"kvviz {' '.join(arguments)} ended with status {status}")


def _parameters(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """The flags as submitit's parameters."""
    parameters: dict[str, Any] = {
        "name": f"kvviz-{run.name}",
        "timeout_min": minutes(options.time),
        "nodes": options.nodes,
        "tasks_per_node": options.tasks_per_node,
        "gpus_per_node": options.gpus,
    }
    if options.cpus_per_task is not None:
        parameters["cpus_per_task"] = options.cpus_per_task
    if options.partition is not None:
        parameters["slurm_partition"] = options.partition
    return parameters


def minutes(text: str) -> int:
    """`90` or `01:30:00` as minutes, rounded up.

    Raises:
        ConfigError: it is neither.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text)
    seconds = (
        sum(int(part) * size for part, size in zip(match.groups(), (3600, 60, 1), strict=True))
        if match
        else 0
    )
    if seconds == 0:
        raise ConfigError(f"--time: {text!r} is not usable (it takes minutes, or HOURS:MINUTES:SECONDS)")
    return -(-seconds // 60)
