"""How many word problems a causal language model solves, and how sure one can be of that number."""

from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal

import torch

from kvviz.bundled.problems import Problem, parse_answer

Form = Literal["full", "brief"]


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion; z = 1.959964 gives 95%.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927):
    (p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n). Raises ValueError unless 0 ≤ correct ≤ n and n ≥ 1.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} is not a proportion")
    p = correct / n
    middle = p + z * z / (2 * n)
    spread = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@torch.inference_mode()
def solve(
    model: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 100, max_new_tokens: int = 200
) -> list[str]:
    """What a causal model writes after each prompt, greedily, in the order of the prompts.

    Prompts of like length share a batch and are padded on the left, so that every answer starts at the same
    position. The tokenizer needs a padding or an end-of-text token (ValueError). The model is put into eval mode
    for the time of the call.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ValueError("the tokenizer has neither a padding nor an end-of-text token")
    was_training = model.training
    model.eval()
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    written = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in batch)
        ids = torch.tensor(
            [[pad] * (width - len(encoded[i])) + encoded[i] for i in batch], device=model.device
        )
        lengths = torch.tensor([len(encoded[i]) for i in batch], device=model.device)
        mask = torch.arange(width, device=model.device) >= width - lengths[:, None]
        out = model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        )
        for i, text in zip(
            batch, tokenizer.batch_decode(out[:, width:], skip_special_tokens=True), strict=True
        ):
            written[i] = text
    model.train(was_training)
    return written


def exact_match(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    batch_size: int = 100,
    form: Form = "full",
    max_new_tokens: int = 200,
) -> tuple[int, int]:
    """(correct, n): how many problems end in the right number when the model writes the reasoning, greedily.

    Args:
        model: any causal language model of transformers, on any device.
        tokenizer: its tokenizer.
        form: which reasoning the prompt asks for.
        max_new_tokens: a model that has not answered by then has not solved the problem.
    """
    prompts = [p.prompt if form == "full" else p.brief_prompt for p in problems]
    written = solve(model, tokenizer, prompts, batch_size, max_new_tokens)
    correct = sum(parse_answer(text) == p.answer for text, p in zip(written, problems, strict=True))
    return correct, len(problems)
