"""What the KV losses add to a training step: python -m benchmarks.distill_step [--repeats 15] [--set key=value …]

Two kinds of step on the same batches, turn about in one process: cross-entropy with the teacher's forward (what logit KD or
a cached teacher would need too), and the full objective. Each is forward, backward and optimiser step. Reported are the
ratios of neighbouring pairs, median and quartiles: absolute times depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from kvviz.capture import capture_ids
from kvviz.distill.config import DistillConfig
from kvviz.distill.objective import Objective
from kvviz.distill.prepare import Prepared, prepare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15, help="pairs of steps")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run")
    options = parser.parse_args()
    config = DistillConfig().with_settings(options.set)
    prepared = prepare(config)
    alone = config.model_copy(
        update={
            "loss_config": config.loss_config.model_copy(
                update={"alpha_k": 0.0, "alpha_v": 0.0, "alpha_attn": 0.0, "alpha_ce": 1.0}
            )
        }
    )
    plain = Objective(
        prepared.student, prepared.teacher, prepared.objective.aligner, alone, prepared.objective.key_space
    )
    prepared.student.model.train()
    optimizer = torch.optim.AdamW(prepared.student.model.parameters(), lr=1e-6, fused=True)
    ratios, plain_times, full_times = [], [], []
    for number in range(options.repeats + 1):
        first = number * config.batch_size
        batch = prepared.collator([prepared.data.train(first + i) for i in range(config.batch_size)])
        batch = {name: value.to(prepared.student.device) for name, value in batch.items()}
        times = {}
        # Who goes first changes from pair to pair.
        for name in ("plain", "full") if number % 2 else ("full", "plain"):
            began = clock(prepared)
            objective = plain if name == "plain" else prepared.objective
            if name == "plain":
                capture_ids(
                    prepared.teacher,
                    batch["teacher_input_ids"],
                    batch["teacher_attention_mask"],
                    batch["teacher_position_ids"],
                )
            terms = objective(**batch)
            (terms["loss_tokens"] + terms["loss_positions"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            times[name] = clock(prepared) - began
        if number:  # the first pair warms up
            ratios.append(times["full"] / times["plain"])
            plain_times.append(times["plain"])
            full_times.append(times["full"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{len(ratios)} pairs of steps of {config.batch_size} texts, on {prepared.student.device}")
    print(f"cross-entropy and the teacher's forward: {statistics.median(plain_times):.3f} s (median)")
    print(f"with the K, V and attention losses:      {statistics.median(full_times):.3f} s (median)")
    print(f"ratio: {middle:.2f} (quartiles {low:.2f} – {high:.2f})")


def clock(prepared: Prepared) -> float:
    """Now, once the device has done what it was asked."""
    if prepared.student.device.type == "cuda":
        torch.cuda.synchronize(prepared.student.device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
