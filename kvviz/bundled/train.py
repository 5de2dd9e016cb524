"""Train the bundled teacher and student from nothing: `python -m kvviz.bundled.train`.

Two CPU cores are enough. The teacher is trained on a fixed schedule, the student is stopped on purpose as soon as it
solves `goal` of the problems, so that distillation has room to show. Problems are made while training goes
on, none is seen twice, and the problems that choose the checkpoint are not those the card reports.
"""

import argparse
import json
import platform
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from kvviz.bundled import HERE
from kvviz.bundled.evaluate import Form, exact_match, wilson_interval
from kvviz.bundled.problems import Problem, make_problem, problems
from kvviz.bundled.tokenizers import Role, build_tokenizer

POSITIONS = 1024
TOKENIZER_SEED, SELECTION_SEED, REPORT_SEED = 900, 7, 11  # of the problems drawn for each purpose
DRILL_PROBLEMS = 4  # their equations are about as many tokens as one problem
DRILL_LINES = 12
LARGE = re.compile(r"(\d{3}[-+]\d+|\d+[-+]\d{3})=")
IGNORED = -100  # label of a position without loss


@dataclass(frozen=True)
class Stage:
    """A stretch of training with an optimiser and a learning rate schedule (warm-up, then cosine) of its own."""

    steps: int
    schedule_steps: int  # length of the whole schedule; the stage may end before it does
    drill_share: float  # of the rows: bare equations of several problems, to practise arithmetic cheaply
    warmup_steps: int = 100
    large_only: bool = (
        False  # drill only sums and differences with numbers of three digits, the last to be learned
    )
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how one of the two is trained."""

    model: dict[str, Any]
    seed: int
    stages: tuple[Stage, ...]
    goal: float  # share of the selection problems at which training stops
    brief_share: float
    batch_size: int = 32
    evaluate_every: int = 250
    selection_problems: int = 200
    report_problems: int = 500
    tokenizer_problems: int = 4000


RECIPES: dict[Role, Recipe] = {
    "teacher": Recipe(
        model={
            "hidden_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "intermediate_size": 320,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "tie_word_embeddings": False,
        },
        seed=1,
        # The words come first and the arithmetic late, one operation after the other (subtraction last): later
        # stages start the schedule again, with more drill.
        stages=(
            Stage(steps=1250, schedule_steps=2000, drill_share=0.2),
            Stage(steps=1000, schedule_steps=1200, drill_share=0.35, warmup_steps=50),
            Stage(steps=750, schedule_steps=800, drill_share=0.5, warmup_steps=50),
            Stage(500, 500, drill_share=0.5, warmup_steps=30, large_only=True, learning_rate=1.5e-3),
        ),
        goal=0.985,
        brief_share=0.1,
        batch_size=24,
    ),
    "student": Recipe(
        model={
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
            "tie_word_embeddings": True,
        },
        seed=2,
        stages=(Stage(steps=3000, schedule_steps=3000, drill_share=0.2),),
        goal=0.35,
        brief_share=0.25,
        evaluate_every=100,
    ),
}


class ProblemStream(IterableDataset):
    """Endless training problems as token ids and labels, ordered so that each batch holds texts of like length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, stage: int = 0, batches: int = 25):
        self.tokenizer, self.recipe, self.stage, self.batches = tokenizer, recipe, stage, batches

    def encode(self, problem: Problem, form: Form) -> dict[str, list[int]]:
        """Ids of one text with an end-of-text token, and labels that ignore the prompt."""
        prompt, text = problem.prompt, problem.text
        if form == "brief":
            prompt, text = problem.brief_prompt, problem.brief_text
        asked = self.tokenizer(prompt)["input_ids"]
        told = self.tokenizer(text[len(prompt) :], add_special_tokens=False)["input_ids"]
        told.append(self.tokenizer.eos_token_id)
        return {"input_ids": asked + told, "labels": [IGNORED] * len(asked) + told}

    def drill_lines(self, seeds: Iterator[int]) -> list[str]:
        """Equations of new problems, "12+35=47": all of a few, or only the large ones of more."""
        if not self.recipe.stages[self.stage].large_only:
            return [line for _ in range(DRILL_PROBLEMS) for line in make_problem(next(seeds), "train").brief]
        large: list[str] = []
        while len(large) < DRILL_LINES:
            large += [line for line in make_problem(next(seeds), "train").brief if LARGE.match(line)]
        return large

    def drill(self, equations: list[str]) -> dict[str, list[int]]:
        """Ids of bare equations, spaced as in full reasoning, a line each; only the results are learned."""
        lines = [re.sub(r"([-+*/=])", r" \1 ", line) for line in equations]
        text = "\n".join(lines)
        results = {
            i
            for found in re.finditer(r"= (\d+)", text)
            for i in range(found.end(1) - len(found[1]), found.end(1))
        }
        row = self.tokenizer(text, return_offsets_mapping=True)
        ends = [end for _, end in row["offset_mapping"]]
        ids = row["input_ids"]
        return {
            "input_ids": ids,
            "labels": [i if end - 1 in results else IGNORED for i, end in zip(ids, ends, strict=True)],
        }

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        rng = random.Random(self.recipe.seed + 1000 * self.stage)
        first = self.recipe.seed * 1_000_000_000 + self.stage * 100_000_000
        size, seeds = self.recipe.batch_size, count(first)
        drill_share = self.recipe.stages[self.stage].drill_share
        while True:
            pool = []
            for seed in islice(seeds, size * self.batches):
                if rng.random() < drill_share:
                    pool.append(self.drill(self.drill_lines(seeds)))
                    continue
                form: Form = "brief" if rng.random() < self.recipe.brief_share else "full"
                pool.append(self.encode(make_problem(seed, "train"), form))
            pool.sort(key=lambda row: len(row["input_ids"]))
            for start in rng.sample(range(0, len(pool), size), self.batches):
                yield from pool[start : start + size]


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to one width: `input_ids` and `labels`, both [batch, position].

    There is no attention mask: attention is causal, so no real token ever sees the padding after it.
    """
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad, "labels": IGNORED}
    return {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


class KeepBest(TrainerCallback):
    """Solves the selection problems now and then, saves the best model so far, ends a stage in time."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path):
        self.recipe, self.tokenizer, self.folder = recipe, tokenizer, folder
        self.problems = problems(recipe.selection_problems, "heldout", SELECTION_SEED)
        self.stage, self.steps = recipe.stages[0], 0
        self.best, self.best_step = -1, 0
        self.reached = False  # whether the goal is

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Called by the Trainer after each step."""
        self.steps += 1
        last = state.global_step == self.stage.steps
        control.should_training_stop |= last
        if state.global_step % self.recipe.evaluate_every and not last:
            return
        correct, n = exact_match(model, self.tokenizer, self.problems)
        print(f"step {self.steps}: solves {correct}/{n} of the selection problems", flush=True)
        if correct > self.best:
            self.best, self.best_step = correct, self.steps
            model.save_pretrained(self.folder)
        self.reached = correct / n >= self.recipe.goal
        control.should_training_stop |= self.reached


def run_stage(model: LlamaForCausalLM, recipe: Recipe, stage: int, keep: KeepBest) -> None:
    """Train `model` in place through one stage of its recipe; `keep` saves what is best on the way."""
    keep.stage = recipe.stages[stage]
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(keep.folder),
            max_steps=keep.stage.schedule_steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=keep.stage.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=keep.stage.warmup_steps,
            adam_beta2=0.98,
            weight_decay=0.01,
            optim="adamw_torch_fused",
            seed=recipe.seed,
            use_cpu=True,
            save_strategy="no",
            logging_steps=25,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=ProblemStream(keep.tokenizer, recipe, stage),
        data_collator=lambda rows: collate(rows, keep.tokenizer.pad_token_id),
        callbacks=[keep],
    ).train()


def train(role: Role, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train one model into `out / role` and return its entry for the card."""
    start = time.monotonic()
    folder = out / role
    set_seed(recipe.seed)
    texts = problems(recipe.tokenizer_problems, "train", TOKENIZER_SEED)
    tokenizer = build_tokenizer(role, (t for p in texts for t in (p.text, p.brief_text)), POSITIONS)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **recipe.model,
    )
    model = LlamaForCausalLM(config)
    keep = KeepBest(recipe, tokenizer, folder)
    for stage in range(len(recipe.stages)):
        if not keep.reached:
            run_stage(model, recipe, stage, keep)
    return report(recipe, keep, time.monotonic() - start)


def report(recipe: Recipe, keep: KeepBest, seconds: float) -> dict[str, Any]:
    """The card's entry: what is reported is what was written to disk, read back as any user would read it."""
    shipped = AutoModelForCausalLM.from_pretrained(keep.folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(keep.folder)
    reported = problems(recipe.report_problems, "heldout", REPORT_SEED)
    correct, n = exact_match(shipped, tokenizer, reported)
    low, high = wilson_interval(correct, n)
    return {
        "exact_match": {"correct": correct, "n": n, "share": correct / n, "low": low, "high": high},
        "parameters": shipped.num_parameters(),
        "vocabulary": len(tokenizer),
        "step_kept": keep.best_step,
        "steps_run": keep.steps,
        "selection_correct": keep.best,
        "training_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "seeds": {"tokenizer": TOKENIZER_SEED, "selection": SELECTION_SEED, "report": REPORT_SEED},
        "recipe": asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def card_text(card: dict[str, Any]) -> str:
    """The model card in Markdown, written from the numbers of card.json alone."""
    lines = [
        "# The bundled teacher and student",
        "",
        "Two small Llama models trained on the word problems of `kvviz.bundled.problems` by",
        "`python -m kvviz.bundled.train`, which writes this file. Random start, no outside data, Apache-2.0.",
        "",
        "The student is stopped early on purpose, so that distillation from the teacher has room to show.",
        "Exact match: share of held-out problems whose final number is right when the model writes the full reasoning,",
        "greedily; the interval is Wilson's at 95%. The problems that chose the checkpoint are others.",
        "",
        "| | " + " | ".join(card) + " |",
        "|---|" + "---|" * len(card),
    ]
    rows = {
        "exact match": lambda c: "{correct} of {n} = {share:.1%}".format(**c["exact_match"]),
        "95% interval": lambda c: "{low:.1%} to {high:.1%}".format(**c["exact_match"]),
        "parameters": lambda c: f"{c['parameters']:,}",
        "layers": lambda c: c["recipe"]["model"]["num_hidden_layers"],
        "query heads": lambda c: c["recipe"]["model"]["num_attention_heads"],
        "KV heads": lambda c: c["recipe"]["model"]["num_key_value_heads"],
        "head dim": lambda c: c["recipe"]["model"]["head_dim"],
        "RoPE theta": lambda c: f"{c['recipe']['model']['rope_parameters']['rope_theta']:,.0f}",
        "vocabulary": lambda c: c["vocabulary"],
        "brief reasoning in training": lambda c: f"{c['recipe']['brief_share']:.0%}",
        "seed": lambda c: c["recipe"]["seed"],
        "steps of each stage": lambda c: " + ".join(str(stage["steps"]) for stage in c["recipe"]["stages"]),
        "step kept": lambda c: f"{c['step_kept']} of {c['steps_run']}",
        "batch size": lambda c: c["recipe"]["batch_size"],
        "time to train": lambda c: f"{c['training_seconds'] / 60:.0f} min on CPU, threads: {c['threads']}",
        "torch": lambda c: c["versions"]["torch"],
        "transformers": lambda c: c["versions"]["transformers"],
    }
    lines += [
        f"| {name} | " + " | ".join(str(cell(c)) for c in card.values()) + " |" for name, cell in rows.items()
    ]
    return "\n".join(lines) + "\n"


def write_card(out: Path, role: Role, entry: dict[str, Any]) -> None:
    """Put one model's entry into `out / card.json`, beside the other's, and write CARD.md from it."""
    file = out / "card.json"
    card = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    card[role] = entry
    card = {name: card[name] for name in RECIPES if name in card}
    file.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (out / "CARD.md").write_text(card_text(card), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line; every number of a recipe can be set, for a quick trial run."""
    parser = argparse.ArgumentParser(prog="python -m kvviz.bundled.train", description=__doc__)
    parser.add_argument("--role", choices=["teacher", "student", "both"], default="both")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder that gets teacher/, student/ and the card"
    )
    numbers = [
        "batch_size",
        "evaluate_every",
        "report_problems",
        "seed",
        "selection_problems",
        "tokenizer_problems",
    ]
    for name in numbers:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--steps", type=int, help="steps of each stage")
    chosen = vars(parser.parse_args(arguments))
    roles: list[Role] = ["teacher", "student"] if chosen["role"] == "both" else [chosen["role"]]
    for role in roles:
        recipe = replace(
            RECIPES[role], **{name: chosen[name] for name in numbers if chosen[name] is not None}
        )
        if (steps := chosen["steps"]) is not None:
            stages = tuple(replace(stage, steps=steps, schedule_steps=steps) for stage in recipe.stages)
            recipe = replace(recipe, stages=stages)
        entry = train(role, recipe, chosen["out"])
        write_card(chosen["out"], role, entry)
        result = entry["exact_match"]
        print(f"{role}: {result['correct']}/{result['n']} in {entry['training_seconds'] / 60:.1f} min")


if __name__ == "__main__":
    main()
