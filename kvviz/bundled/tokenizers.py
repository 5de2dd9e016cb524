"""Two byte-level BPE tokenizers that cut the same text differently.

Both keep every digit a token of its own (arithmetic is then spelled the same way wherever a number stands) and both
encode any unicode, byte by byte where need be. The teacher's has room for whole words and takes the space before a
number into its first digit. The student's is small: it cuts many words in two or three and keeps that space apart, so it
reads the same text in more tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Role = Literal["teacher", "student"]
VOCAB_SIZE = {"teacher": 1024, "student": 640}
DIGIT = {"teacher": r" ?\p{N}", "student": r"\p{N}"}
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def build_tokenizer(role: Role, texts: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned on `texts`, which puts one BOS before each text.

    Args:
        role: decides the size of the vocabulary (`VOCAB_SIZE`; fewer where the texts hold fewer pairs to merge).
        texts: what to learn the merges on.
        max_length: most positions of the model it belongs to.
    """
    # Who only wants the problems, as a command that checks its data, does not wait for this import.
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DIGIT[role]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE[role],
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B",
                special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
