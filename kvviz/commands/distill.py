"""`kvviz distill` and `kvviz resume`: train a student, in this process or on a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from kvviz.commands import cluster
from kvviz.config import ConfigError
from kvviz.distill.adopt import adopt, awaits
from kvviz.distill.config import DistillConfig
from kvviz.distill.launch import refuse_resume
from kvviz.distill.ranks import Ranks
from kvviz.distill.run import Run, runs_root
from kvviz.distill.supervise import claim, fail, supervise
from kvviz.errors import ExplainedError, sentence
from kvviz.importing import uncollected


def add(commands: Any) -> None:
    """Add the commands and their flags."""
    distill = commands.add_parser(
        "distill",
        help="train a student towards a teacher's answers and KV cache",
        description="Under torchrun it trains data-parallel: torchrun --nproc-per-node N -m kvviz distill CONFIG.yaml",
    )
    distill.set_defaults(run=_distill)
    distill.add_argument("config", type=Path, nargs="?", help="YAML; every key left out has its default")
    distill.add_argument(
        "--run-dir", type=Path, help="the run's folder; a new one under KVVIZ_RUNS or ./runs"
    )
    distill.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="on top of the YAML; loss_config.alpha_k=0",
    )
    distill.add_argument(
        "--trial", action="store_true", help="two steps: print the time and memory a run would take, as JSON"
    )
    cluster.add_flags(distill)
    resume = commands.add_parser("resume", help="go on with a run from its last checkpoint")
    resume.set_defaults(run=_resume)
    resume.add_argument("folder", type=Path, metavar="DIR", help="the run's folder")
    resume.add_argument("--force", action="store_true", help="though it says it is alive on another host")


def config_of(options: argparse.Namespace) -> DistillConfig:
    """The configuration of a command: its YAML, if any, with its `--set` on top.

    Raises:
        ConfigError: naming each key that is unknown or has a value it cannot take.
    """
    config = DistillConfig.from_yaml(options.config) if options.config else DistillConfig()
    return config.with_settings(options.set) if options.set else config


def _distill(options: argparse.Namespace) -> int:
    if options.trial:
        return _trial(config_of(options))
    if options.cluster:
        config = _checked(config_of(options))
        run = _folder(options.run_dir, config)
        job = cluster.submit(run, options)
        print(f"{run.folder}\n{options.cluster} job {job}")
        return 0
    ranks = Ranks()
    if not ranks.first:
        folder = ranks.hear("folder")
        return supervise(Run(Path(folder)), _work) if folder else 2
    folder = ""
    try:
        run = _begin(options)
        folder = str(run.folder)
    finally:
        ranks.tell("folder", folder)
    print(f"kvviz: {run.folder}", file=sys.stderr)
    return supervise(run, _work)


def _begin(options: argparse.Namespace) -> Run:
    """Check everything, then claim a folder. What is wrong with a run a page has made goes into its status, too."""
    made = Run(options.run_dir) if options.run_dir else None
    if made is not None and awaits(made):
        claim(made)
    else:
        made = None
    try:
        config = _checked(config_of(options))
        run = made or _folder(options.run_dir, config)
        claim(run)
        return run
    except Exception as error:
        if made is not None:
            fail(made, error)
        raise


def _resume(options: argparse.Namespace) -> int:
    run = Run(options.folder)
    ranks = Ranks()
    if not ranks.first:
        return supervise(run, _work) if ranks.hear("folder") else 2
    said = ""
    try:
        if not awaits(run):
            refuse_resume(run, force=options.force)
        claim(run, force=options.force)
        said = str(run.folder)
    finally:
        ranks.tell("folder", said)
    return supervise(run, _work)


def _checked(config: DistillConfig) -> DistillConfig:
    """The configuration, once its data can be read."""
    from kvviz.distill.data import load_data

    load_data(config)
    return config


def _folder(wanted: Path | None, config: DistillConfig) -> Run:
    root = runs_root() if wanted is None else wanted
    try:
        return Run.create(config) if wanted is None else adopt(wanted, config)
    except OSError as error:
        raise ExplainedError(
            f"The run's folder cannot be made in {root}.",
            sentence(error),
            "Name another with --run-dir, or another root with KVVIZ_RUNS.",
        ) from error


def _trial(config: DistillConfig) -> int:
    with uncollected():
        from kvviz.align.calibrate import CalibrationError
        from kvviz.distill.trial import trial

    try:
        print(json.dumps(trial(_checked(config)), indent=2))
    except CalibrationError as error:
        raise ConfigError(str(error)) from error
    return 0


def _work(run: Run) -> Literal["finished", "stopped"]:
    # Imported only here: a run that waits for its device should not hold torch in memory.
    with uncollected():
        from kvviz.distill.worker import work

    return work(run)
